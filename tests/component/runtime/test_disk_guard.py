"""A full or failing disk: no attempt is charged, claims pause, and work continues once there is room."""

import asyncio
import errno
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest

from fetchfleet import Outcome
from fetchfleet.worker.runtime.timings import WorkerTimings
from fetchfleet.worker.sink import disk_space as space_module
from fetchfleet.worker.sink.disk_space import Space
from fetchfleet.worker.sink.files.buffered_body import BLOCK_BYTES
from fetchfleet.worker.sink.files.directory import Directory
from fetchfleet.worker.sink.files.out_folder import OutFolder
from tests.component.conftest import Lines, Start, tuned
from tests.support.disks import disable_unnamed_files, mounted, remount
from tests.support.waiting import wait_until
from tools.one_worker import OneWorker, results_of
from tools.origin import behaviours as o
from tools.origin.server import Exchange, Origin

LEAST_BYTES = 1000


class Disk:
    """The free space that the disk reports."""

    def __init__(self) -> None:
        self.space = Space(2 * LEAST_BYTES)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    """A disk with the free space that the test sets."""
    made = Disk()

    async def space(_: OutFolder) -> Space:
        return made.space

    monkeypatch.setattr(OutFolder, "space", space)
    return made


@pytest.fixture
def timings() -> WorkerTimings:
    """Check the disk, and declined lanes, many times a second."""
    return replace(tuned(disk_pause_s=0.05), disk_check_s=0.02, disk_full_defer_s=0.05)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MiB for bodies, with 3 MiB used."""
    with mounted(tmp_path / "out") as out:
        (out / "filler").write_bytes(b"x" * (3 << 20))
        yield out


def events_named(lines: Lines, event: str) -> list[Any]:
    """Return every log line with this event."""
    return [line for line in lines if line["event"] == event]


def count_offers(worker: OneWorker, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the names of the lanes offered to the worker from here on."""
    offers: list[str] = []
    take = worker.runtime.take_lane

    async def counted(name: str, *args: Any, **kwargs: Any) -> Any:
        offers.append(name)
        return await take(name, *args, **kwargs)

    monkeypatch.setattr(worker.runtime, "take_lane", counted)
    return offers


async def test_a_disk_that_fills_up_repeatedly_is_logged_once_a_minute(
    disk: Disk, worker: OneWorker, lines: Lines
) -> None:
    """A different shortage is logged at once, and so is its end."""
    guard = worker.runtime.disk_guard
    for space in (Space(0), Space(0, free_files=0), Space(1 << 40), Space(0), Space(1 << 40), Space(0)):
        disk.space = space
        await guard.check()

    logged = [line.get("wanting", "ok") for line in lines if line["event"] in {"disk.full", "disk.ok"}]
    assert ["bytes", "files", "ok"] == logged


@pytest.mark.parametrize(
    ("space", "wanting"),
    [
        (Space(LEAST_BYTES - 1), "bytes"),
        (Space(1 << 40, free_files=0), "files"),
        (Space(1 << 40, read_only=True), "writing"),
    ],
)
async def test_a_worker_without_disk_space_takes_no_lane_until_there_is_some(
    disk: Disk,
    origin: Origin,
    start: Start,
    lines: Lines,
    monkeypatch: pytest.MonkeyPatch,
    space: Space,
    wanting: str,
) -> None:
    """Shortage and end are logged once each. No request is sent meanwhile."""
    worker = await start(min_free_bytes=LEAST_BYTES)
    disk.space = space
    await wait_until(lambda: events_named(lines, "disk.full"), "the worker to notice")
    offers = count_offers(worker, monkeypatch)
    batch = await worker.submit([origin.url()])
    await wait_until(lambda: len(offers) >= 3, "the lane to be offered again and again")
    assert (origin.requests, events_named(lines, "disk.ok")) == ([], [])
    disk.space = Space(2 * LEAST_BYTES)

    [result] = await results_of(batch)

    assert (result.outcome, result.attempts, result.interruptions) == (Outcome.STORED, 1, 0)
    [full], [ok] = events_named(lines, "disk.full"), events_named(lines, "disk.ok")
    assert (full["log_level"], full["wanting"], full["free_bytes"]) == ("error", wanting, space.free_bytes)
    assert ok["free_bytes"] == 2 * LEAST_BYTES


async def test_lanes_of_a_worker_without_disk_space_go_to_one_with_space(
    disk: Disk, origin: Origin, start: Start, lines: Lines
) -> None:
    """Requests in flight end on the first worker; waiting fetches move."""
    may_end = asyncio.Event()
    origin.behaviour = o.held(may_end)
    narrow = await start(worker_id="narrow", min_free_bytes=LEAST_BYTES, policy={"concurrency": 1})
    batch = await narrow.submit([origin.url("/first"), origin.url("/second"), origin.url("/third")])
    await wait_until(lambda: origin.requests, "the first to be in flight")
    disk.space = Space(LEAST_BYTES - 1)
    await wait_until(lambda: events_named(lines, "disk.full"), "the worker to notice")
    await start(worker_id="wide", min_free_bytes=0, policy={"concurrency": 1})
    may_end.set()

    first, *others = await results_of(batch)

    assert (first.outcome, first.worker) == (Outcome.STORED, "narrow")
    assert [(result.outcome, result.worker) for result in others] == [(Outcome.STORED, "wide")] * 2
    assert len(origin.requests) == 3


async def test_a_worker_notices_a_full_disk_and_waits_for_space(
    small_disk: Path, origin: Origin, start: Start, lines: Lines
) -> None:
    """The free space of the out folder counts."""
    worker = await start(min_free_bytes=2 << 20)
    batch = await worker.submit([origin.url()])
    [line] = events_named(lines, "disk.full")
    assert 0 < line["free_bytes"] <= 1 << 20
    (small_disk / "filler").unlink()

    [result] = await results_of(batch)
    await worker.stop()

    assert result.outcome is Outcome.STORED
    assert len(events_named(lines, "disk.full")) == len(events_named(lines, "disk.ok")) == 1


@pytest.mark.parametrize(
    ("step", "size_bytes"),
    [("create", 10), ("put", 10), ("name", 10), ("create", 2 * BLOCK_BYTES), ("put", 2 * BLOCK_BYTES)],
    ids=["create-small", "put-small", "name-small", "create-large", "put-large"],
)
@pytest.mark.parametrize(
    "number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO], ids=errno.errorcode.get
)
async def test_a_disk_error_charges_no_attempt(
    origin: Origin,
    worker: OneWorker,
    lines: Lines,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    step: str,
    size_bytes: int,
) -> None:
    """The fetch is retried with reason disk, and no file remains."""
    if step != "name":
        disable_unnamed_files(monkeypatch)
    real, refusals = getattr(Directory, step), iter([True, True])

    def refuses_twice(self: Directory, part: str | int, *args: Any, **kwargs: Any) -> Any:
        if not str(part).startswith("trial") and next(refusals, False):
            raise OSError(number, os.strerror(number))
        return real(self, part, *args, **kwargs)

    monkeypatch.setattr(Directory, step, refuses_twice)
    origin.behaviour = o.ok(b"x" * size_bytes)

    result = await worker.one(origin.url())

    assert (result.outcome, result.attempts, result.interruptions) == (Outcome.STORED, 1, 2)
    assert [line["reason"] for line in events_named(lines, "fetch.retry")] == ["disk", "disk"]
    assert worker.files() == {result.path}
    await wait_until(lambda: not worker.parts(), "no partial file")  # the worker may be trying the disk


class Refusing:
    """A step of the sink that fails while `now` is set. trials: also for the worker's own trial files."""

    def __init__(self, step: str, number: int, *, trials: bool) -> None:
        self.now = True
        self.refused = 0
        self._real = getattr(Directory, step)
        self._number = number
        self._trials = trials

    def __call__(self, folders: Directory, part: str | int, *args: Any, **kwargs: Any) -> Any:
        """Run the step, or raise the error."""
        trial = str(part).startswith("trial")
        if self.now and (self._trials or not trial):
            self.refused += not trial
            raise OSError(self._number, os.strerror(self._number))
        return self._real(folders, part, *args, **kwargs)


@pytest.mark.parametrize(
    ("step", "trials"),
    [("create", True), ("put", False), ("name", False)],
    ids=["everything", "only bodies", "only unnamed ones"],
)
@pytest.mark.parametrize("number", [errno.EDQUOT, errno.EIO], ids=errno.errorcode.get)
async def test_repeated_disk_errors_stop_the_claims(
    origin: Origin,
    start: Start,
    lines: Lines,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    step: str,
    trials: bool,  # noqa: FBT001
) -> None:
    """A full quota or a failing disk reports free space: the errors of writes count."""
    if step != "name":
        disable_unnamed_files(monkeypatch)
    refusing = Refusing(step, number, trials=trials)
    monkeypatch.setattr(Directory, step, partialmethod(refusing))
    monkeypatch.setattr(space_module, "PAUSE_S", 0.5)
    worker = await start(policy={"concurrency": 2})
    batch = await worker.submit([origin.url(f"/{n}") for n in range(20)])
    await wait_until(lambda: events_named(lines, "disk.full"), "the worker to notice")
    await wait_until(lambda: not worker.runtime.lanes, "the lane to be released")
    asked = len(origin.requests)
    offers = count_offers(worker, monkeypatch)
    await wait_until(lambda: len(offers) >= 3, "the lane to be offered again and again")
    if trials:
        assert len(origin.requests) == asked
    refusing.now = False

    results = await results_of(batch)

    assert {(result.outcome, result.attempts) for result in results} == {(Outcome.STORED, 1)}
    assert asked <= 20
    assert {line["wanting"] for line in events_named(lines, "disk.full")} == {"writing"}
    assert len(events_named(lines, "disk.full")) == len(events_named(lines, "disk.ok"))
    assert not worker.parts()


async def test_a_worker_notices_a_disk_without_free_inodes(
    tmp_path: Path, origin: Origin, start: Start, lines: Lines
) -> None:
    """The log line names files, as bytes are still free."""
    with mounted(tmp_path / "out", files=12) as out:
        worker = await start(min_free_bytes=0)
        fillers = [out / f"filler{n}" for n in range(12)]
        with suppress(OSError):
            for filler in fillers:
                filler.touch()
        await wait_until(lambda: events_named(lines, "disk.full"), "the worker to notice")
        batch = await worker.submit([origin.url()])
        for filler in fillers:
            filler.unlink(missing_ok=True)
        [result] = await results_of(batch)
        await worker.stop()

    assert (result.outcome, result.attempts) == (Outcome.STORED, 1)
    assert [line["wanting"] for line in events_named(lines, "disk.full")] == ["files"]


async def test_a_body_continues_after_a_read_only_remount_of_the_disk(
    tmp_path: Path, origin: Origin, start: Start, lines: Lines
) -> None:
    """The kernel remounts a disk read-only after an error. The fetch is repeated, uncharged."""
    half, may_end = asyncio.Event(), asyncio.Event()

    async def in_two(x: Exchange) -> None:
        await x.send_head(200, [("Content-Length", "10")])
        await x.send(b"12345")
        half.set()
        await may_end.wait()
        await x.send(b"67890")

    origin.behaviour = in_two
    with mounted(tmp_path / "out") as out:
        worker = await start(min_free_bytes=0)
        batch = await worker.submit([origin.url()])
        await wait_until(half.is_set, "half a body")
        remount(out, "ro")
        may_end.set()
        await wait_until(lambda: events_named(lines, "fetch.retry"), "the refusal")
        await wait_until(lambda: events_named(lines, "disk.full"), "the worker to notice")
        remount(out, "rw")
        [result] = await results_of(batch)
        await worker.stop()

    assert (result.outcome, result.attempts) == (Outcome.STORED, 1)
    assert {line["wanting"] for line in events_named(lines, "disk.full")} == {"writing"}
    assert {line["reason"] for line in events_named(lines, "fetch.retry")} == {"disk"}
