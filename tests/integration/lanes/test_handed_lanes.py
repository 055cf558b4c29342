"""Lanes that a worker leaves to workers with other abilities."""

import pytest
from redis.asyncio import Redis

from fetchfleet import Fleet
from fetchfleet.jobs import keys
from fetchfleet.jobs.scripts.lanes import HANDOVER_MS, MAX_HANDED, Early
from fetchfleet.worker.inspect.explain import explain_lane
from fetchfleet.worker.lanes.store import AcquiredLane, LaneStore
from fetchfleet.worker.local.run import announce
from fetchfleet.worker.policy.file import Policy
from tests.support.lanes import HOUR_MS, LANE, LEASE_MS, LaneHold, fields, now_ms, paths, state, url, waiting

NEEDS = "files !egress:ab"


@pytest.fixture
def store(redis: Redis) -> LaneStore:
    """Return the store of another worker."""
    return LaneStore(redis, "other", LEASE_MS)


async def left(fleet: Fleet, redis: Redis, needs: str = NEEDS, shut_until_ms: int = 0) -> int | None:
    """Leave a lane with two claimed fetches to other workers; return when it is due."""
    await fleet.submit([url("/0"), url("/1")])
    hold = await LaneHold.begin(redis)
    await hold.claim()
    due = await hold.release(needs=needs, shut_until_ms=shut_until_ms)
    return due.due_in_ms if due else None


async def handed(redis: Redis) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = await redis.hgetall(keys.HANDED)  # type: ignore[misc]
    return found


async def test_only_a_suitable_worker_acquires_the_lane_before_it_is_due(
    fleet: Fleet, redis: Redis, store: LaneStore
) -> None:
    """It holds with any share. The fetches are in order, and the mark is removed."""
    due_in_ms = await left(fleet, redis)
    marked, ttl_ms = await handed(redis), await redis.pttl(keys.HANDED)
    [early] = await store.acquire_many([LANE], 0)
    [taken] = await store.acquire_many([LANE], None, handed=True)

    assert due_in_ms == HANDOVER_MS
    assert 0 < ttl_ms <= keys.HANDED_TTL_MS
    assert marked == {LANE.encode(): NEEDS.encode()}
    assert isinstance(early, Early)
    assert isinstance(taken, AcquiredLane)
    assert await handed(redis) == {}
    assert "needs" not in await fields(redis)
    assert paths(await waiting(redis, "returned")) == ["/0", "/1"]


async def test_explain_names_the_worker_that_the_lane_waits_for(fleet: Fleet, redis: Redis) -> None:
    """The explanation has the option with which to start it."""
    await announce(redis, ["alive"])
    await left(fleet, redis)
    explained = await explain_lane(redis, Policy(), LANE)

    assert explained.state == "retry"
    assert explained.why == "its worker leaves it to a worker with --sink files (for dest, name or decode)"


async def test_a_lane_without_a_suitable_worker_goes_to_any(
    fleet: Fleet, redis: Redis, store: LaneStore
) -> None:
    """It does so at once if a fetch is submitted to it. The mark is removed with the next owner."""
    await left(fleet, redis)
    await fleet.submit([url("/2")])
    [taken] = await store.acquire_many([LANE], 0)

    assert isinstance(taken, AcquiredLane)
    assert await handed(redis) == {}
    assert "needs" not in await fields(redis)


@pytest.mark.parametrize("scheduled", [True, False])
async def test_a_mark_without_its_lane_is_dropped(
    fleet: Fleet,
    redis: Redis,
    store: LaneStore,
    scheduled: bool,  # noqa: FBT001 a parameter of the test
) -> None:
    """The lane is in a cool-down or idle. Another program may have written the mark."""
    if scheduled:
        await left(fleet, redis, shut_until_ms=await now_ms(redis) + HOUR_MS)
    await redis.hset(keys.HANDED, LANE, NEEDS)  # type: ignore[misc]
    [reply] = await store.acquire_many([LANE], None, handed=True)

    assert isinstance(reply, Early) if scheduled else reply is None
    assert await handed(redis) == {}
    assert await state(redis) == ("scheduled" if scheduled else None)


async def test_above_the_bound_a_lane_waits_for_any_worker(fleet: Fleet, redis: Redis) -> None:
    """Workers read all of the marks with each heartbeat."""
    await redis.hset(keys.HANDED, mapping={str(i): NEEDS for i in range(MAX_HANDED)})  # type: ignore[misc]
    due_in_ms = await left(fleet, redis)

    assert due_in_ms == HANDOVER_MS
    assert LANE.encode() not in await handed(redis)
    assert "needs" not in await fields(redis)
    await redis.delete(keys.HANDED)
