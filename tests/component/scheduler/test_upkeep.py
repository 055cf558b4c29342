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
ROOM, FULL = Space(2 * LEAST_BYTES), Space(LEAST_BYTES - 1)
HOUR_S = 3600

Stop = Callable[[OneWorker], Awaitable[None]]


class FakeDisk:
    """The space of each worker's disk, by the name of its out folder."""

    def __init__(self) -> None:
        self.spaces: dict[str, Space] = {}


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> FakeDisk:
    """Return the free space of the disks, which a test may change."""
    made = FakeDisk()

    async def space(of: OutFolder) -> Space:
        return made.spaces.get(of.path.name, ROOM)

    monkeypatch.setattr(OutFolder, "space", space)
    return made


@pytest.fixture
def timings() -> WorkerTimings:
    """Return timings with frequent checks of the disk and the lanes."""
    lanes = tuned(release_within_s=60, expiry_check_s=0.05)
    return replace(lanes, disk_check_s=0.02, disk_full_defer_s=0.05, heartbeat_s=0.03)


@pytest.fixture(params=["full disk", "drained"])
def stop(request: pytest.FixtureRequest, disk: FakeDisk, redis: Redis) -> Stop:
    """Return a function that keeps a worker from starting fetches: its disk is full, or it is drained."""

    async def stop(worker: OneWorker) -> None:
        if request.param == "full disk":
            disk.spaces[worker.out.name] = FULL
            await wait_until(lambda: worker.runtime.disk_guard.shortage, "the worker to notice")
        else:
            await drains.drain(redis, worker.runtime.registration.instance, await now_ms(redis))
            await wait_until(worker.runtime.live_lanes.drained.is_set, "the worker to be drained")

    return stop


async def ended(batch: Batch) -> list[tuple[Outcome, Reason | None]]:
    """Return the outcome and reason of each fetch of a batch, which must end within 3 s."""
    async with asyncio.timeout(3):
        return [(result.outcome, result.reason) for result in await results_of(batch)]


async def test_deadlines_cancellations_and_resets_take_effect_while_the_only_worker_starts_no_fetch(
    origin: Origin, other: Origin, start: Start, redis: Redis, stop: Stop
) -> None:
    """No request is sent. A fetch with time left stays in its lane."""
    worker = await start(min_free_bytes=LEAST_BYTES)
    await stop(worker)
    stays = await worker.submit([origin.url("/stays")])
    late = await worker.submit([Fetch(url=origin.url(f"/late/{n}"), deadline_s=0.2) for n in range(3)])
    cancelled = await worker.submit([origin.url("/gone"), other.url("/gone")])
    await cancelled.cancel()

    assert [(Outcome.CANCELLED, None)] * 2 == await ended(cancelled)
    assert [(Outcome.FAILED, Reason.DEADLINE)] * 3 == await ended(late)

    done = await reset(redis, worker.fleet.notify, [HOST], "operator")
    await await_applied(redis, done, 2, 0.01)
    assert not done[0].pending
    await wait_until(lambda: not worker.runtime.lanes, "the lane to be released")
    assert (1, 0) == (await backlog(redis), (await stays.counts()).done)
    assert [] == origin.requests + other.requests
    assert [] == await redis.keys("ff:cancelled:*")


async def test_deadlines_and_cancellations_take_effect_behind_a_slow_fetch_while_no_other_may_start(
    origin: Origin, start: Start, stop: Stop
) -> None:
    """The worker keeps the lane until the fetch in flight has ended."""
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
    slow.resume.set()
    assert [(Outcome.STORED, None)] == await ended(running)
    assert 1 == len(origin.requests)


async def test_a_worker_with_a_full_disk_ends_fetches_of_dead_hosts_and_of_dead_workers(
    origin: Origin, start: Start, redis: Redis, disk: FakeDisk
) -> None:
    """The claimed fetch of a dead worker waits again, and ends at its deadline."""
    policy = {"breaker_failures": 1, "breaker_reset_s": 0.1, "give_up_s": 0.3, "attempts": 99}
    worker = await start(min_free_bytes=LEAST_BYTES, policy={"concurrency": 1, **policy})
    origin.behaviour = o.status(500)
    dead = await worker.submit([origin.url("/1"), origin.url("/2")])
    await wait_until(lambda: origin.requests, "the first failure")
    disk.spaces["out"] = FULL
    assert [(Outcome.FAILED, Reason.HOST_DEAD)] * 2 == await ended(dead)

    waiting = await worker.submit([Fetch(url=f"http://{OTHER_HOST}/", deadline_s=0.5)])
    element = await redis.lpop(keys.waiting_at(OTHER_HOST, "normal"))  # type: ignore[misc]
    assert isinstance(element, bytes)
    fetch_id = element[:25]
    await redis.hset(keys.claimed(OTHER_HOST), fetch_id, element)  # type: ignore[misc, arg-type]
    await redis.hdel(keys.lane(OTHER_HOST), "earliest_ms")  # type: ignore[misc]
    assert [(Outcome.FAILED, Reason.DEADLINE)] == await ended(waiting)


async def test_a_full_disk_is_reported_and_its_worker_has_no_share_of_the_lanes(
    origin: Origin, other: Origin, start: Start, redis: Redis, disk: FakeDisk, lines: Lines
) -> None:
    """The status, `explain`, the readiness check and one log line name the cause."""
    worker = await start(min_free_bytes=LEAST_BYTES)
    disk.spaces["out"] = Space(1 << 40, refuses=True, error="No space left on device")
    await wait_until(lambda: worker.runtime.disk_guard.shortage, "the worker to notice")
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
    """One scan covers some of the due lanes and acquires a few. Later scans cover all of them."""
    monkeypatch.setattr(acquire, "UPKEEP_PAGE", 4)
    monkeypatch.setattr(acquire, "UPKEEP_LANES", 2)
    worker = await start(min_free_bytes=LEAST_BYTES)
    disk.spaces["out"] = FULL
    await wait_until(lambda: worker.runtime.disk_guard.shortage, "the worker to notice")
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
    """A suspect of another lane runs beyond that deadline."""
    monkeypatch.setattr(crashes, "is_suspect", lambda _: True)
    origin.behaviour = slow = o.HalfBody(half_bytes=10)
    running = await worker.submit([Fetch(url=origin.url(), method="POST")])
    await wait_until(lambda: origin.in_progress, "the slow fetch")
    late = await worker.submit([Fetch(url=other.url(), method="POST", deadline_s=0.2)])

    assert [(Outcome.FAILED, Reason.DEADLINE)] == await ended(late)
    assert [] == other.requests
    slow.resume.set()
    assert [(Outcome.STORED, None)] == await ended(running)
    after = await worker.submit([Fetch(url=other.url(), method="POST")])
    assert [(Outcome.STORED, None)] == await ended(after)


async def test_the_deadline_of_a_claimed_fetch_applies_in_a_lane_closed_for_an_hour(
    origin: Origin, start: Start
) -> None:
    """The fetch was claimed and waited for a slot during the search for expired fetches."""
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
    """A thousand names of no lane are overdue, and the key of one has the wrong type."""
    monkeypatch.setattr(acquire, "UPKEEP_PAGE", 4)
    worker = await start(min_free_bytes=LEAST_BYTES)
    disk.spaces["out"] = FULL
    await wait_until(lambda: worker.runtime.disk_guard.shortage, "the worker to notice")
    await redis.zadd(keys.ATTENTION, {f"no-lane-{n}.example": 1 for n in range(1000)})
    await redis.set(keys.lane("no-lane-0.example"), "foreign")
    gone = await worker.submit([f"http://{HOST}/"])
    await gone.cancel()

    assert [(Outcome.CANCELLED, None)] == await ended(gone)
    await wait_until(lambda: redis.exists(keys.DEAD), "the foreign value to be quarantined")
    await redis.delete(keys.ATTENTION)
