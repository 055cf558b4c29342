"""Small file systems, and sinks on them, for tests."""

import hashlib
import os
import subprocess
from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from fetchfleet import Fetch
from fetchfleet.jobs.contract.entry import Entry
from fetchfleet.jobs.contract.ids import batch_of, fetch_id
from fetchfleet.worker.sink.base import BodyWriter, Expected, Sink, StorageOptions
from fetchfleet.worker.sink.files.buffered_body import BatchTimings
from fetchfleet.worker.sink.files.directory import Directory
from fetchfleet.worker.sink.files.sink import FileSink
from fetchfleet.worker.sink.index_entry import StoredAt

ID = "0123456789abcdef-00000007"


@contextmanager
def mounted(folder: Path, size: str = "4m", *, files: int = 0) -> Iterator[Path]:
    """Mount a tmpfs at the folder; skip the test without permission. files: inode limit, 0 for none."""
    folder.mkdir(parents=True)
    options = f"size={size},nr_inodes={files}" if files else f"size={size}"
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("only root may mount a tmpfs")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def remount(folder: Path, how: str) -> None:
    """Remount the file system as `ro` or `rw`."""
    subprocess.run(["mount", "-o", f"remount,{how}", str(folder)], check=True)


def disable_unnamed_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Disable O_TMPFILE, which network file systems lack: every body starts as a partial file."""
    monkeypatch.setattr(Directory, "create_unnamed", lambda _: None)


@contextmanager
def opened(out: Path, timings: BatchTimings | None = None) -> Iterator[FileSink]:
    """Yield an open sink on the folder."""
    sink = FileSink(out, timings)
    sink.open()
    try:
        yield sink
    finally:
        sink.close()


async def store_body(
    sink: Sink,
    body: bytes,
    dest: str | None = None,
    options: StorageOptions | None = None,
    *,
    expected: Expected | None = None,
    place: int = 7,
    **fields: Any,
) -> StoredAt | None:
    """Write and commit a body. place: index of the fetch in its batch. fields: more fields of the fetch."""
    fetch = Fetch(url="http://x/", dest=dest, **fields)
    entry = Entry(id=fetch_id(batch_of(ID), place), deadline_ms=0, fetch=fetch)
    expected = expected or Expected(len(body), fetch.sha256)
    async with aclosing(sink.writer(entry, 1, expected, options)) as part:
        for at in range(0, len(body), 60_000):
            await write_piece(part, body[at : at + 60_000])
        return await part.commit(lambda: True)


async def write_piece(writer: BodyWriter, piece: bytes) -> None:
    """Write a piece, and drain the writer if it is full, as a fetch does."""
    writer.write(piece)
    if writer.full:
        await writer.drain()


def files(folder: Path) -> set[str]:
    """Return every file below a folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}


def some_bytes(size_bytes: int) -> bytes:
    """Return a body in which all blocks differ."""
    pieces = (hashlib.sha256(str(place).encode()).digest() for place in range(size_bytes // 32 + 1))
    return b"".join(pieces)[:size_bytes]
