"""The lock of an open file, and its digest."""

import fcntl
import hashlib
import threading
from io import FileIO
from typing import Any

READ_BYTES = 1 << 20


def lock(file: int) -> bool:
    """Lock an open file (`flock`); False if another process has it, or the file system has no locks.

    The lock ends when the file is closed or its process dies.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def hashed(file: FileIO, size_bytes: int, algorithm: str, stop: threading.Event) -> Any:
    """Hash a file from its start until `stop` is set; leaves the file position at its end."""
    digest = hashlib.new(algorithm)
    file.seek(0)
    left_bytes = size_bytes
    while left_bytes and not stop.is_set():
        block = file.read(min(READ_BYTES, left_bytes))
        if not block:
            raise OSError(f"{file.name!r} is shorter than it was")
        digest.update(block)
        left_bytes -= len(block)
    return digest
