"""Locking and hashing of open files."""

import fcntl
import hashlib
import threading
from io import FileIO
from typing import Any

READ_BYTES = 1 << 20


def lock(file: int) -> bool | None:
    """Lock an open file (`flock`). Returns False if it is locked already, None if it cannot have a lock.

    The lock ends when the file is closed or its process dies.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return None
    return True


def hashed(file: FileIO, size_bytes: int, algorithm: str, stop: threading.Event) -> Any:
    """Hash the first `size_bytes` of a file, or fewer once `stop` is set. Moves the file position.

    Raises OSError if the file is shorter.
    """
    digest = hashlib.new(algorithm)
    file.seek(0)
    left_bytes = size_bytes
    while left_bytes and not stop.is_set():
        block = file.read(min(READ_BYTES, left_bytes))
        if not block:
            raise OSError(f"{file.name!r} ends {left_bytes} bytes before the expected {size_bytes}")
        digest.update(block)
        left_bytes -= len(block)
    return digest
