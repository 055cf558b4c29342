"""The sweep: lanes of dead workers and lanes with a lost wake are served again, once."""

import asyncio

import pytest
from redis.asyncio import Redis

from fetchfleet import Fleet
from fetchfleet.jobs import keys
from fetchfleet.jobs.notifications import GRACE_MS
from fetchfleet.jobs.scripts.lanes import Early
from fetchfleet.worker.lanes.store import LaneLostError, LaneStore
from fetchfleet.worker.local import dead_worker
from tests.support.lanes import (
    HOUR_MS,
    LANE,
    LEASE_MS,
    LaneHold,
    ask,
    attention_ms,
    claimed,
    everything,
    fields,
    lapse,
    now_ms,
    paths,
    reclaim,
    state,
    stored,
    url,
    waiting,
)


@pytest.fixture
def store(redis: Redis) -> LaneStore:
    """Return the store of the sweeping worker."""
    return LaneStore(redis, "sweeper", LEASE_MS)


async def generation(redis: Redis, lane: str = LANE) -> int:
    return int((await fields(redis, lane))["generation"])


async def test_the_lane_of_a_dead_worker_is_rescued(fleet: Fleet, redis: Redis, store: LaneStore) -> None:
    """It is due now under a new generation, and the lost owner is named."""
    await fleet.submit([url("/x")])
    await LaneHold.begin(redis, "dead")
    await lapse(redis)
    ((wake, owner),) = await reclaim(redis)
    assert wake == (LANE, await generation(redis), 0)
    assert owner == "dead"
    assert await state(redis) == "scheduled"
    assert not {"owner", "token"} & (await fields(redis)).keys()


@pytest.mark.parametrize("found", [b"\xff", b"idle", None], ids=["junk", "idle", "nothing"])
async def test_i26_a_lane_with_a_foreign_state_is_served(
    fleet: Fleet, redis: Redis, store: LaneStore, found: bytes | None
) -> None:
    """Its fetches do not wait for the next submit. An empty one becomes idle."""
    await fleet.submit([url("/x")])
    for lane in (LANE, "empty.example"):
        await redis.delete(keys.lane(lane))
        if found is not None:
            await ask(redis, "HSET", keys.lane(lane), "state", found)
        await ask(redis, "ZADD", keys.ATTENTION, "1", lane)
    ((wake, owner),) = await reclaim(redis)
    assert (LANE, "") == (wake.lane, owner)
    assert ["/x"] == await (await LaneHold.begin(redis, "heir")).finish()
    assert await redis.zscore(keys.ATTENTION, "empty.example") is None
    await redis.delete(keys.lane("empty.example"))


async def test_the_new_holder_gets_the_orphans(fleet: Fleet, redis: Redis, store: LaneStore) -> None:
    """It gets the claims of the dead worker, whose token is refused."""
    batch = await fleet.submit([url(f"/{i}") for i in range(3)])
    dead = await LaneHold.begin(redis, "dead")
    elements = (await dead.claim(2)).serialized
    await lapse(redis)
    await reclaim(redis)
    heir = await LaneHold.begin(redis, "heir")
    assert sorted(heir.held.orphans.serialized) == sorted(elements)
    assert heir.held.token > dead.held.token
    assert await dead.settle(stored(elements[0])) == []
    with pytest.raises(LaneLostError):
        await dead.release()
    await heir.settle(*(stored(element) for element in heir.held.orphans.serialized))
    assert await heir.finish() == ["/2"]
    assert (await batch.counts()).stored == 3


async def test_the_lanes_of_an_ended_process_need_not_wait_for_their_leases(
    fleet: Fleet, redis: Redis, store: LaneStore
) -> None:
    """Only its own leases end. Its token is refused, the next owner gets its claims, and its death counts."""
    dead, other = "worker-1-0a1b2c3d", "worker-10-0a1b2c3d"
    await fleet.submit([url("/x"), url("/y", "b.example")])
    lost = await LaneHold.begin(redis, dead)
    kept = await LaneHold.begin(redis, other, "b.example")
    elements = (await lost.claim()).serialized
    await redis.zadd(keys.WORKERS, dict.fromkeys((dead, other), await now_ms(redis)))

    await dead_worker.release(redis, "worker-1")

    assert [other.encode()] == await redis.zrange(keys.WORKERS, 0, -1)
    ((wake, owner),) = await reclaim(redis)
    assert (LANE, dead) == (wake.lane, owner)
    assert [dead.encode()] == await redis.zrange(keys.DEATHS, 0, -1)
    heir = await LaneHold.begin(redis, "worker-1-ffffffff")
    assert elements == heir.held.orphans.serialized
    assert [] == await lost.settle(stored(elements[0]))
    await heir.finish()
    await kept.finish()


async def test_a_death_is_recorded_for_a_minute(fleet: Fleet, redis: Redis, store: LaneStore) -> None:
    """The next owner of the lane learns the number of other deaths."""
    await fleet.submit([url("/x")])
    counted = []
    for number in range(3):
        owner = await LaneHold.begin(redis, f"dead-{number}")
        assert owner.held.other_deaths == max(0, number - 1)
        await owner.claim()
        await lapse(redis)
        await reclaim(redis)
        counted.append(await redis.zcard(keys.DEATHS))
    assert counted == [1, 2, 3]
    assert 0 < await redis.pttl(keys.DEATHS) <= keys.DEATHS_WINDOW_MS

    heir = await LaneHold.begin(redis, "heir")
    assert heir.held.other_deaths == 2
    assert "last_owner" not in await fields(redis)

    long_ago = await now_ms(redis) - keys.DEATHS_WINDOW_MS
    await redis.zadd(keys.DEATHS, {f"dead-{number}": long_ago for number in range(3)})
    await lapse(redis)
    await reclaim(redis)
    assert await redis.zrange(keys.DEATHS, 0, -1) == [b"heir"]


async def test_orphans_return_to_the_front_on_release(fleet: Fleet, redis: Redis, store: LaneStore) -> None:
    """A holder that cannot serve them returns them in order."""
    await fleet.submit([url(f"/{i}") for i in range(4)])
    await (await LaneHold.begin(redis, "dead")).claim(3)
    await lapse(redis)
    await reclaim(redis)
    await (await LaneHold.begin(redis, "heir")).release()
    assert await claimed(redis) == []
    assert paths(await waiting(redis, "returned")) == ["/0", "/1", "/2"]


async def test_a_holder_whose_lease_lapsed_keeps_the_lane_until_it_is_rescued(
    fleet: Fleet, redis: Redis, store: LaneStore
) -> None:
    """A late renewal before the sweep loses nothing."""
    await fleet.submit([url("/x")])
    hold = await LaneHold.begin(redis)
    await lapse(redis)
    assert await hold.renew()
    assert await reclaim(redis) == []
    assert await hold.finish() == ["/x"]


async def test_a_lane_under_a_lease_is_left_alone(fleet: Fleet, redis: Redis, store: LaneStore) -> None:
    """The sweep changes only overdue lanes."""
    await fleet.submit([url("/x")])
    await LaneHold.begin(redis)
    before = await everything(redis)
    assert await reclaim(redis) == []
    assert await everything(redis) == before


async def test_a_lane_whose_wake_was_lost_is_woken_again(
    fleet: Fleet, redis: Redis, store: LaneStore
) -> None:
    """A due lane that no worker acquired gets a new notification. No owner was lost."""
    await fleet.submit([url("/x")])
    old = await generation(redis)
    await redis.delete(keys.QUEUE)
    await lapse(redis)
    ((wake, owner),) = await reclaim(redis)
    assert wake.generation == await generation(redis) > old
    assert owner == ""
    assert await (await LaneHold.begin(redis)).finish() == ["/x"]


async def test_a_lane_just_due_has_its_grace(fleet: Fleet, redis: Redis, store: LaneStore) -> None:
    """A notification has time to arrive before the sweep makes another."""
    before_ms = await now_ms(redis)
    await fleet.submit([url("/x")])
    due_ms = await attention_ms(redis)
    assert due_ms is not None
    assert due_ms >= before_ms + GRACE_MS
    assert await reclaim(redis) == []


async def test_a_rescued_lane_has_its_grace_again(fleet: Fleet, redis: Redis, store: LaneStore) -> None:
    """The next sweep does not wake it a second time."""
    await fleet.submit([url("/x")])
    await lapse(redis)
    assert len(await reclaim(redis)) == 1
    assert await reclaim(redis) == []


async def test_concurrent_sweeps_wake_a_lane_once(fleet: Fleet, redis: Redis, store: LaneStore) -> None:
    """Two sweeps together make one notification."""
    await fleet.submit([url("/x")])
    await lapse(redis)
    found = await asyncio.gather(*(reclaim(redis) for _ in range(4)))
    assert sorted(map(len, found)) == [0, 0, 0, 1]


async def test_an_idle_lane_is_removed_from_the_list(fleet: Fleet, redis: Redis, store: LaneStore) -> None:
    """No notification is sent."""
    await fleet.submit([url("/x")])
    await (await LaneHold.begin(redis)).finish()
    await lapse(redis)
    await lapse(redis, "never.example")
    assert await reclaim(redis) == []
    assert await attention_ms(redis) is None
    assert await attention_ms(redis, "never.example") is None
    assert await state(redis, "never.example") is None


async def test_one_sweep_rescues_many_lanes(fleet: Fleet, redis: Redis, store: LaneStore) -> None:
    """The longest overdue come first, up to the bound of one sweep."""
    lanes = [f"h{i}.example" for i in range(5)]
    await fleet.submit([url("/x", lane) for lane in lanes])
    for place, lane in enumerate(reversed(lanes)):
        await redis.zadd(keys.ATTENTION, {lane: place + 1})
    assert [wake.lane for wake, _ in await reclaim(redis, 2)] == ["h4.example", "h3.example"]
    assert {wake.lane for wake, _ in await reclaim(redis, 9)} == {
        "h0.example",
        "h1.example",
        "h2.example",
    }


async def test_a_sweep_works_on_a_redis_that_forgot_the_scripts(
    fleet: Fleet, redis: Redis, store: LaneStore
) -> None:
    """Redis may lose the scripts in a failover, when a sweep is needed most."""
    await fleet.submit([url("/x", lane) for lane in (LANE, "b.example")])
    await lapse(redis)
    await lapse(redis, "b.example")
    await redis.script_flush()
    assert len(await reclaim(redis)) == 2


async def test_an_overdue_lane_that_cooled_down_is_due_now(
    fleet: Fleet, redis: Redis, store: LaneStore
) -> None:
    """A lane that was closed until then is acquired by the sweep's notification if its own was lost."""
    await fleet.submit([url("/x")])
    await (await LaneHold.begin(redis)).release(shut_until_ms=await now_ms(redis) + HOUR_MS)
    number = await generation(redis)
    assert isinstance(await store.acquire(LANE, number), Early)
    await ask(redis, "HSET", keys.lane(LANE), "due_ms", 1, "shut_until_ms", 1)
    await lapse(redis)
    assert len(await reclaim(redis)) == 1
    assert await store.acquire(LANE, number) is None
    assert await (await LaneHold.begin(redis)).finish() == ["/x"]
