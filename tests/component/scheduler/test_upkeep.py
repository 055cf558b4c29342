"""Upkeep: deadlines, cancellations and resets take effect although no fetch may start."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
from redis.asyncio import Redis

from fetchfleet import Batch, Fetch, Outcome, Reason
from fetchfleet.jobs import keys
from fetchfleet.worker.fetch.rules import crashes
from fetchfleet.worker.inspect.explain import explain_lane
from fetchfleet.worker.inspect.fleet_status import fleet_status
from fetchfleet.worker.inspect.snapshot import is_alive
from fetchfleet.worker.lanes.reset import await_applied, reset
from fetchfleet.worker.policy.file import Policy
from fetchfleet.worker.redis_support import drains
from fetchfleet.worker.runtime.timings import WorkerTimings
from fetchfleet.worker.scheduler import acquire
from fetchfleet.worker.sink.disk_space import Space
from fetchfleet.worker.sink.files.out_folder import OutFolder
from tests.component.conftest import HOST, OTHER_HOST, Lines, Start, tuned
from tests.support.lanes import backlog, now_ms
from tests.support.waiting import wait_until
from tools.one_worker import OneWorker, results_of
from tools.origin import behaviours as o
from tools.origin.server import Origin

LEAST_BYTES = 1000
ROOM, NO_ROOM = Space(2 * LEAST_BYTES), Space(LEAST_BYTES - 1)
HOUR_S = 3600

Stop = Callable[[OneWorker], Awaitable[None]]


class FakeDisk:
    """The space of each worker's disk, by its name."""

    def __init__(self) -> None:
        self.spaces: dict[str, Space] = {}


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> FakeDisk:
    """A disk that is as full as the test says."""
    made = FakeDisk()

    async def space(of: OutFolder) -> Space:
        return made.spaces.get(of.path.name, ROOM)

    monkeypatch.setattr(OutFolder, "space", space)
    return made


@pytest.fixture
def timings() -> WorkerTimings:
    """Workers look at the disk and at lanes many times a second."""
    lanes = tuned(give_back_within_s=60, expiry_check_s=0.05)
    return replace(lanes, disk_check_s=0.02, disk_full_defer_s=0.05, heartbeat_s=0.03)


@pytest.fixture(params=["full disk", "drained"])
def stop(request: pytest.FixtureRequest, disk: FakeDisk, redis: Redis) -> Stop:
    """Makes a worker start no fetch from now on."""

    async def stop(worker: OneWorker) -> None:
        if request.param == "full disk":
            disk.spaces[worker.out.name] = NO_ROOM
            await wait_until(lambda: worker.runtime.disk_guard.lacking, "the worker to notice")
        else:
            await drains.drain(redis, worker.runtime.registration.instance, await now_ms(redis))
            await wait_until(worker.runtime.live_lanes.drained.is_set, "the worker to be drained")

    return stop


async def ended(batch: Batch) -> list[tuple[Outcome, Reason | None]]:
    """Return the end of each fetch of a batch; it must come within 3 s."""
    async with asyncio.timeout(3):
        return [(result.outcome, result.reason) for result in await results_of(batch)]


async def test_deadlines_cancellations_and_resets_take_effect_while_the_only_worker_starts_no_fetch(
    origin: Origin, other: Origin, start: Start, redis: Redis, stop: Stop
) -> None:
    """The host is asked nothing; a fetch with time left stays in its lane."""
    worker = await start(min_free_bytes=LEAST_BYTES)
    await stop(worker)
    stays = await worker.submit([origin.url("/stays")])
    late = await worker.submit([Fetch(url=origin.url(f"/late/{n}"), deadline_s=0.2) for n in range(3)])
    cancelled = await worker.submit([origin.url("/gone"), other.url("/gone")])
    await cancelled.cancel()

    assert [(Outcome.CANCELLED, None)] * 2 == await ended(cancelled)
    assert [(Outcome.FAILED, Reason.DEADLINE)] * 3 == await ended(late)

    done = await reset(redis, worker.fleet.notify, [HOST], "somebody")
    await await_applied(redis, done, 2, 0.01)
    assert not done[0].pending
    await wait_until(lambda: not worker.runtime.lanes, "the lane to be given back")
    assert (1, 0) == (await backlog(redis), (await stays.counts()).done)
    assert [] == origin.requests + other.requests
    assert [] == await redis.keys("ff:cancelled:*")


async def test_what_waits_behind_a_slow_fetch_of_a_worker_that_starts_no_fetch_ends_in_time(
    origin: Origin, start: Start, stop: Stop
) -> None:
    """The lane is kept for the fetch in flight, however long that takes."""
    worker = await start(min_free_bytes=LEAST_BYTES, policy={"concurrency": 1})
    slow = o.HalfBody(half_bytes=10)
    origin.behaviour = slow
    running = await worker.submit([Fetch(url=origin.url("/slow"), method="POST")])
    await wait_until(lambda: origin.in_progress, "the slow fetch")
    late = await worker.submit([Fetch(url=origin.url("/late"), deadline_s=0.2)])
    gone = await worker.submit([origin.url("/gone")])
    await stop(worker)
    await gone.cancel()

    assert [(Outcome.CANCELLED, None)] == await ended(gone)
    assert [(Outcome.FAILED, Reason.DEADLINE)] == await ended(late)
    slow.go_on.set()
    assert [(Outcome.STORED, None)] == await ended(running)
    assert 1 == len(origin.requests)


async def test_a_dead_host_and_the_claims_of_a_dead_worker_are_settled_by_a_worker_without_room(
    origin: Origin, start: Start, redis: Redis, disk: FakeDisk
) -> None:
    """The fetches of the host end; claimed ones wait again, with their deadline known."""
    policy = {"breaker_failures": 1, "breaker_reset_s": 0.1, "give_up_s": 0.3, "attempts": 99}
    worker = await start(min_free_bytes=LEAST_BYTES, policy={"concurrency": 1, **policy})
    origin.behaviour = o.status(500)
    dead = await worker.submit([origin.url("/1"), origin.url("/2")])
    await wait_until(lambda: origin.requests, "the first failure")
    disk.spaces["out"] = NO_ROOM
    assert [(Outcome.FAILED, Reason.HOST_DEAD)] * 2 == await ended(dead)

    waiting = await worker.submit([Fetch(url=f"http://{OTHER_HOST}/", deadline_s=0.5)])
    element = await redis.lpop(keys.waiting_at(OTHER_HOST, "normal"))  # type: ignore[misc]
    assert isinstance(element, bytes)
    fetch_id = element[:25]
    await redis.hset(keys.claimed(OTHER_HOST), fetch_id, element)  # type: ignore[misc, arg-type]
    await redis.hdel(keys.lane(OTHER_HOST), "earliest_ms")  # type: ignore[misc]
    assert [(Outcome.FAILED, Reason.DEADLINE)] == await ended(waiting)


async def test_the_cause_is_named_and_the_lanes_are_shared_by_workers_with_room(
    origin: Origin, other: Origin, start: Start, redis: Redis, disk: FakeDisk, lines: Lines
) -> None:
    """In the status, in explain and in the log; the worker counts as none in the shares of the others."""
    worker = await start(min_free_bytes=LEAST_BYTES)
    disk.spaces["out"] = Space(1 << 40, refuses=True, error="No space left on device")
    await wait_until(lambda: worker.runtime.disk_guard.lacking, "the worker to notice")
    batch = await worker.submit([origin.url(), other.url()])
    await wait_until(lambda: redis.exists(keys.LACKING), "a heartbeat")

    [shown] = (await fleet_status(redis)).workers
    assert ("writing", "No space left on device") == (shown.lacking, shown.lacking_error)
    explained = await explain_lane(redis, Policy(), HOST)
    assert "no worker" == explained.state
    assert f"{shown.instance} lacks a disk that takes bodies (No space left on device)" in explained.why
    assert ["lacks disk space (writing)"] == [*worker.runtime.not_ready()]
    assert 1 == len([line for line in lines if line["event"] == "disk.full"])
    assert await is_alive(redis, "one")
    assert 0 == await redis.zcard(keys.WORKERS)

    disk.spaces["out"] = ROOM
    assert [(Outcome.STORED, None)] * 2 == await ended(batch)
    await wait_until(lambda: redis.zcard(keys.WORKERS), "the worker to be counted again")
    assert not await redis.exists(keys.LACKING)


async def test_the_work_of_upkeep_is_bounded(
    start: Start, redis: Redis, disk: FakeDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look covers a stretch of the lanes that are due, and acquires a few; in the end each has its turn."""
    monkeypatch.setattr(acquire, "UPKEEP_LOOK", 4)
    monkeypatch.setattr(acquire, "UPKEEP_LANES", 2)
    worker = await start(min_free_bytes=LEAST_BYTES)
    disk.spaces["out"] = NO_ROOM
    await wait_until(lambda: worker.runtime.disk_guard.lacking, "the worker to notice")
    most = 0
    begin = worker.runtime.live_lanes.begin

    async def counted(*args: Any, **kwargs: Any) -> None:
        nonlocal most
        await begin(*args, **kwargs)
        most = max(most, len(worker.runtime.lanes))

    monkeypatch.setattr(worker.runtime.acquirer, "_serve", counted)
    await worker.submit([f"http://10.0.0.{n}/" for n in range(20)])
    gone = await worker.submit([f"http://10.0.1.{n}/" for n in range(10)])
    await gone.cancel()

    assert [(Outcome.CANCELLED, None)] * 10 == await ended(gone)
    assert 0 < most <= 2
    assert 20 == await backlog(redis)


async def test_a_fetch_that_waits_to_run_alone_ends_at_its_deadline(
    origin: Origin, other: Origin, worker: OneWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another fetch that may be crashing its workers runs for longer than that."""
    monkeypatch.setattr(crashes, "is_suspect", lambda _: True)
    origin.behaviour = slow = o.HalfBody(half_bytes=10)
    running = await worker.submit([Fetch(url=origin.url(), method="POST")])
    await wait_until(lambda: origin.in_progress, "the slow fetch")
    late = await worker.submit([Fetch(url=other.url(), method="POST", deadline_s=0.2)])

    assert [(Outcome.FAILED, Reason.DEADLINE)] == await ended(late)
    assert [] == other.requests
    slow.go_on.set()
    assert [(Outcome.STORED, None)] == await ended(running)
    after = await worker.submit([Fetch(url=other.url(), method="POST")])
    assert [(Outcome.STORED, None)] == await ended(after)


async def test_the_deadline_of_a_claimed_fetch_holds_after_its_lane_was_closed_for_an_hour(
    origin: Origin, start: Start
) -> None:
    """It was claimed, and waited for a slot, when the queues were searched for expired fetches."""
    worker = await start(max_in_flight=1, policy={"concurrency": 2})
    may_end = asyncio.Event()
    origin.behaviour = o.held(may_end, o.retry_after(HOUR_S))
    first = await worker.submit([origin.url("/first"), Fetch(url=origin.url("/claimed"), deadline_s=0.7)])
    await wait_until(
        lambda: any(len(lane.entries) == 2 for lane in worker.runtime.lanes.values()), "two claims"
    )
    late = Fetch(url=origin.url("/late"), deadline_s=0.1)
    behind = await worker.submit([Fetch(url=origin.url("/later")), late])
    await wait_until(lambda: _done(behind, 1), "the first search")
    may_end.set()

    await wait_until(lambda: _done(first, 1), "the claimed fetch to end")
    [result] = [result async for result in first.results(follow=False)]
    assert ("/claimed", Outcome.FAILED) == (result.url[-8:], result.outcome)
    assert 1 == len(origin.requests)


async def _done(batch: Batch, count: int) -> bool:
    return (await batch.counts()).done >= count


async def test_foreign_values_do_not_stop_the_upkeep(
    start: Start, redis: Redis, disk: FakeDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names of no lanes are many and long overdue, and one key of a lane has a value of the wrong type."""
    monkeypatch.setattr(acquire, "UPKEEP_LOOK", 4)
    worker = await start(min_free_bytes=LEAST_BYTES)
    disk.spaces["out"] = NO_ROOM
    await wait_until(lambda: worker.runtime.disk_guard.lacking, "the worker to notice")
    await redis.zadd(keys.ATTENTION, {f"no-lane-{n}.example": 1 for n in range(1000)})
    await redis.set(keys.lane("no-lane-0.example"), "foreign")
    gone = await worker.submit([f"http://{HOST}/"])
    await gone.cancel()

    assert [(Outcome.CANCELLED, None)] == await ended(gone)
    await wait_until(lambda: redis.exists(keys.DEAD), "the foreign value to be quarantined")
    await redis.delete(keys.ATTENTION)
