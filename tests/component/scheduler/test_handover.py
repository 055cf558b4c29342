"""Handover: workers with different abilities leave each other the fetches that they cannot make."""

import asyncio
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from fetchfleet import Batch, Fetch, Outcome, Reason
from fetchfleet.jobs import keys
from fetchfleet.worker.inspect.explain import LaneExplained, UnservedFetches, explain_lane
from fetchfleet.worker.inspect.fleet_status import fleet_status
from fetchfleet.worker.policy.file import Policy
from fetchfleet.worker.runtime.timings import WorkerTimings
from tests.component.conftest import HOST, OTHER_HOST, Lines, Start, tuned
from tests.support.waiting import wait_until
from tools.one_worker import OneWorker, results_of
from tools.origin import behaviours as o
from tools.origin.server import Origin


@pytest.fixture
def timings() -> WorkerTimings:
    """Return timings with frequent heartbeats and short turns and waits."""
    short = tuned(turn_s=0.05, expiry_check_s=0.1, newer_return_s=0.1, return_every_s=0.0005)
    return replace(short, heartbeat_s=0.02, name_check_s=0.1)


@pytest.fixture
def in_folder(tmp_path: Path) -> Path:
    """Return a folder with a file to send."""
    return folder_of(tmp_path / "in", "f")


def folder_of(path: Path, *names: str) -> Path:
    path.mkdir()
    for name in names:
        (path / name).write_bytes(b"sent")
    return path


def sent(origin: Origin, place: int, **fields: Any) -> Fetch:
    return Fetch(url=origin.url(f"/sent/{place}"), method="POST", body_file="f", **fields)


def named(origin: Origin, place: int, **fields: Any) -> Fetch:
    return Fetch(url=origin.url(f"/named/{place}"), dest=f"named/{place}", **fields)


def logged(lines: Lines, event: str) -> Lines:
    return [line for line in lines if line["event"] == event]


async def test_two_workers_each_make_the_fetches_that_the_other_cannot(
    origin: Origin, start: Start, in_folder: Path, lines: Lines, redis: Redis, tmp_path: Path
) -> None:
    """Each fetch is requested once and stored, in one lane, whichever worker claims it first.

    A fetch that needs the abilities of both waits, and delays no other.
    """
    await start(worker_id="files")
    warc = await start(worker_id="warc", sink="warc", in_folder=in_folder, out=tmp_path / "warc")
    both = await warc.submit([sent(origin, 999, dest="both")])
    pairs = [(named(origin, i), sent(origin, i)) for i in range(60)]
    results = await warc.results([fetch for pair in pairs for fetch in pair])
    await wait_until(lambda: logged(lines, "lane.unserved"), "the fetch that needs both to be logged")

    assert Counter({(Outcome.STORED, None, "files"): 60, (Outcome.STORED, None, "warc"): 60}) == Counter(
        (result.outcome, result.reason, result.worker) for result in results
    )
    assert {(1, 0)} == {(result.attempts, result.interruptions) for result in results}
    assert len(origin.requests) == len(results)
    assert not (await both.counts()).ended
    assert {("files", "in_folder")} == {tuple(line["needs"]) for line in logged(lines, "lane.unserved")}
    differ = logged(lines, "workers.differ")
    assert len({line["instance"] for line in differ}) == len(differ) == 2
    assert [{"sink", "in_folder"}] * 2 == [set(line["settings"]) for line in differ]
    shown = {worker.id: worker.abilities for worker in (await fleet_status(redis)).workers}
    assert shown == {"files": ["files"], "warc": ["in_folder"]}


async def test_a_fetch_that_no_worker_can_make_waits_for_one_that_can(
    origin: Origin, start: Start, in_folder: Path, redis: Redis, tmp_path: Path
) -> None:
    """Other fetches continue. `explain` names the missing ability. Deadlines and cancellations apply."""
    warc = await start(worker_id="warc", sink="warc", out=tmp_path / "warc")
    waiting = await warc.submit([*(named(origin, i) for i in range(5)), sent(origin, 0), sent(origin, 1)])
    cancelled = await warc.submit([named(origin, 11)])
    plain = await warc.one(origin.url("/plain"))
    explained = await _explained(redis, 8)
    late = await warc.submit([named(origin, 10, deadline_s=0.3)])
    await cancelled.cancel()
    [ended_late], [ended_cancelled] = await results_of(late), await results_of(cancelled)
    await start(worker_id="able", in_folder=in_folder)

    assert plain.outcome is Outcome.STORED
    assert (ended_late.outcome, ended_late.reason) == (Outcome.FAILED, Reason.DEADLINE)
    assert (ended_cancelled.outcome, ended_late.attempts) == (Outcome.CANCELLED, 0)
    assert {(Outcome.STORED, "able", 1)} == {
        (result.outcome, result.worker, result.attempts) for result in await results_of(waiting)
    }
    assert explained.unserved == [
        UnservedFetches(needs=["files"], fetches=6),
        UnservedFetches(needs=["in_folder"], fetches=2),
    ]
    assert "6 fetches wait for a worker with --sink files" in explained.why
    assert "2 fetches wait for a worker with --in" in explained.why
    assert not await redis.exists(keys.HANDED)


async def _explained(redis: Redis, fetches: int) -> LaneExplained:
    """Return the explanation of the lane once so many fetches wait for a worker."""
    found: list[LaneExplained] = []

    async def waits() -> bool:
        found[:] = [await explain_lane(redis, Policy(), HOST)]
        return sum(lack.fetches for lack in found[0].unserved) == fetches

    await wait_until(waits, f"{fetches} fetches to wait")
    found[0].unserved.sort(key=lambda lack: lack.needs)
    return found[0]


async def test_a_fetch_that_fails_by_a_setting_is_tried_by_workers_with_another(
    origin: Origin, other: Origin, start: Start, tmp_path: Path, lines: Lines
) -> None:
    """One worker lacks the file or must not connect to the network. If all do, the fetch fails.

    No note in the log has a secret.
    """
    folders = [folder_of(tmp_path / "in1", "g"), folder_of(tmp_path / "in2", "f")]
    one = await start(worker_id="one", in_folder=folders[0])
    await start(worker_id="two", in_folder=folders[1], deny_net=OTHER_HOST)
    await one.stop_acquiring()  # it gets only the lanes that the other leaves to it
    fetches = [sent(origin, 0), Fetch(url=origin.url("/"), method="POST", body_file="g")]
    nowhere = Fetch(url=origin.url("/"), method="POST", body_file="token=hunter2")
    batch = await one.submit([*fetches, nowhere, Fetch(url=other.url("/")), Fetch(url="http://10.1.2.3/")])
    found = await results_of(batch)

    assert [(result.outcome, result.reason) for result in found] == [
        (Outcome.STORED, None),
        (Outcome.STORED, None),
        (Outcome.FAILED, Reason.NO_BODY_FILE),
        (Outcome.STORED, None),
        (Outcome.FAILED, Reason.EGRESS_REFUSED),
    ]
    assert [result.worker for result in found if result.outcome is Outcome.STORED] == ["two", "one", "one"]
    assert {result.attempts for result in found} == {1}
    assert any("token=***" in line["note"] for line in logged(lines, "fetch.retry"))
    assert "hunter2" not in str([line["note"] for line in logged(lines, "fetch.retry")])
    assert len(origin.requests) == 2


async def test_deadlines_and_cancellations_apply_while_a_lane_waits_for_another_worker(
    origin: Origin, start: Start, tmp_path: Path
) -> None:
    """The lane changes its owner after the fetches in flight have ended, however long they take."""
    may_end = asyncio.Event()
    origin.behaviour = o.by_path({"/held": o.held(may_end)}, o.OK)
    able = await start(worker_id="able")
    await able.stop_acquiring()
    await start(worker_id="warc", sink="warc", out=tmp_path / "warc")
    held = await able.submit([origin.url("/held")])
    await wait_until(lambda: origin.requests, "a fetch in flight")
    late, kept = await able.submit([named(origin, 1, deadline_s=0.3)]), await able.submit([named(origin, 2)])
    cancelled = await able.submit([named(origin, 3)])
    [ended_late] = await results_of(late)
    await cancelled.cancel()
    [ended_cancelled] = await results_of(cancelled)
    assert not (await held.counts()).done
    may_end.set()
    [ended_held], [ended_kept] = await results_of(held), await results_of(kept)

    assert (ended_late.reason, ended_cancelled.outcome) == (Reason.DEADLINE, Outcome.CANCELLED)
    assert [(ended_held.worker, 0), (ended_kept.worker, 0)] == [
        ("warc", ended_held.interruptions),
        ("able", ended_kept.interruptions),
    ]


async def test_a_worker_that_is_alone_fails_the_fetches_it_cannot_make(
    origin: Origin, start: Start, tmp_path: Path
) -> None:
    """The workers of `fetchfleet run` are all alike, so each of them counts as alone."""
    alone: OneWorker = await start(sink="warc", alone=True, out=tmp_path / "warc")
    batch: Batch = await alone.submit([named(origin, 0), sent(origin, 0)])

    assert [Reason.BAD_DEST, Reason.NO_BODY_FILE] == [result.reason for result in await results_of(batch)]
