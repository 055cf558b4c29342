"""Bodies that are served, and whether those that were stored are the same, byte for byte."""

import os
import zlib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

BLOCK_BYTES = 16 << 20
READ_BYTES = 1 << 20


def make(folder: Path, files: int, size_bytes: int) -> Counter[int]:
    """Files of chance in the folder, 0.bin and so on; how often there is which check sum."""
    folder.mkdir()
    for number in range(files):
        _write(folder / f"{number}.bin", size_bytes)
    return _sums(folder.iterdir())


def in_files(out: Path, served: Counter[int]) -> str:
    """What is wrong with the files of a folder, empty if they are those that were served."""
    found = _sums(path for path in out.rglob("*") if path.is_file() and _is_body(path))
    wrong = (found - served).total()
    missing = (served - found).total()
    return f"{missing} of {served.total()} bodies are missing, {wrong} are others" if wrong or missing else ""


def in_segments(out: Path, served: Counter[int]) -> str:
    """What is wrong with the WARC segments of a folder, as far as their count of responses tells."""
    found = sum(
        path.read_bytes().count(b"WARC-Type: response\r\n") for path in out.rglob("*.warc") if path.is_file()
    )
    return "" if found == served.total() else f"{found} of {served.total()} bodies are there"


def _write(file: Path, size_bytes: int) -> None:
    """Real bytes, the same ones again and again: what is sparse, or packs well, is no body as they come."""
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
