"""Takeover of partial files: the fetch that may continue one, and the bytes that it keeps."""

import asyncio
import errno
import hashlib
import os
import threading
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from fetchfleet import Fetch
from fetchfleet.jobs.contract.entry import Entry, PartialNote
from fetchfleet.worker.sink.base import Expected
from fetchfleet.worker.sink.files import takeover
from fetchfleet.worker.sink.files.directory import Directory
from fetchfleet.worker.sink.files.sink import FileSink, FileWriter
from fetchfleet.worker.sink.index_entry import StoredAt
from tests.support.disks import write_piece
from tests.support.range_server import body_of
from tests.support.waiting import wait_until

ENTRY = Entry(id="0123456789abcdef-00000007", deadline_ms=0, fetch=Fetch(url="http://x/"))
BODY = body_of(2_000_000)
HALF = 1_100_000
NEVER_STOP = threading.Event()


@pytest.fixture
def sink(tmp_path: Path) -> Iterator[FileSink]:
    """A sink on an empty folder."""
    made = FileSink(tmp_path / "out")
    made.open()
    yield made
    made.close()


def note(offset_bytes: int = HALF, token: int = 1) -> PartialNote:
    """Return a note of half the body, written under the token."""
    return PartialNote(token=token, offset_bytes=offset_bytes, of="")


def take(sink: FileSink, of: PartialNote, token: int = 2) -> takeover.TakenFile | None:
    """Take the partial file over under the token; return None if that fails."""
    return sink.partial_files.take(ENTRY.id, of, token, NEVER_STOP)


def names(sink: FileSink) -> set[str]:
    """Return the tokens of the partial files on disk."""
    return {part.name.rpartition(".")[2] for part in sink.disk.partial_folder.iterdir()}


async def half(sink: FileSink, size_bytes: int = HALF) -> int:
    """Receive half a body and keep it; return the number of bytes kept."""
    async with aclosing(sink.writer(ENTRY, 1, Expected(len(BODY)))) as part:
        await write(part, BODY[:size_bytes])
        return await part.keep()


async def write(part: FileWriter, body: bytes) -> None:
    """Write the bytes in pieces, as they come from a socket."""
    for at in range(0, len(body), 60_000):
        await write_piece(part, body[at : at + 60_000])


async def rest(sink: FileSink, taken: takeover.TakenFile, at: int, **expected: Any) -> StoredAt | None:
    """Append the other half of the body and commit it."""
    async with aclosing(sink.writer(ENTRY, 2, Expected(len(BODY), **expected), resume=taken)) as part:
        await write(part, BODY[at:])
        return await part.commit(lambda: True)


async def test_a_resumed_body_is_whole(sink: FileSink) -> None:
    """The first half is on disk to the last byte. Size and digest are those of the whole body."""
    assert await half(sink) == HALF
    taken = take(sink, note())
    assert taken is not None
    await taken.add_digests(["sha512"])

    kept = await rest(sink, taken, HALF, digests=(("sha512", hashlib.sha512(BODY).digest()),))

    assert kept is not None
    assert (sink.disk.path / kept.path).read_bytes() == BODY
    assert (kept.size_bytes, kept.sha256) == (len(BODY), hashlib.sha256(BODY).hexdigest())
    assert names(sink) == set()


async def test_bytes_after_the_noted_offset_are_cut_off(sink: FileSink) -> None:
    """After a crash the file may hold more bytes than were synced."""
    await half(sink)
    taken = take(sink, note(600_000))
    assert taken is not None

    kept = await rest(sink, taken, 600_000)

    assert kept is not None
    assert (sink.disk.path / kept.path).read_bytes() == BODY


async def test_a_partial_file_shorter_than_its_note_is_removed(sink: FileSink) -> None:
    """A disk lost its last writes, so the fetch starts at zero."""
    await half(sink)

    assert take(sink, note(HALF + 1)) is None
    assert names(sink) == set()


async def test_a_missing_partial_file_is_not_taken_over(sink: FileSink) -> None:
    """The file is on another worker's disk."""
    assert take(sink, note()) is None


async def test_a_partial_file_with_a_live_writer_is_not_taken_over(sink: FileSink) -> None:
    """A stalled worker may resume in the middle of a write, so its file stays."""
    async with aclosing(sink.writer(ENTRY, 1, Expected())) as part:
        await write(part, BODY[:HALF])
        assert take(sink, note(600_000)) is None
        assert names(sink) == {"1"}
        assert await part.keep()

    taken = take(sink, note())
    assert taken is not None
    assert take(sink, note(token=2), 3) is None
    taken.close()
    again = take(sink, note(token=2), 3)
    assert again is not None
    again.close()
    assert names(sink) == {"3"}


async def test_a_stopped_takeover_leaves_the_partial_file_as_it_was(sink: FileSink) -> None:
    """A worker that must release a lane does not wait until a large file is hashed."""
    await half(sink)
    stop = threading.Event()
    stop.set()

    assert sink.partial_files.take(ENTRY.id, note(), 2, stop) is None
    assert names(sink) == {"1"}


async def test_a_body_that_was_only_in_memory_is_not_kept(sink: FileSink) -> None:
    """Its bytes are not written to disk for another attempt."""
    assert await half(sink, 500_000) == 0
    assert names(sink) == set()


async def test_a_partial_file_with_a_failed_fsync_is_not_kept(
    sink: FileSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failed fsync leaves unknown bytes on disk."""

    def fails(_: int) -> None:
        raise OSError(5, os.strerror(5))

    monkeypatch.setattr(os, "fsync", fails)

    assert await half(sink) == 0
    assert names(sink) == set()


async def test_a_partial_file_is_not_kept_if_an_earlier_fsync_failed(
    sink: FileSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel reports an error once: the next fsync succeeds although bytes are lost."""
    real, failures = os.fsync, iter([OSError(errno.EIO, os.strerror(errno.EIO))])

    def fails_once(file: int) -> None:
        for failure in failures:
            raise failure
        real(file)

    monkeypatch.setattr(os, "fsync", fails_once)
    async with aclosing(sink.writer(ENTRY, 1, Expected(len(BODY)))) as part:
        await write(part, BODY[:HALF])
        with pytest.raises(OSError, match="Input/output"):
            await part.sync()
        assert await part.keep() == 0

    assert names(sink) == set()


async def test_a_failed_fsync_counts_although_its_fetch_was_cancelled(
    sink: FileSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fetch that is cancelled during a checkpoint still uses the outcome of that checkpoint."""
    syncing, go_on = threading.Event(), threading.Event()

    def fails_once(_: int) -> None:
        if not syncing.is_set():
            syncing.set()
            go_on.wait(30)
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fails_once)
    async with aclosing(sink.writer(ENTRY, 1, Expected(len(BODY)))) as part:
        await write(part, BODY[:HALF])
        checkpoint = asyncio.create_task(part.sync())
        await wait_until(syncing.is_set, "the checkpoint")
        checkpoint.cancel()
        await asyncio.wait([checkpoint])
        keeping = asyncio.create_task(part.keep())
        await asyncio.wait([keeping], timeout=0.05)
        go_on.set()
        assert await keeping == 0

    assert names(sink) == set()


async def test_a_body_that_cannot_be_renamed_is_not_kept(
    sink: FileSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer raises the error of the disk and removes the partial file."""

    def full(*_: object, **__: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(Directory, "put", full)
    async with aclosing(sink.writer(ENTRY, 1, Expected())) as part:
        await write(part, BODY)
        with pytest.raises(OSError, match="No space"):
            await part.commit(lambda: True)
        assert await part.keep() == 0

    assert names(sink) == set()


async def test_repeated_cancellation_keeps_the_partial_file_whole(sink: FileSink) -> None:
    """A lane that lapses and is then lost cancels its fetches twice."""
    written, kept = asyncio.Event(), []

    async def receive() -> None:
        async with aclosing(sink.writer(ENTRY, 1, Expected())) as part:
            try:
                await write(part, BODY[:HALF])
                written.set()
                await asyncio.Event().wait()
            finally:
                kept.append(await part.keep())

    receiving = asyncio.create_task(receive())
    await wait_until(written.is_set, "half a body")
    while not receiving.done():
        receiving.cancel()
        await asyncio.wait([receiving], timeout=0)

    assert kept == [HALF]
    assert next(sink.disk.partial_folder.iterdir()).read_bytes() == BODY[:HALF]


async def test_abandoned_partial_files_are_swept(sink: FileSink) -> None:
    """The sweep also runs while the worker does, and removes files a day after their last write."""
    for name, written_s in {"old": 0, "young": None}.items():
        (sink.disk.partial_folder / name).write_bytes(b"x")
        if written_s is not None:
            os.utime(sink.disk.partial_folder / name, (written_s, written_s))

    sweep = asyncio.create_task(sink.disk.sweep_partial_files(every_s=0.01))
    await wait_until(lambda: names(sink) == {"young"}, "the sweep")
    sweep.cancel()
    await asyncio.wait([sweep])
