"""A lane changes hands, a worker stops, Redis goes away: nothing is lost and nothing is done twice."""

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
from tests.component.conftest import HOST, QUICK, Lines, Start, tuned
from tests.support.own_redis import OwnRedis, own_redis
from tests.support.waiting import wait_until
from tools.one_worker import OneWorker, results_of
from tools.origin import behaviours as o
from tools.origin.server import Origin

LEASE_S = 1.0
CALM = replace(QUICK, redis_recovery_s=0.3)


async def take_away(redis: Redis) -> None:
    """The lane has another owner's token from here on, as after a pause longer than the lease."""
    await redis.hset(keys.lane(HOST), "token", "0")  # type: ignore[misc]


async def finished_by(worker: OneWorker, batch: Batch) -> list[Result]:
    """The results, with a sweep as often as it takes instead of every few seconds."""
    await wait_until(lambda: _swept(worker, batch), "the end of the batch", timeout_s=20, every_s=0.1)
    return await results_of(batch)


async def _swept(worker: OneWorker, batch: Batch) -> bool:
    await worker.runtime.sweep.once()
    return (await batch.counts()).ended


async def _tried(worker: OneWorker, origin: Origin, times: int) -> bool:
    await worker.runtime.sweep.once()
    return len(origin.requests) == times


async def test_a_worker_that_lost_its_lane_lets_go_of_everything(
    origin: Origin, start: Start, lines: Lines, redis: Redis
) -> None:
    """The download stops, nothing gets its name, and another worker does it again."""
    held = o.HalfBody()
    origin.behaviour = held
    one = await start(lease_s=LEASE_S)
    batch = await one.submit([origin.url()])
    await wait_until(one.parts, "half a body on disk")

    await take_away(redis)
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


async def test_a_body_that_came_whole_too_late_has_no_name(
    origin: Origin, start: Start, redis: Redis
) -> None:
    """The lease had lapsed by our own clock when the last byte came: no result, no file, no next request."""
    held = o.HalfBody(half_bytes=10)
    origin.behaviour = held
    one = await start(lease_s=60)
    batch = await one.submit([origin.url()])
    await wait_until(lambda: origin.in_progress, "the request")
    [lane] = one.runtime.lanes.values()
    await one.stop_acquiring()

    lane.lease_ends_s = 0
    held.go_on.set()
    await wait_until(lambda: not one.runtime.lanes, "the end of the lane")
    await one.stop()
    assert not one.files() | one.parts()
    assert (await batch.counts()).done == 0
    assert len(origin.requests) == 1

    two = await start(worker_id="two", lease_s=LEASE_S)
    [result] = await finished_by(two, batch)
    assert (result.outcome, result.worker) == (Outcome.STORED, "two")


async def test_a_fetch_that_workers_die_of_is_given_up(origin: Origin, start: Start, redis: Redis) -> None:
    """Three owners lost over one fetch are enough; it is not asked for a fourth time."""
    origin.behaviour = o.HalfBody()
    worker = await start(lease_s=LEASE_S)
    batch = await worker.submit([origin.url()])
    for crash in range(1, 4):
        await wait_until(partial(_tried, worker, origin, crash), "the next try", every_s=0.1)
        await take_away(redis)
        await wait_until(lambda: not origin.in_progress, "the connection to close")

    [result] = await finished_by(worker, batch)

    assert (result.outcome, result.reason, result.interruptions) == (Outcome.FAILED, "poison", 3)
    assert len(origin.requests) == 3


async def test_stop_lets_short_fetches_end_and_hands_back_the_rest(
    origin: Origin, start: Start, redis: Redis, lines: Lines
) -> None:
    """What ends within the grace is stored; what does not is interrupted, and the next worker does it."""
    short, long = o.HalfBody(10), o.HalfBody(10)
    origin.behaviour = o.by_path({"/short": short, "/long": long})
    one = await start(grace_s=0.5)
    batch = await one.submit([origin.url("/short"), origin.url("/long")])
    await wait_until(lambda: origin.in_progress == 2, "both requests")

    stopping = asyncio.create_task(one.stop())
    await wait_until(lambda: one.runtime.stopping, "the stop to begin")
    short.go_on.set()
    await stopping

    counts = await batch.counts()
    [element] = await redis.lrange(keys.waiting(HOST)[0], 0, -1)  # type: ignore[misc]
    left = parse_entry(element)
    assert (counts.stored, counts.done) == (1, 1)
    assert left.fetch.url == origin.url("/long")
    assert (left.attempts, left.interruptions, left.crashes) == (0, 1, 0)
    assert [seen.aborted for seen in origin.requests if seen.target == "/long"] == [True]
    assert not one.parts()

    long.go_on.set()
    await start(worker_id="two")
    done, again = await results_of(batch)
    assert (done.outcome, done.worker, done.interruptions) == (Outcome.STORED, "one", 0)
    assert (again.outcome, again.worker, again.interruptions) == (Outcome.STORED, "two", 1)
    assert again.attempts == 1


async def test_a_worker_that_cannot_renew_shows_no_sign_of_life(start: Start, redis: Redis) -> None:
    """Its share of the lanes goes to others, and a health check sees it."""
    worker = await start(lease_s=1.0)
    renewing = next(task for task in asyncio.all_tasks() if task.get_name() == "renew")
    await aio.end(renewing)
    alive = keys.worker(worker.runtime.registration.instance)

    async def is_silent() -> bool:
        return not await redis.exists(alive)

    await wait_until(is_silent, "the sign of life to fade", 20)


async def test_stop_leaves_nothing_of_the_worker(origin: Origin, start: Start, redis: Redis) -> None:
    """No sign of life, no lane, no task, no open client; a second stop does no harm."""
    worker = await start()
    instance = worker.runtime.registration.instance
    await worker.one(origin.url())
    await wait_until(lambda: redis.exists(keys.worker(instance)), "a sign of life")

    await worker.stop()
    await worker.stop()

    assert not await redis.exists(keys.worker(instance))
    assert await redis.zscore(keys.WORKERS, instance) is None
    assert not worker.runtime.lanes
    assert not await redis.keys(keys.lane("*") + ":*")


async def test_a_task_that_misses_a_cancellation_is_ended() -> None:
    """Python 3.11's wait_for forgets a cancellation now and then: the next one comes soon."""
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


async def test_what_was_not_begun_is_handed_back_untouched(
    origin: Origin, start: Start, redis: Redis
) -> None:
    """Claimed but not started: the next worker gets it with a clean ledger."""
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
    """A Redis that keeps what it was told, started."""
    with own_redis() as server:
        yield server


def events_of(lines: Lines) -> list[str]:
    """The logged events, apart from a Redis that still loads its data for a moment."""
    return [line["event"] for line in lines if "BusyLoading" not in line.get("error", "")]


@pytest.mark.parametrize("lease_s", [8.0, LEASE_S], ids=["shorter-than-the-lease", "longer"])
async def test_nothing_is_lost_while_redis_is_away(
    redis_of_its_own: OwnRedis, origin: Origin, start: Start, lines: Lines, lease_s: float
) -> None:
    """Work in hand goes on, results wait, and each fetch ends with exactly one, each body whole."""
    await wait_until(redis_of_its_own.answers, "Redis")
    origin.behaviour = o.latency(0.02, o.ok(str.encode))
    how = {"lease_s": lease_s, "policy": {"concurrency": 2}, "timings": CALM}
    worker = await start(redis_url=redis_of_its_own.url, **how)
    batch = await worker.submit(origin.url(f"/{n}") for n in range(60))
    await wait_until(lambda: len(origin.requests) >= 10, "the work to begin")

    redis_of_its_own.stop()
    gone = asyncio.get_running_loop().time()
    await wait_until(
        lambda: not origin.in_progress and asyncio.get_running_loop().time() - gone > 2, "an outage of 2 s"
    )
    assert len(origin.requests) < 60
    redis_of_its_own.start()
    await wait_until(redis_of_its_own.answers, "Redis again")
    results = await finished_by(worker, batch)
    await wait_until(lambda: "redis.back" in events_of(lines), "the end of the trouble")
    await redis_of_its_own.clean()
    await worker.stop()

    assert [worker.body(result) for result in results] == [b"/%d" % n for n in range(60)]
    assert {result.outcome for result in results} == {Outcome.STORED}
    assert ["redis.trouble", "redis.back"] == [event for event in events_of(lines) if "redis" in event]
    [back] = [line for line in lines if line["event"] == "redis.back"]
    assert back["lasted_s"] >= 1
    assert back["failed"] >= 2
    assert len(origin.requests) == 60
    assert {result.interruptions for result in results} == {0}


async def test_a_lane_begins_nothing_more_once_enough_results_wait(
    redis_of_its_own: OwnRedis, origin: Origin, start: Start
) -> None:
    """However long Redis takes no writes, what is kept in memory is bounded; then all results are written."""
    await wait_until(redis_of_its_own.answers, "Redis")
    few = tuned(max_settlements=5)
    worker = await start(redis_url=redis_of_its_own.url, policy={"concurrency": 2}, timings=few)
    origin.behaviour = o.latency(0.02, o.OK)
    async with connect(redis_of_its_own.url) as client:
        batch = await worker.submit(origin.url(f"/{n}") for n in range(200))
        await wait_until(lambda: len(origin.requests) >= 10, "the work to begin")
        await client.config_set("maxmemory", 1)
        await wait_until(lambda: worker.runtime.services.settler.full, "results to wait")
        await wait_until(lambda: not origin.in_progress, "what was begun to end")
        await asyncio.sleep(0.5)  # the stretch in which nothing may begin
        begun = len(origin.requests)
        waiting = worker.runtime.services.settler.count
        await client.config_set("maxmemory", 0)
        results = await finished_by(worker, batch)
        await redis_of_its_own.clean()
        await worker.stop()

    assert begun < 200
    assert waiting <= 5 + 2 * 2
    assert {Outcome.STORED} == {result.outcome for result in results}
    assert 200 == len(origin.requests)
