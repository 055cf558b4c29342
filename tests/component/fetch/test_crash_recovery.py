"""Crash recovery: no fetch is lost by a crash, a lost reply or a deploy. No unsafe request is repeated."""

from dataclasses import replace
from functools import partial

import msgspec
import pytest
from redis.asyncio import Redis

from fetchfleet import Batch, Fetch, Fleet, Outcome, Reason
from fetchfleet.jobs import keys
from fetchfleet.jobs.contract import entry
from fetchfleet.jobs.contract.entry import HEAD_CHARS, parse_entry, serialize_entry
from fetchfleet.worker.runtime.timings import WorkerTimings
from tests.component.conftest import HOST, QUICK, Lines, Start, on_both_sinks, tuned
from tests.support.lanes import claimed, later, orphan_claim, waiting
from tests.support.waiting import wait_until
from tools.one_worker import OneWorker, results_of
from tools.origin import behaviours as o
from tools.origin.server import Origin

LEASE_S = 1.0
PACED = {"rate_per_s": 0.5, "burst": 1}


@pytest.fixture
def timings() -> WorkerTimings:
    """Return timings with which a sweep also works just after the start of a worker."""
    return replace(QUICK, reclaim_delay_s=0.0)


async def take_lane_away(redis: Redis) -> None:
    """Give the lane the token of another owner, as after a crash."""
    await redis.hset(keys.lane(HOST), "token", "0")  # type: ignore[misc]


async def rewrite(redis: Redis, **changes: object) -> None:
    """Change these fields of each waiting entry."""
    elements = await waiting(redis, lane=HOST)
    await redis.delete(keys.waiting_at(HOST, "normal"))
    changed = [
        serialize_entry(msgspec.structs.replace(parse_entry(element), **changes)) for element in elements
    ]
    await redis.rpush(keys.waiting_at(HOST, "normal"), *changed)  # type: ignore[misc]


async def ended(worker: OneWorker, batch: Batch) -> bool:
    """Return whether it has all its results, with a sweep before."""
    await worker.runtime.sweep.once()
    return (await batch.counts()).ended


@on_both_sinks
async def test_a_claim_whose_reply_was_lost_is_found(
    origin: Origin, start: Start, redis: Redis, timings: WorkerTimings
) -> None:
    """The worker still holds the lane. The fetch costs one attempt and one request."""
    half = o.HalfBody()
    origin.behaviour = o.by_path({"/held": half}, o.OK)
    worker = await start(policy={"concurrency": 1}, timings=tuned(timings, expiry_check_s=0.1))
    batch = await worker.submit([origin.url("/held"), origin.url("/lost"), origin.url("/next")])
    await wait_until(lambda: origin.in_progress, "the first request")

    await orphan_claim(redis, HOST)
    assert 2 == len(await claimed(redis, HOST))
    half.resume.set()
    results = await results_of(batch)

    assert {Outcome.STORED} == {result.outcome for result in results}
    assert {1} == {result.attempts for result in results}
    assert 3 == len(origin.requests)


@on_both_sinks
async def test_a_post_that_was_claimed_but_not_started_is_made_by_the_next_worker(
    origin: Origin, start: Start, redis: Redis
) -> None:
    """The host may have processed the started one, which ends as `interrupted`."""
    origin.behaviour = o.stall_headers(60)
    worker = await start(lease_s=LEASE_S, hosts={HOST: PACED})
    posts = [Fetch(url=origin.url(path), method="POST", body="x") for path in ("/begun", "/claimed")]
    batch = await worker.submit(posts)
    await wait_until(lambda: origin.in_progress, "the first request")
    assert [True, False] == [parse_entry(element).begun for element in await claimed(redis, HOST)]

    origin.behaviour = o.OK
    await take_lane_away(redis)
    await wait_until(partial(ended, worker, batch), "both results", every_s=0.1, timeout_s=20)
    begun, other = await results_of(batch)

    assert (Outcome.FAILED, Reason.INTERRUPTED, 1) == (begun.outcome, begun.reason, begun.interruptions)
    assert (Outcome.STORED, 1, 0) == (other.outcome, other.attempts, other.interruptions)
    assert ["/begun", "/claimed"] == [request.target for request in origin.requests]


async def test_suspects_run_one_at_a_time_and_only_the_running_one_becomes_poison(
    origin: Origin, fleet: Fleet, start: Start, redis: Redis
) -> None:
    """A suspect has two crashes on record. Other fetches may be in flight beside it."""
    origin.behaviour = o.stall_headers(60)
    batch = await fleet.submit([origin.url(f"/suspect/{number}") for number in range(3)])
    await rewrite(redis, crashes=2, interruptions=2)
    others = await fleet.submit([origin.url(f"/other/{number}") for number in range(3)])
    worker = await start(lease_s=LEASE_S, policy={"concurrency": 6})
    await wait_until(lambda: origin.in_progress == 4, "one suspect and the other fetches")

    origin.behaviour = o.OK
    await take_lane_away(redis)
    await wait_until(partial(ended, worker, batch), "the results", every_s=0.1, timeout_s=20)
    results, innocent = await results_of(batch), await results_of(others)

    assert [(Reason.POISON, 3), (None, 2), (None, 2)] == [(r.reason, r.interruptions) for r in results]
    assert [(Outcome.STORED, 1)] * 3 == [(r.outcome, r.interruptions) for r in innocent]
    assert 1 == [request.target for request in origin.requests].count("/suspect/0")


async def test_no_fetch_of_any_lane_starts_while_a_suspect_starts(
    origin: Origin, other: Origin, fleet: Fleet, start: Start, redis: Redis
) -> None:
    """It ends within 250 ms here. After that time, other fetches could start beside it."""
    origin.behaviour = o.by_path({"/suspect": o.latency(0.1)}, o.latency(0.02))
    other.behaviour = o.latency(0.02)
    suspect = await fleet.submit([origin.url("/suspect")])
    await rewrite(redis, crashes=2, interruptions=2)
    others = await fleet.submit(
        [of.url(f"/other/{number}") for number in range(60) for of in (origin, other)]
    )
    await start(policy={"concurrency": 4})
    results = [*await results_of(suspect), *await results_of(others)]

    assert [Outcome.STORED] * 121 == [result.outcome for result in results]
    [alone] = [seen for seen in origin.requests if seen.target == "/suspect"]
    for host in (origin, other):
        rest = [seen for seen in host.requests if seen is not alone]
        assert not [seen for seen in rest if alone.arrived_s < seen.arrived_s < alone.finished_s]
        assert [seen for seen in rest if seen.arrived_s > alone.finished_s]
        assert 2 < host.high_water


@pytest.fixture
async def newer(origin: Origin, fleet: Fleet, redis: Redis) -> Batch:
    """Return a batch of one fetch with a deadline of 3 s, whose entry has version 3."""
    batch = await fleet.submit([Fetch(url=origin.url("/new"), deadline_s=3)])
    [element] = await waiting(redis, lane=HOST)
    raised = element[:HEAD_CHARS] + b'{"v":3,' + element[HEAD_CHARS + 1 :]
    await redis.lset(keys.waiting_at(HOST, "normal"), 0, raised)  # type: ignore[misc, arg-type]
    return batch


async def test_i27_an_entry_of_a_newer_version_is_left_to_a_newer_worker(
    origin: Origin, start: Start, redis: Redis, lines: Lines, newer: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old worker returns the entry unchanged, logs `lane.newer` and serves the rest of the lane."""
    worker = await start(timings=tuned(newer_return_s=0.2))
    [old] = await worker.results([origin.url("/old")])
    await wait_until(partial(later, redis, HOST), "the entry of the newer version to be put back")
    assert "lane.newer" in {line["event"] for line in lines}
    assert ["/old"] == [request.target for request in origin.requests]

    monkeypatch.setattr(entry, "ENTRY_VERSION", 3)
    [result] = await results_of(newer)

    assert [Outcome.STORED] * 2 == [old.outcome, result.outcome]
    assert (1, 0) == (result.attempts, result.interruptions)


async def test_an_entry_of_a_newer_version_ends_at_its_deadline(
    origin: Origin, start: Start, newer: Batch
) -> None:
    """The result names its URL, and no request is sent."""
    await start(timings=tuned(newer_return_s=0.2))
    [result] = await results_of(newer)

    assert (Outcome.FAILED, Reason.DEADLINE) == (result.outcome, result.reason)
    assert origin.url("/new") == result.url
    assert not origin.requests
