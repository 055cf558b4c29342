"""Large bodies of a known size: each is received into the file of a WARC segment of its own."""

import asyncio
import errno
import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from fetchfleet import Outcome, Reason, Result
from fetchfleet.worker.sink.files.buffered_body import BLOCK_BYTES
from fetchfleet.worker.sink.files.directory import Directory
from fetchfleet.worker.sink.warc.record_writer import RecordWriter
from fetchfleet.worker.sink.warc.recovery import recover
from fetchfleet.worker.sink.warc.segment import Segment
from tests.component.conftest import Start, on_both_engines, tuned
from tests.support.waiting import wait_until
from tests.support.warc import check_indexes, read, record_of, segments
from tools.one_worker import OneWorker, results_of
from tools.origin import behaviours as o
from tools.origin.server import Exchange, Origin

LARGE = b"0123456789abcdef" * (3 * BLOCK_BYTES // 16) + b"odd"
KINDS = ["warcinfo", "request", "response"]


@pytest.fixture
def start(start: Start) -> Start:
    """A function that starts workers for which LARGE is a large body."""
    return partial(start, sink="warc", warc_compression="none", warc_max_bytes=65536)


def kinds(worker: OneWorker, result: Result) -> list[str]:
    """Return the types of the records in the segment of a result."""
    return [record.kind for record in read(segments(worker.out)[str(result.path)])]


@pytest.mark.parametrize("durability", ["none", "file", "full"])
@on_both_engines
async def test_a_large_body_is_not_copied(
    origin: Origin, start: Start, durability: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its segment is closed at once. Other bodies are in another one."""
    synced: list[int] = []
    fdatasync = os.fdatasync

    def counted(file: int) -> None:
        synced.append(os.fstat(file).st_size)
        fdatasync(file)

    monkeypatch.setattr(os, "fdatasync", counted)
    monkeypatch.delattr(os, "sendfile")
    worker = await start(policy={"durability": durability})
    origin.behaviour = o.by_path({"/large": o.ok(LARGE)}, otherwise=o.ok(b"small"))

    before, large, after = [await worker.one(origin.url(path)) for path in ("/1", "/large", "/2")]

    assert (large.outcome, large.attempts, large.bytes) == (Outcome.STORED, 1, len(LARGE))
    assert record_of(worker.out, large).payload == LARGE
    assert {str(large.path), f"{large.path}.cdxj"} < worker.files()
    assert kinds(worker, large) == KINDS
    assert before.path == after.path != large.path
    assert any(size >= len(LARGE) for size in synced) == (durability != "none")
    await worker.stop()
    check_indexes(worker.out)
    assert not worker.parts()


async def test_a_large_body_that_is_stored_already_becomes_a_revisit_record(
    origin: Origin, start: Start
) -> None:
    """The record is appended to the segment of small bodies. The file of the second body is removed."""
    worker = await start()
    origin.behaviour = o.ok(LARGE)

    first, second = [await worker.one(origin.url(path)) for path in ("/1", "/2")]

    assert (second.path, second.offset, second.length) == (first.path, first.offset, first.length)
    found = [[record.kind for record in read(segment)] for segment in segments(worker.out).values()]
    assert sorted(found) == [KINDS, ["warcinfo", "request", "revisit"]]
    assert not worker.parts()


async def test_a_body_is_copied_if_its_file_cannot_be_moved(
    origin: Origin, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder of segments may be a file system of its own. It has the indexes, too."""
    worker = await start()
    origin.behaviour = o.ok(LARGE)

    def put(*_: Any, **__: Any) -> None:
        raise OSError(errno.EXDEV, "a file system is mounted inside the out folder")

    monkeypatch.setattr(Directory, "put", put)
    result = await worker.one(origin.url())

    assert (result.outcome, result.attempts, result.interruptions) == (Outcome.STORED, 1, 0)
    assert record_of(worker.out, result).payload == LARGE
    assert kinds(worker, result) == KINDS
    await worker.stop()
    check_indexes(worker.out)
    assert not worker.parts()


@pytest.mark.parametrize("call", ["append", "append_around", "sync"])
async def test_a_full_disk_leaves_no_segment(
    origin: Origin, start: Start, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fetch waits as with files, and no attempt is charged."""
    worker = await start(policy={"durability": "file"}, timings=tuned(disk_pause_s=0.05))
    origin.behaviour = o.ok(LARGE)
    real, left = getattr(Segment, call), [1]

    def refuses_once(segment: Segment, *arguments: Any, **options: Any) -> None:
        if left:
            left.pop()
            raise OSError(errno.ENOSPC, "No space left on device")
        real(segment, *arguments, **options)

    monkeypatch.setattr(Segment, call, refuses_once)
    result = await worker.one(origin.url())

    assert (result.outcome, result.attempts, result.interruptions) == (Outcome.STORED, 1, 1)
    assert worker.files() == {str(result.path), f"{result.path}.cdxj"}
    assert record_of(worker.out, result).payload == LARGE
    assert not worker.parts()


async def test_a_lost_lane_leaves_no_segment(
    origin: Origin, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lease is checked before the file becomes a segment. The fetch runs again."""
    worker = await start()
    origin.behaviour = o.ok(LARGE)
    lost: list[str] = []
    real = RecordWriter.may_place

    def loses(self: RecordWriter) -> bool:
        if len(lost) < 2:  # the check before the file is moved, and the one before it is copied
            lost.append("lost")
            return False
        return real(self)

    monkeypatch.setattr(RecordWriter, "may_place", loses)
    result = await worker.one(origin.url())

    assert (result.outcome, result.attempts, result.interruptions) == (Outcome.STORED, 1, 1)
    assert worker.files() == {str(result.path), f"{result.path}.cdxj"}
    assert not worker.parts()


@pytest.mark.parametrize("compression", ["gzip", "none"])
async def test_a_starting_worker_removes_the_partial_files_of_dead_writers_only(
    origin: Origin, start: Start, compression: str
) -> None:
    """A live writer has a lock on its file. A worker with `--sink files` may resume its own files."""
    worker, rest = await start(warc_compression=compression), asyncio.Event()

    async def paused(x: Exchange) -> None:
        await x.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(LARGE) + LARGE[:-1])
        await rest.wait()
        await x.send(LARGE[-1:])

    origin.behaviour = paused
    batch = await worker.fleet.submit([origin.url()])
    await wait_until(worker.parts, "the partial file")
    [live] = worker.parts()
    dead, kept = worker.out / f"{live}0.warc.gz", worker.out / f"{live}1"
    for path in (dead, dead.with_suffix(""), kept):
        path.write_bytes(LARGE)

    await start(warc_compression=compression, worker_id="two")
    wanted = {live, str(kept.relative_to(worker.out))}
    await wait_until(lambda: worker.parts() == wanted, "the end of the recovery")
    rest.set()
    [result] = await results_of(batch)

    assert (result.outcome, result.interruptions) == (Outcome.STORED, 0)
    assert record_of(worker.out, result).payload == LARGE


@pytest.mark.parametrize(
    ("body", "fields", "reason"),
    [
        (LARGE[:-1], {}, Reason.TRUNCATED),
        (LARGE, {"sha256": "0" * 64}, Reason.DIGEST_MISMATCH),
    ],
    ids=["truncated", "sha256"],
)
async def test_a_body_that_fails_a_check_leaves_no_segment(
    origin: Origin, start: Start, body: bytes, fields: dict[str, Any], reason: Reason
) -> None:
    """The heads are written after the checks."""
    worker = await start(policy={"attempts": 1})
    origin.behaviour = o.truncated(body, len(LARGE))

    result = await worker.one(origin.url(), **fields)

    assert (result.outcome, result.reason) == (Outcome.FAILED, reason)
    assert not worker.files()
    assert not worker.parts()


async def test_a_segment_whose_writer_died_before_its_end_has_no_response(
    origin: Origin, start: Start, tmp_path: Path
) -> None:
    """The file has its name before the heads are written, the first record first."""
    worker = await start()
    origin.behaviour = o.ok(LARGE)
    result = await worker.one(origin.url())
    whole = segments(worker.out)[str(result.path)]
    body_at = whole.index(LARGE)
    ends = [record.offset for record in read(whole)[1:]]
    left = Directory(tmp_path / "left")
    left.open()
    for cut in sorted({*range(0, body_at, 97), *ends, body_at}):
        with left.chain("warc"):
            died = whole[:cut] + bytes(body_at - cut) + LARGE
            (tmp_path / "left/warc/dead-1.warc.open").write_bytes(died)
        recover(left)
        kept = max([end for end in ends if end <= cut], default=0)
        assert segments(tmp_path / "left") == ({"warc/dead-1.warc": whole[:kept]} if kept else {}), cut
    left.close()
