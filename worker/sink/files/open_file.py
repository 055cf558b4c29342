"""Operations on open files that both sinks use: lock, write everything, hash."""

import fcntl
import hashlib
import os
import threading
from collections.abc import Sequence
from io import FileIO
from typing import Any

READ_BYTES = 1 << 20
MAX_BLOCKS = 512
"""Blocks per writev(2); the kernel takes at most 1024 (IOV_MAX)."""

Block = bytes | bytearray | memoryview


def lock(file: int) -> bool:
    """Lock an open file (`flock`); False if another process has it, or the file system has no locks.

    The lock ends when the file is closed or its process dies.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def write_all(file: int, blocks: Sequence[Block]) -> None:
    """Write every byte: on a nearly full disk write(2) takes a part without an error."""
    for at in range(0, len(blocks), MAX_BLOCKS):
        left = [memoryview(block) for block in blocks[at : at + MAX_BLOCKS]]
        while left:
            written = os.writev(file, left)
            while left and written >= len(left[0]):
                written -= len(left.pop(0))
            if written:
                left[0] = left[0][written:]


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
