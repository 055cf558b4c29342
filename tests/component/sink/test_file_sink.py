"""The file sink: the final name has a whole body or no file."""

import asyncio
import errno
import hashlib
import os
import subprocess
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from fetchfleet import Fetch, Outcome, Reason
from fetchfleet.jobs.contract.entry import Entry
from fetchfleet.worker import errors
from fetchfleet.worker.errors import (
    BadDestError,
    InTheWayError,
    OverlongBodyError,
    TruncatedBodyError,
)
from fetchfleet.worker.sink.base import Expected
from fetchfleet.worker.sink.files.buffered_body import BLOCK_BYTES
from fetchfleet.worker.sink.files.directory import Directory
from fetchfleet.worker.sink.files.sink import FileSink
from fetchfleet.worker.sink.index_entry import StoredAt
from tests.component.conftest import Lines, Start, tuned
from tests.support.disks import disable_unnamed_files, write_piece
from tests.support.waiting import wait_until
from tools.one_worker import OneWorker
from tools.origin import behaviours as o
from tools.origin.server import Origin

ID = "0123456789abcdef-00000007"


@pytest.fixture
def sink(tmp_path: Path) -> Iterator[FileSink]:
    """A sink on an empty folder."""
    made = FileSink(tmp_path / "out")
    made.open()
    yield made
    made.close()


def entry(dest: str | None = None) -> Entry:
    """Return a fetch for the sink."""
    return Entry(id=ID, deadline_ms=0, fetch=Fetch(url="http://x/", dest=dest))


def files(folder: Path) -> set[str]:
    """Return every file below a folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}


async def store_body(
    sink: FileSink, *chunks: bytes, dest: str | None = None, live: bool = True, **expected: Any
) -> StoredAt | None:
    """Receive the chunks and commit them."""
    async with aclosing(sink.writer(entry(dest), 1, Expected(**expected))) as part:
        for chunk in chunks:
            await write_piece(part, chunk)
        return await part.commit(lambda: live)


async def test_a_small_body_is_one_file(sink: FileSink) -> None:
    """Its path fans out by the fetch ID, and no temporary file is left."""
    kept = await store_body(sink, b"hel", b"lo")

    assert kept is not None
    assert kept == StoredAt(f"{ID[:16]}/000000/{ID}", 5, hashlib.sha256(b"hello").hexdigest())
    assert (sink.disk.path / kept.path).read_bytes() == b"hello"
    assert files(sink.disk.path) == {kept.path}


async def test_an_empty_body_is_an_empty_file(sink: FileSink) -> None:
    """A result without a file would be a body that was not stored."""
    kept = await store_body(sink, length_bytes=0)

    assert kept is not None
    assert (sink.disk.path / kept.path).read_bytes() == b""


@pytest.mark.parametrize("size_bytes", [BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 3 * BLOCK_BYTES + 5])
async def test_a_large_body_is_whole(sink: FileSink, size_bytes: int) -> None:
    """At and around the edges of a block every byte is stored once."""
    body = os.urandom(size_bytes)
    chunks = [body[at : at + 65_000] for at in range(0, size_bytes, 65_000)]

    kept = await store_body(sink, *chunks, length_bytes=size_bytes)

    assert kept is not None
    assert (sink.disk.path / kept.path).read_bytes() == body
    assert kept.sha256 == hashlib.sha256(body).hexdigest()
    assert files(sink.disk.path) == {kept.path}


async def test_at_most_two_blocks_of_a_body_are_in_memory(sink: FileSink) -> None:
    """One block is being written while the other fills."""
    chunk = b"x" * 60_000
    async with aclosing(sink.writer(entry(), 1, Expected())) as part:
        for number in range(1, 51):
            await write_piece(part, chunk)
            on_disk = sum((sink.disk.path / name).stat().st_size for name in files(sink.disk.path))
            assert number * len(chunk) - on_disk < 2 * (BLOCK_BYTES + len(chunk))


async def test_an_error_in_the_middle_of_a_body_leaves_no_file(sink: FileSink) -> None:
    """Blocks that are already on disk are removed."""

    async def break_off(on_disk: list[str]) -> None:
        async with aclosing(sink.writer(entry(), 1, Expected())) as part:
            await write_piece(part, b"x" * (BLOCK_BYTES + 1))
            await write_piece(part, b"x" * (BLOCK_BYTES + 1))
            on_disk.extend(files(sink.disk.path))
            raise ConnectionError

    before: list[str] = []
    with pytest.raises(ConnectionError):
        await break_off(before)

    assert before
    assert files(sink.disk.path) == set()


@pytest.mark.parametrize("flushed", [True, False], ids=["half on disk", "on its way to disk"])
async def test_repeated_cancellation_leaves_no_file(sink: FileSink, flushed: bool) -> None:  # noqa: FBT001
    """A lane that lapses and is then lost cancels its fetches twice."""
    written = asyncio.Event()

    async def receive() -> None:
        async with aclosing(sink.writer(entry(), 1, Expected())) as part:
            for _ in range(2 if flushed else 1):
                await write_piece(part, b"x" * (BLOCK_BYTES + 1))
                written.set()
            await asyncio.Event().wait()

    receiving = asyncio.create_task(receive())
    if flushed:
        await wait_until(written.is_set, "half a body on disk")
    while not receiving.done():
        receiving.cancel()
        await asyncio.wait([receiving], timeout=0)

    assert files(sink.disk.path) == set()


@pytest.mark.parametrize("size_bytes", [10, BLOCK_BYTES + 10])
@pytest.mark.parametrize(
    ("expected", "error"),
    [
        ({"length_bytes": 2 * BLOCK_BYTES}, TruncatedBodyError),
        ({"max_bytes": 9}, OverlongBodyError),
        ({"sha256": "0" * 64}, errors.DigestMismatchError),
    ],
    ids=["truncated", "overlong", "wrong digest"],
)
async def test_a_body_with_a_wrong_length_or_digest_leaves_no_file(
    sink: FileSink, size_bytes: int, expected: dict[str, Any], error: type[Exception]
) -> None:
    """It is refused before it has a name, small or large."""
    with pytest.raises(error):
        await store_body(sink, b"x" * size_bytes, **expected)

    assert files(sink.disk.path) == set()


@pytest.mark.parametrize("size_bytes", [10, BLOCK_BYTES + 10])
async def test_a_body_is_not_placed_after_its_lane_is_lost(sink: FileSink, size_bytes: int) -> None:
    """A whole body gets its name only while the lease is held."""
    assert await store_body(sink, b"x" * size_bytes, live=False) is None
    assert files(sink.disk.path) == set()


async def test_two_owners_of_a_fetch_have_separate_partial_files(sink: FileSink) -> None:
    """A worker that lost its lane without noticing cannot write into the partial file of the next one."""
    big = BLOCK_BYTES + 1
    async with (
        aclosing(sink.writer(entry(), 1, Expected())) as old,
        aclosing(sink.writer(entry(), 2, Expected())) as new,
    ):
        await write_piece(old, b"o" * big)
        await write_piece(new, b"n" * big)
        kept = await new.commit(lambda: True)
        await write_piece(old, b"o" * big)

    assert kept is not None
    assert (sink.disk.path / kept.path).read_bytes() == b"n" * big
    assert files(sink.disk.path) == {kept.path}


async def test_a_dest_behind_a_symlink_is_refused(sink: FileSink, tmp_path: Path) -> None:
    """A link in the out folder leads no body and no folder out of it."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (sink.disk.path / "link").symlink_to(outside)
    (sink.disk.path / "dangling").symlink_to(tmp_path / "nowhere")

    for dest in ("link/a", "link/deep/er/a", "dangling/a"):
        with pytest.raises(BadDestError):
            await store_body(sink, b"x", dest=dest)

    assert list(outside.iterdir()) == []
    assert not (tmp_path / "nowhere").exists()
    assert files(sink.disk.partial_folder) == set()


async def test_a_dest_that_is_a_symlink_is_refused(sink: FileSink, tmp_path: Path) -> None:
    """The link is not the worker's, so it stays, and so does its target."""
    outside = tmp_path / "outside"
    outside.write_bytes(b"theirs")
    (sink.disk.path / "a").symlink_to(outside)

    with pytest.raises(InTheWayError, match="'a' is a symbolic link"):
        await store_body(sink, b"ours", dest="a")

    assert (sink.disk.path / "a").is_symlink()
    assert outside.read_bytes() == b"theirs"
    assert files(sink.disk.partial_folder) == set()


async def test_a_removed_folder_is_made_again(sink: FileSink) -> None:
    """Another program removes it between two fetches to one folder."""
    await store_body(sink, b"x", dest="folder/a")
    (sink.disk.path / "folder/a").unlink()
    (sink.disk.path / "folder").rmdir()

    await store_body(sink, b"x", dest="folder/b")

    assert files(sink.disk.path) == {"folder/b"}


@pytest.mark.parametrize("dest", ["folder", "folder/file/below", "folder/loop/below"])
async def test_an_impossible_dest_ends_the_fetch(origin: Origin, worker: OneWorker, dest: str) -> None:
    """The dest is a folder, or below a file or a loop of links. A retry would fail again."""
    (worker.out / "folder").mkdir(parents=True)
    (worker.out / "folder/file").write_bytes(b"")
    (worker.out / "folder/loop").symlink_to("loop")

    result = await worker.one(origin.url(), dest=dest)

    assert (result.outcome, result.reason) == (Outcome.FAILED, Reason.BAD_DEST)
    assert (result.attempts, len(origin.requests)) == (1, 1)
    assert worker.files() == {"folder/file", "folder/loop"}
    assert not worker.parts()


async def test_old_partial_files_are_removed_at_the_start(sink: FileSink) -> None:
    """A partial file older than a day has no writer. A younger one may have."""
    old, young = sink.disk.partial_folder / "old", sink.disk.partial_folder / "young"
    old.write_bytes(b"x")
    young.write_bytes(b"x")
    os.utime(old, (0, 0))

    sink.open()

    assert files(sink.disk.partial_folder) == {"young"}


@pytest.mark.parametrize("step", ["name", "put"], ids=["unnamed", "partial file"])
async def test_enospc_is_retried_without_charging_an_attempt(
    origin: Origin, start: Start, lines: Lines, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """The fetch is interrupted, and continues when the disk has space."""
    worker = await start(timings=tuned(disk_pause_s=0.05))
    if step == "put":
        disable_unnamed_files(monkeypatch)
    real, fails = getattr(Directory, step), iter([True, True])

    def full_at_first(self: Directory, *args: Any, **how: Any) -> Any:
        if next(fails, False):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(self, *args, **how)

    monkeypatch.setattr(Directory, step, full_at_first)

    result = await worker.one(origin.url())

    assert (result.outcome, result.attempts, result.interruptions) == (Outcome.STORED, 1, 2)
    retries = [line for line in lines if line["event"] == "fetch.retry"]
    assert {line["reason"] for line in retries} == {"disk"}
    assert not worker.parts()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Yield a disk of 4 MiB."""
    disk = tmp_path / "out"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)]
    if os.geteuid() or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("only root may mount a tmpfs")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


async def test_a_large_body_waits_until_a_full_disk_has_space(
    small_disk: Path, origin: Origin, start: Start, lines: Lines
) -> None:
    """A real disk fills up in the middle of the body and is freed later."""
    (small_disk / "filler").write_bytes(b"x" * (3 << 20))
    behaviour = o.big(2 << 20)
    origin.behaviour = behaviour
    worker = await start(min_free_bytes=0, timings=tuned(disk_pause_s=0.05))
    batch = await worker.submit([origin.url()])
    await wait_until(lambda: [line for line in lines if line["event"] == "fetch.retry"], "a full disk")
    assert worker.files() == {"filler"}
    (small_disk / "filler").unlink()

    [result] = [result async for result in batch.results()]
    await worker.stop()

    assert (result.outcome, result.sha256, result.attempts) == (Outcome.STORED, behaviour.sha256, 1)
    assert result.interruptions >= 1
