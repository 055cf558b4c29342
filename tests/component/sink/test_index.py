"""The index of bodies: an entry counts only for its own body, and no link is followed."""

import asyncio
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fetchfleet import Fetch, Outcome
from fetchfleet.jobs.contract.entry import PartialNote
from fetchfleet.worker.sink.base import StorageOptions
from fetchfleet.worker.sink.files import index, open_file, takeover
from fetchfleet.worker.sink.files.directory import Directory
from fetchfleet.worker.sink.files.index import STORED
from fetchfleet.worker.sink.files.sink import FileSink
from fetchfleet.worker.sink.index_entry import Validators
from fetchfleet.worker.util.executors import HASHING, run_stoppable
from tests.support.disks import ID, disable_unnamed_files, opened, store_body
from tests.support.waiting import wait_until
from tools.one_worker import OneWorker
from tools.origin import behaviours as o
from tools.origin.server import Origin

OURS, THEIRS = b"ours", b"sruo"
FETCH = Fetch(url="http://x/", dest="a")
REMEMBERED = StorageOptions(Validators(FETCH.url, '"1"'))


@pytest.fixture
def sink(tmp_path: Path) -> Iterator[FileSink]:
    """A sink on an empty folder."""
    with opened(tmp_path / "out") as made:
        yield made


def replace(file: Path, body: bytes) -> None:
    """Replace the file as another worker does, with the same modification time."""
    changed_ns, another = file.stat().st_mtime_ns, file.with_name(".another")
    another.write_bytes(body)
    os.utime(another, ns=(changed_ns, changed_ns))
    another.rename(file)


@pytest.mark.parametrize("step", ["name", "put"], ids=["unnamed", "partial file"])
@pytest.mark.parametrize("theirs", [THEIRS, b"longer than ours"], ids=["same length", "longer"])
async def test_an_index_entry_does_not_apply_to_a_body_that_replaced_its_own(
    sink: FileSink, monkeypatch: pytest.MonkeyPatch, theirs: bytes, step: str
) -> None:
    """The other body comes after the first has its name and before its index entry is written."""
    if step == "put":
        disable_unnamed_files(monkeypatch)
    real = getattr(Directory, step)

    def replace_after(self: Directory, what: str | int, path: str, **how: Any) -> Any:
        done = real(self, what, path, **how)
        if path == "a":
            replace(self._out / path, theirs)
        return done

    monkeypatch.setattr(Directory, step, replace_after)
    await store_body(sink, OURS, "a", REMEMBERED)

    assert (sink.disk.path / "a").read_bytes() == theirs
    assert await sink.stored.indexed(FETCH) is None
    found = await sink.stored.at_dest(FETCH)
    assert found is not None
    assert (found.size_bytes, found.sha256) == (len(theirs), None)


async def test_a_moved_body_is_recognized_by_its_digest(sink: FileSink) -> None:
    """Modification time and inode differ from those in the index."""
    await store_body(sink, OURS, "a", REMEMBERED)
    (sink.disk.path / "a").unlink()
    (sink.disk.path / "a").write_bytes(OURS)
    os.utime(sink.disk.path / "a", (0, 0))

    assert await sink.stored.indexed(FETCH) is not None


@pytest.mark.parametrize("what", ["entry", "folder", "body"])
async def test_the_index_follows_no_link(sink: FileSink, tmp_path: Path, what: str) -> None:
    """A link at an index entry, its folder or the body counts as a missing file."""
    await store_body(sink, OURS, "a", REMEMBERED)
    [entry] = (sink.disk.path / STORED).rglob("*.json")
    there = {"entry": entry, "folder": entry.parent, "body": sink.disk.path / "a"}[what]
    there.rename(tmp_path / "moved")
    there.symlink_to(tmp_path / "moved")

    assert await sink.stored.indexed(FETCH) is None
    found = await sink.stored.at_dest(FETCH)
    assert (None if found is None else found.sha256) is None
    assert (found is None) == (what == "body")


async def test_the_index_sweep_follows_no_link(sink: FileSink, tmp_path: Path) -> None:
    """Old files in a linked folder stay."""
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "old").write_bytes(b"")
    os.utime(theirs / "old", (0, 0))
    (sink.disk.path / STORED).mkdir()
    (sink.disk.path / STORED / "0a").symlink_to(theirs)

    await sink.disk.sweep_index()

    assert (theirs / "old").exists()


@pytest.mark.parametrize("by", ["revalidate", "etag"])
async def test_a_link_at_the_dest_is_not_reported_as_an_unchanged_body(
    origin: Origin, worker: OneWorker, tmp_path: Path, by: str
) -> None:
    """A 304 names neither path nor size of the target. Revalidation sends no If-None-Match."""
    not_modified = o.status(304, [("ETag", '"1"')])
    origin.behaviour = o.sequence(o.ok(OURS, [("ETag", '"1"')]), not_modified)
    await worker.one(origin.url(), dest="a", revalidate=True)
    (worker.out / "a").rename(tmp_path / "moved")
    (worker.out / "a").symlink_to(tmp_path / "moved")

    result = await worker.one(origin.url(), dest="a", **{by: True if by == "revalidate" else '"1"'})

    if by == "etag":
        assert (result.outcome, result.path, result.bytes) == (Outcome.UNCHANGED, None, None)
    else:
        assert Origin.header(origin.requests[-1], "If-None-Match") is None
        assert result.outcome is Outcome.FAILED


async def test_hashing_on_a_stalled_disk_delays_no_small_body_or_index_lookup(
    sink: FileSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two threads hash files. Cancelled lookups that have not begun end at once."""
    at_it: list[Any] = []
    go_on, hashed = threading.Event(), open_file.hashed

    def slowly(*arguments: Any) -> Any:
        at_it.append(arguments)
        go_on.wait(30)
        return hashed(*arguments)

    for module in (index, takeover):
        monkeypatch.setattr(module, "hashed", slowly)
    await store_body(sink, OURS, "a", REMEMBERED)
    await store_body(sink, OURS, "b", REMEMBERED, headers={"X": "y"})
    os.utime(sink.disk.path / "a", (0, 0))
    (sink.disk.partial_folder / f"{ID}.1").write_bytes(bytes(1 << 20))
    note = PartialNote(token=1, offset_bytes=1 << 20, of="")
    taking_over = asyncio.create_task(run_stoppable(HASHING, sink.partial_files.take, ID, note, 2))
    await wait_until(lambda: at_it, "the partial file to be hashed")
    looking = [asyncio.create_task(sink.stored.indexed(FETCH)) for _ in range(10)]
    try:
        await wait_until(lambda: len(at_it) == 2, "both threads to be hashing")
        assert await store_body(sink, b"small", "small", place=8)
        assert await sink.stored.indexed(Fetch(url=FETCH.url, dest="b", headers={"X": "y"})) is not None
        assert await asyncio.get_running_loop().getaddrinfo("127.0.0.1", 80)
        for waiting in looking:
            waiting.cancel()
        await wait_until(
            lambda: sum(one.cancelled() for one in looking) == 9,
            "the lookups that have not begun to be cancelled",
        )
        assert len(at_it) == 2
    finally:
        go_on.set()
        taken = await taking_over
        await asyncio.wait(looking)
    assert taken is not None
    taken.close()
