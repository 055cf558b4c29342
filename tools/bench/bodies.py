"""Make the bodies that the benchmark serves, and check the bodies that programs have stored."""

import gzip
import os
import zlib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

BLOCK_BYTES = 16 << 20
READ_BYTES = 1 << 20
RESPONSE = b"WARC-Type: response\r\n"


def make(folder: Path, files: int, size_bytes: int) -> Counter[int]:
    """Write random files 0.bin, 1.bin, … to a new folder; return how often each checksum occurs."""
    folder.mkdir()
    for number in range(files):
        _write(folder / f"{number}.bin", size_bytes)
    return first(folder, files)


def first(folder: Path, files: int) -> Counter[int]:
    """Return how often each checksum occurs in the first files of a folder that `make` has filled."""
    return _sums(folder / f"{number}.bin" for number in range(files))


def in_files(out: Path, served: Counter[int]) -> str:
    """Describe how the files in a folder differ from the served ones; empty if they are identical."""
    found = _sums(path for path in out.rglob("*") if path.is_file() and _is_body(path))
    wrong = (found - served).total()
    missing = (served - found).total()
    return f"{missing} of {served.total()} bodies are missing, {wrong} differ" if wrong or missing else ""


def in_segments(out: Path, served: Counter[int]) -> str:
    """Report a number of WARC responses in a folder that differs from the number of served bodies.

    Returns an empty string if the numbers are equal.
    """
    found = sum(path.read_bytes().count(RESPONSE) for path in out.rglob("*.warc"))
    for path in out.rglob("*.warc.gz"):
        with gzip.open(path) as plain:  # gzip.decompress copies the rest of the file for each member
            found += sum(line == RESPONSE for line in plain)
    return "" if found == served.total() else f"{found} of {served.total()} bodies are stored"


def _write(file: Path, size_bytes: int) -> None:
    """Repeat a block of random bytes, so that the file is neither sparse nor compressible."""
    block = os.urandom(min(BLOCK_BYTES, size_bytes))
    with file.open("wb") as served:
        for at in range(0, size_bytes, len(block)):
            served.write(block[: size_bytes - at])


def _sums(paths: Iterable[Path]) -> Counter[int]:
    return Counter(_sum(path) for path in paths)


def _sum(path: Path) -> int:
    found = 0
    with path.open("rb") as file:
        while block := file.read(READ_BYTES):
            found = zlib.crc32(block, found)
    return found


def _is_body(path: Path) -> bool:
    return ".fetchfleet" not in path.parts
