"""What is remembered of bodies: it is of those that it came with, and no link leads to others."""

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
from tests.support.disks import ID, disable_nameless_files, keep, opened
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
    """As another worker does it, at the very same time by the file's clock."""
    changed_ns, another = file.stat().st_mtime_ns, file.with_name(".another")
    another.write_bytes(body)
    os.utime(another, ns=(changed_ns, changed_ns))
    another.rename(file)


@pytest.mark.parametrize("step", ["name", "put"], ids=["nameless", "a part"])
@pytest.mark.parametrize("theirs", [THEIRS, b"longer than ours"], ids=["as long", "longer"])
async def test_a_body_that_took_the_place_of_another_is_never_taken_for_it(
    sink: FileSink, monkeypatch: pytest.MonkeyPatch, theirs: bytes, step: str
) -> None:
    """Also where it comes between the other's having its name and its being remembered."""
    if step == "put":
        disable_nameless_files(monkeypatch)
    real = getattr(Directory, step)

    def then_another(self: Directory, what: str | int, path: str, **how: Any) -> Any:
        done = real(self, what, path, **how)
        if path == "a":
            replace(self._out / path, theirs)
        return done

    monkeypatch.setattr(Directory, step, then_another)
    await keep(sink, OURS, "a", REMEMBERED)

    assert (sink.disk.path / "a").read_bytes() == theirs
    assert await sink.stored.known(FETCH) is None
    found = await sink.stored.at_dest(FETCH)
    assert found is not None
    assert (found.size_bytes, found.sha256) == (len(theirs), None)


async def test_a_body_that_was_only_moved_is_still_the_one(sink: FileSink) -> None:
    """Its digest says so, whatever its time and its number are."""
    await keep(sink, OURS, "a", REMEMBERED)
    (sink.disk.path / "a").unlink()
    (sink.disk.path / "a").write_bytes(OURS)
    os.utime(sink.disk.path / "a", (0, 0))

    assert await sink.stored.known(FETCH) is not None


@pytest.mark.parametrize("what", ["record", "folder", "body"])
async def test_what_is_remembered_is_not_read_through_a_link(
    sink: FileSink, tmp_path: Path, what: str
) -> None:
    """A link in the place of a record, of a folder of them, or of a body is as if nothing were there."""
    await keep(sink, OURS, "a", REMEMBERED)
    [record] = (sink.disk.path / STORED).rglob("*.json")
    there = {"record": record, "folder": record.parent, "body": sink.disk.path / "a"}[what]
    there.rename(tmp_path / "moved")
    there.symlink_to(tmp_path / "moved")

    assert await sink.stored.known(FETCH) is None
    found = await sink.stored.at_dest(FETCH)
    assert (None if found is None else found.sha256) is None
    assert (found is None) == (what == "body")


async def test_no_record_behind_a_link_is_swept(sink: FileSink, tmp_path: Path) -> None:
    """A folder of somebody else's, however old what is in it is."""
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "old").write_bytes(b"")
    os.utime(theirs / "old", (0, 0))
    (sink.disk.path / STORED).mkdir()
    (sink.disk.path / STORED / "0a").symlink_to(theirs)

    await sink.disk.sweep_index()

    assert (theirs / "old").exists()


@pytest.mark.parametrize("by", ["revalidate", "etag"])
async def test_a_link_at_the_dest_is_no_body_that_a_304_could_be_of(
    origin: Origin, worker: OneWorker, tmp_path: Path, by: str
) -> None:
    """What it leads to is not said to be unchanged, nor how large it is."""
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


async def test_whole_files_that_are_read_keep_nobody_else_waiting(
    sink: FileSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half bodies and old ones on a disk that stands still: what is known and what is small goes on."""
    at_it: list[Any] = []
    go_on, hashed = threading.Event(), open_file.hashed

    def slowly(*arguments: Any) -> Any:
        at_it.append(arguments)
        go_on.wait(30)
        return hashed(*arguments)

    for module in (index, takeover):
        monkeypatch.setattr(module, "hashed", slowly)
    await keep(sink, OURS, "a", REMEMBERED)
    await keep(sink, OURS, "b", REMEMBERED, headers={"X": "y"})
    os.utime(sink.disk.path / "a", (0, 0))
    (sink.disk.partial_folder / f"{ID}.1").write_bytes(bytes(1 << 20))
    note = PartialNote(token=1, offset_bytes=1 << 20, of="")
    taking_over = asyncio.create_task(run_stoppable(HASHING, sink.partial_files.take, ID, note, 2))
    await wait_until(lambda: at_it, "the half to be read")
    looking = [asyncio.create_task(sink.stored.known(FETCH)) for _ in range(10)]
    try:
        await wait_until(lambda: len(at_it) == 2, "as many as may be reading")
        assert await keep(sink, b"small", "small", place=8)
        assert await sink.stored.known(Fetch(url=FETCH.url, dest="b", headers={"X": "y"})) is not None
        assert await asyncio.get_running_loop().getaddrinfo("127.0.0.1", 80)
        for waiting in looking:
            waiting.cancel()
        await wait_until(lambda: sum(one.cancelled() for one in looking) == 9, "who has not begun to let go")
        assert len(at_it) == 2
    finally:
        go_on.set()
        taken = await taking_over
        await asyncio.wait(looking)
    assert taken is not None
    taken.close()
