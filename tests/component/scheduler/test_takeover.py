"""Takeover: after a lost lease, a stop or an outage of Redis, each fetch has one result."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import pytest
from redis.asyncio import Redis

from fetchfleet import Batch, Outcome, Result
from fetchfleet.jobs import keys
from fetchfleet.jobs.contract.entry import parse_entry
from fetchfleet.jobs.redis_connection import connect
from fetchfleet.worker.util import aio
from tests.component.conftest import HOST, QUICK, Lines, Start, on_both_sinks, tuned
from tests.support.own_redis import OwnRedis, own_redis
from tests.support.waiting import wait_until
from tools.one_worker import OneWorker, results_of
from tools.origin import behaviours as o
from tools.origin.server import Origin

LEASE_S = 1.0
CALM = replace(QUICK, redis_recovery_s=0.3)


async def take_lane_away(redis: Redis) -> None:
    """Give the lane the token of another owner, as after a pause longer than the lease."""
    await redis.hset(keys.lane(HOST), "token", "0")  # type: ignore[misc]


async def finished_by(worker: OneWorker, batch: Batch) -> list[Result]:
    """Return the results, with a sweep every 0.1 s."""
    await wait_until(lambda: _swept(worker, batch), "the end of the batch", timeout_s=20, every_s=0.1)
    return await results_of(batch)


async def _swept(worker: OneWorker, batch: Batch) -> bool:
    await worker.runtime.sweep.once()
    return (await batch.counts()).ended


async def _tried(worker: OneWorker, origin: Origin, times: int) -> bool:
    await worker.runtime.sweep.once()
    return len(origin.requests) == times


@on_both_sinks
async def test_a_worker_that_lost_its_lane_stops_its_fetches(
    origin: Origin, start: Start, lines: Lines, redis: Redis
) -> None:
    """It places no file, and another worker repeats the fetch."""
    held = o.HalfBody()
    origin.behaviour = held
    one = await start(lease_s=LEASE_S)
    batch = await one.submit([origin.url()])
    await wait_until(one.parts, "a partial file")

    await take_lane_away(redis)
    await wait_until(lambda: origin.requests[0].aborted, "the connection to close")
    await wait_until(lambda: not one.runtime.lanes, "the end of the lane")
    assert not one.files() | one.parts()
    assert "lane.lost" in {line["event"] for line in lines}
    await one.stop()

    two = await start(worker_id="two", lease_s=LEASE_S)
    origin.behaviour = o.ok(b"whole")
    [result] = await finished_by(two, batch)

    assert (result.outcome, result.worker, two.body(result)) == (Outcome.STORED, "two", b"whole")
    assert (result.attempts, result.interruptions) == (1, 1)


@on_both_sinks
async def test_a_body_completed_after_the_lease_ended_is_not_placed(
    origin: Origin, start: Start, redis: Redis
) -> None:
    """The worker's own clock decides. It writes no result and sends no other request."""
    held = o.HalfBody(half_bytes=10)
    origin.behaviour = held
    one = await start(lease_s=60)
    batch = await one.submit([origin.url()])
    await wait_until(lambda: origin.in_progress, "the request")
    [lane] = one.runtime.lanes.values()
    await one.stop_acquiring()

    lane.lease_ends_s = 0
    held.resume.set()
    await wait_until(lambda: not one.runtime.lanes, "the end of the lane")
    await one.stop()
    assert not one.files() | one.parts()
    assert (await batch.counts()).done == 0
    assert len(origin.requests) == 1

    two = await start(worker_id="two", lease_s=LEASE_S)
    [result] = await finished_by(two, batch)
    assert (result.outcome, result.worker) == (Outcome.STORED, "two")


async def test_a_fetch_whose_lane_is_lost_three_times_is_poison(
    origin: Origin, start: Start, redis: Redis
) -> None:
    """Each loss counts as a crash. No fourth request is sent."""
    origin.behaviour = o.HalfBody()
    worker = await start(lease_s=LEASE_S)
    batch = await worker.submit([origin.url()])
    for crash in range(1, 4):
        await wait_until(partial(_tried, worker, origin, crash), "the next try", every_s=0.1)
        await take_lane_away(redis)
        await wait_until(lambda: not origin.in_progress, "the connection to close")

    [result] = await finished_by(worker, batch)

    assert (result.outcome, result.reason, result.interruptions) == (Outcome.FAILED, "poison", 3)
    assert len(origin.requests) == 3


@on_both_sinks
async def test_stop_lets_short_fetches_end_and_hands_back_the_rest(
    origin: Origin, start: Start, redis: Redis, lines: Lines
) -> None:
    """A fetch that outlasts the grace period is interrupted, and the next worker repeats it."""
    short, long = o.HalfBody(10), o.HalfBody(10)
    origin.behaviour = o.by_path({"/short": short, "/long": long})
    one = await start(grace_s=0.5)
    batch = await one.submit([origin.url("/short"), origin.url("/long")])
    await wait_until(lambda: origin.in_progress == 2, "both requests")

    stopping = asyncio.create_task(one.stop())
    await wait_until(lambda: one.runtime.stopping, "the stop to begin")
    short.resume.set()
    await stopping

    counts = await batch.counts()
    [element] = await redis.lrange(keys.waiting(HOST)[0], 0, -1)  # type: ignore[misc]
    left = parse_entry(element)
    assert (counts.stored, counts.done) == (1, 1)
    assert left.fetch.url == origin.url("/long")
    assert (left.attempts, left.interruptions, left.crashes) == (0, 1, 0)
    assert [seen.aborted for seen in origin.requests if seen.target == "/long"] == [True]
    assert not one.parts()

    long.resume.set()
    await start(worker_id="two")
    done, again = await results_of(batch)
    assert (done.outcome, done.worker, done.interruptions) == (Outcome.STORED, "one", 0)
    assert (again.outcome, again.worker, again.interruptions) == (Outcome.STORED, "two", 1)
    assert again.attempts == 1


async def test_a_worker_that_cannot_renew_its_leases_sends_no_heartbeat(start: Start, redis: Redis) -> None:
    """Other workers then get its share of the lanes, and its health check fails."""
    worker = await start(lease_s=1.0)
    renewing = next(task for task in asyncio.all_tasks() if task.get_name() == "renew")
    await aio.end(renewing)
    alive = keys.worker(worker.runtime.registration.instance)

    async def is_expired() -> bool:
        return not await redis.exists(alive)

    await wait_until(is_expired, "the heartbeat to expire", 20)


async def test_stop_leaves_no_heartbeat_and_no_lane(origin: Origin, start: Start, redis: Redis) -> None:
    """A second stop has no effect. A fixture checks that no task and no client is left."""
    worker = await start()
    instance = worker.runtime.registration.instance
    await worker.one(origin.url())
    await wait_until(lambda: redis.exists(keys.worker(instance)), "a heartbeat")

    await worker.stop()
    await worker.stop()

    assert not await redis.exists(keys.worker(instance))
    assert await redis.zscore(keys.WORKERS, instance) is None
    assert not worker.runtime.lanes
    assert not await redis.keys(keys.lane("*") + ":*")


async def test_a_task_that_misses_a_cancellation_is_ended() -> None:
    """On Python 3.11, asyncio.wait_for may lose a cancellation. The next one follows soon."""
    missed = asyncio.Event()

    async def deaf_once() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            missed.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(deaf_once())
    await asyncio.wait([task], timeout=0)
    await aio.end(task, again_s=0.01)

    assert missed.is_set()
    assert task.cancelled()


async def test_a_claimed_fetch_that_was_not_started_is_handed_back_unchanged(
    origin: Origin, start: Start, redis: Redis
) -> None:
    """No interruption is charged for it."""
    origin.behaviour = o.HalfBody(10)
    one = await start(policy={"concurrency": 4}, max_in_flight=1, grace_s=0.1)
    batch = await one.submit(origin.url(f"/{n}") for n in range(4))
    await wait_until(lambda: origin.in_progress, "the first request")
    await wait_until(lambda: redis.hlen(keys.claimed(HOST)), "the claim")

    await one.stop()
    origin.behaviour = o.OK
    await start(worker_id="two")

    results = await results_of(batch)
    assert [result.interruptions for result in results] == [1, 0, 0, 0]
    assert {result.outcome for result in results} == {Outcome.STORED}


@pytest.fixture
def redis_of_its_own() -> Iterator[OwnRedis]:
    """Yield a running Redis that keeps its data when it is restarted."""
    with own_redis() as server:
        yield server


def events_of(lines: Lines) -> list[str]:
    """Return the logged events, without those of a Redis that is still loading its data."""
    return [line["event"] for line in lines if "BusyLoading" not in line.get("error", "")]


@pytest.mark.parametrize("lease_s", [8.0, LEASE_S], ids=["shorter-than-the-lease", "longer"])
async def test_no_fetch_is_lost_while_redis_is_away(
    redis_of_its_own: OwnRedis, origin: Origin, start: Start, lines: Lines, lease_s: float
) -> None:
    """Requests in flight end, and their results wait. Each fetch is requested once and stored."""
    await wait_until(redis_of_its_own.responds, "Redis")
    origin.behaviour = o.latency(0.02, o.ok(str.encode))
    how = {"lease_s": lease_s, "policy": {"concurrency": 2}, "timings": CALM}
    worker = await start(redis_url=redis_of_its_own.url, **how)
    batch = await worker.submit(origin.url(f"/{n}") for n in range(60))
    await wait_until(lambda: len(origin.requests) >= 10, "the work to begin")

    redis_of_its_own.kill()
    gone = asyncio.get_running_loop().time()
    await wait_until(
        lambda: not origin.in_progress and asyncio.get_running_loop().time() - gone > 2, "an outage of 2 s"
    )
    assert len(origin.requests) < 60
    redis_of_its_own.start()
    await wait_until(redis_of_its_own.responds, "Redis again")
    results = await finished_by(worker, batch)
    await wait_until(lambda: "redis.back" in events_of(lines), "the end of the outage")
    await redis_of_its_own.wait_until_clean()
    await worker.stop()

    assert [worker.body(result) for result in results] == [b"/%d" % n for n in range(60)]
    assert {result.outcome for result in results} == {Outcome.STORED}
    assert ["redis.trouble", "redis.back"] == [event for event in events_of(lines) if "redis" in event]
    [back] = [line for line in lines if line["event"] == "redis.back"]
    assert back["lasted_s"] >= 1
    assert back["failed"] >= 2
    assert len(origin.requests) == 60
    assert {result.interruptions for result in results} == {0}


async def test_a_lane_starts_no_fetch_while_too_many_results_wait(
    redis_of_its_own: OwnRedis, origin: Origin, start: Start
) -> None:
    """The limit bounds the worker's memory while Redis rejects writes. All results are written later."""
    await wait_until(redis_of_its_own.responds, "Redis")
    few = tuned(max_settlements=5)
    worker = await start(redis_url=redis_of_its_own.url, policy={"concurrency": 2}, timings=few)
    origin.behaviour = o.latency(0.02, o.OK)
    async with connect(redis_of_its_own.url) as client:
        batch = await worker.submit(origin.url(f"/{n}") for n in range(200))
        await wait_until(lambda: len(origin.requests) >= 10, "the work to begin")
        await client.config_set("maxmemory", 1)
        await wait_until(lambda: worker.runtime.services.settler.full, "results to wait")
        await wait_until(lambda: not origin.in_progress, "the started fetches to end")
        await asyncio.sleep(0.5)  # no fetch may start in this time
        begun = len(origin.requests)
        waiting = worker.runtime.services.settler.count
        await client.config_set("maxmemory", 0)
        results = await finished_by(worker, batch)
        await redis_of_its_own.wait_until_clean()
        await worker.stop()

    assert begun < 200
    assert waiting <= 5 + 2 * 2
    assert {Outcome.STORED} == {result.outcome for result in results}
    assert 200 == len(origin.requests)
