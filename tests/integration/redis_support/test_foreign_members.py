"""Members of another program in the fleet's sets are removed quickly, and no lane waits for them."""

from typing import Any

import pytest
from redis.asyncio import Redis

from fetchfleet import Fleet
from fetchfleet.jobs import keys
from fetchfleet.jobs.contract.ids import FETCH_ID_CHARS
from fetchfleet.jobs.notifications import GRACE_MS
from fetchfleet.jobs.scripts.sweep import take_turn
from fetchfleet.worker.intake.arq_queue import vetted_queue
from fetchfleet.worker.lanes.store import AcquiredLane, LaneStore
from fetchfleet.worker.observability.log import get_logger
from fetchfleet.worker.redis_support import drains
from fetchfleet.worker.redis_support.foreign_members import ForeignMembers
from fetchfleet.worker.redis_support.key_repair import KeyRepair
from fetchfleet.worker.redis_support.lost_fetches import LostFetches
from fetchfleet.worker.scheduler.sweep import LaneReclaimer, reclaim_overdue
from tests.support.lanes import (
    LANE,
    LEASE_MS,
    LaneHold,
    ask,
    attention_ms,
    fields,
    lapse,
    now_ms,
    paths,
    reclaim,
    state,
    url,
)
from tests.support.log_lines import capture_logs

MANY = 12_000
OTHER = "b.example"


@pytest.fixture
def foreign(redis: Redis) -> ForeignMembers:
    """Return the remover as a worker has it."""
    return ForeignMembers(redis, get_logger(), within_s=30.0)


@pytest.fixture
def repair(redis: Redis) -> KeyRepair:
    """Return the repair as a worker has it."""
    return KeyRepair(redis, LEASE_MS, lambda _: None, get_logger())


async def flood(redis: Redis, key: str, score: float | str, name: str = "z{:015x}") -> None:
    """Add many members."""
    for first in range(0, MANY, 4000):
        names = [name.format(i) for i in range(first, first + 4000)]
        await ask(redis, "ZADD", key, *(word for one in names for word in (str(score), one)))


@pytest.mark.parametrize("score", ["-inf", "0", "now", "inf"])
async def test_names_without_a_lane_leave_the_schedule(
    fleet: Fleet, redis: Redis, foreign: ForeignMembers, score: str
) -> None:
    """One line and one dead letter report all of them. Lanes stay."""
    await fleet.submit([url("/x")])
    before = await attention_ms(redis)
    at = str(await now_ms(redis)) if score == "now" else score
    await flood(redis, keys.ATTENTION, at)
    await ask(redis, "ZADD", keys.ATTENTION, at, b"\xff", at, "x" * 5000)
    with capture_logs() as lines:
        await foreign.remove()
    assert await redis.zrange(keys.ATTENTION, 0, -1) == [LANE.encode()]
    assert await attention_ms(redis) == before
    assert [(keys.ATTENTION, MANY + 2)] == [(line["key"], line["count"]) for line in lines]
    assert await redis.xlen(keys.DEAD) == 1


async def test_no_worker_reads_a_large_member(fleet: Fleet, redis: Redis, foreign: ForeignMembers) -> None:
    """It may be larger than the memory of a worker, whose replies from Redis stay small."""
    await fleet.submit([url("/x")])
    store = LaneStore(redis, "owner", LEASE_MS)
    large, at_ms = "x" * (1 << 20), await now_ms(redis)
    sets = (keys.ATTENTION, keys.QUEUE, keys.BATCHES)
    for look in (
        lambda: store.due(at_ms, 10),
        lambda: store.just_due(at_ms, 10),
        lambda: reclaim_overdue(redis),
        lambda: vetted_queue(redis.connection_pool).zrangebyscore(keys.QUEUE, min=0, max=at_ms),
        lambda: LostFetches(redis, "owner", get_logger()).end(at_ms),
        foreign.remove,
        foreign.remove_batches,
    ):
        for key in sets:
            await ask(redis, "ZADD", key, 0, large)
        before = int((await redis.info("stats"))["total_net_output_bytes"])
        await look()
        assert int((await redis.info("stats"))["total_net_output_bytes"]) - before < len(large) // 2
    for key in sets:
        await redis.zrem(key, large)


async def test_a_lane_is_reclaimed_before_names_without_a_lane_are_removed(
    fleet: Fleet, redis: Redis
) -> None:
    """Overdue and due lanes are searched from both ends."""
    await fleet.submit([url("/x")])
    await LaneHold.begin(redis, "dead")
    await redis.zadd(keys.ATTENTION, {LANE: await now_ms(redis) - 1})
    await flood(redis, keys.ATTENTION, 0)
    looked: list[bool] = []

    async def notify(_: Any) -> None:
        looked.append(False)

    reclaimer = LaneReclaimer(
        redis,
        KeyRepair(redis, LEASE_MS, lambda _: None, get_logger()),
        notify,
        lambda: looked.append(True),
        get_logger(),
    )
    await reclaimer.run()
    assert looked == [True, False]
    assert await state(redis) == "scheduled"
    store = LaneStore(redis, "heir", LEASE_MS)
    assert await store.just_due(await now_ms(redis), 1) == [LANE]
    await redis.flushall()


async def test_all_lanes_of_a_dead_worker_are_reclaimed_at_once(fleet: Fleet, redis: Redis) -> None:
    """One run continues until none is overdue."""
    lanes = [f"h{i}.example" for i in range(450)]
    await fleet.submit([url("/x", lane) for lane in lanes])
    await redis.zadd(keys.ATTENTION, dict.fromkeys(lanes, 1))
    notified: list[str] = []

    async def notify(due: Any) -> None:
        notified.extend(one.lane for one in due)

    repair = KeyRepair(redis, LEASE_MS, lambda _: None, get_logger())
    await LaneReclaimer(redis, repair, notify, lambda: None, get_logger()).run()
    assert sorted(lanes) == sorted(notified)
    await redis.flushall()


async def test_a_lane_with_an_impossible_time_gets_another(
    fleet: Fleet, redis: Redis, foreign: ForeignMembers
) -> None:
    """The time in its hash may be impossible too. The lane is reclaimed and served."""
    await fleet.submit([url("/x")])
    await ask(redis, "HSET", keys.lane(LANE), "due_ms", "1e300")
    await ask(redis, "ZADD", keys.ATTENTION, "inf", LANE)
    await foreign.remove()
    assert (await attention_ms(redis) or 0) <= await now_ms(redis) + GRACE_MS
    await lapse(redis)
    assert [LANE] == [due.lane for due, _ in await reclaim(redis)]
    assert await (await LaneHold.begin(redis)).finish() == ["/x"]


async def test_names_of_no_workers_take_no_share_of_the_lanes(
    fleet: Fleet, redis: Redis, foreign: ForeignMembers
) -> None:
    """A heartbeat in the future does not count, another one only briefly. Names of workers stay.

    The name of a dead worker stays until a heartbeat removes it: its report expires shortly before.
    """
    now = await now_ms(redis)
    died = {"died": now - keys.WORKER_TTL_MS}
    await fleet.submit([url("/x"), url("/y", OTHER)])
    await redis.zadd(keys.WORKERS, {"live": now, **died})
    await redis.set(keys.worker("live"), "{}", px=60_000)
    await flood(redis, keys.WORKERS, "inf", "later{}")
    store = LaneStore(redis, "live", LEASE_MS)
    held = await store.acquire(LANE, int((await fields(redis))["generation"]), 1)
    assert isinstance(held, AcquiredLane)
    await flood(redis, keys.WORKERS, now, "now{}")
    await foreign.remove()
    assert await redis.zrange(keys.WORKERS, 0, -1) == [b"died", b"live"]
    await redis.flushall()


async def test_a_dead_worker_is_not_a_foreign_member(redis: Redis, foreign: ForeignMembers) -> None:
    """Its report expires shortly before its name."""
    now = await now_ms(redis)
    await redis.zadd(keys.WORKERS, {"dead": now - keys.WORKER_TTL_MS + 100, "long-dead": now - 60_000})
    await foreign.remove()
    assert not await redis.exists(keys.DEAD)
    await redis.delete(keys.WORKERS)


async def test_foreign_deaths_do_not_excuse_a_fetch_that_kills(
    fleet: Fleet, redis: Redis, foreign: ForeignMembers
) -> None:
    """Future ones do not count, and an impossible number is removed."""
    await fleet.submit([url("/x")])
    await (await LaneHold.begin(redis, "dead")).claim()
    await lapse(redis)
    await reclaim(redis)
    await flood(redis, keys.DEATHS, "inf", "inf{}")
    heir = await LaneHold.begin(redis, "heir")
    assert heir.held.other_deaths == 0
    await foreign.remove()
    assert await redis.zrange(keys.DEATHS, 0, -1) == [b"dead"]
    await flood(redis, keys.DEATHS, await now_ms(redis), "now{}")
    await foreign.remove()
    assert not await redis.exists(keys.DEATHS)
    await redis.flushall()


async def test_fields_without_a_worker_are_removed_from_the_drains(
    redis: Redis, foreign: ForeignMembers
) -> None:
    """Meanwhile they have no effect."""
    await redis.hset(keys.DRAINS, mapping={f"z{i}": "1" for i in range(MANY)})  # type: ignore[misc]
    assert await drains.drained(redis) == {}
    await foreign.remove()
    assert not await redis.exists(keys.DRAINS)


async def test_ids_without_a_batch_are_removed(fleet: Fleet, redis: Redis, foreign: ForeignMembers) -> None:
    """It holds with any times. A batch stays in its place."""
    batch = await fleet.submit([url("/x")])
    await flood(redis, keys.BATCHES, "-inf")
    await flood(redis, keys.BATCHES, "inf", "y{:015x}")
    await ask(redis, "ZADD", keys.BATCHES, 1, f"{batch.id}:lanes")
    await foreign.remove_batches()
    assert await redis.zrange(keys.BATCHES, 0, -1) == [batch.id.encode()]


async def test_only_cancelled_batches_are_cancelled_in_a_lane(fleet: Fleet, redis: Redis) -> None:
    """IDs of other batches, unknown IDs and other text are removed, in any amount."""
    batch, other = await fleet.submit([url("/x")]), await fleet.submit([url("/y")])
    await batch.cancel()
    ids = [f"{i:016x}" for i in range(MANY)]
    await redis.sadd(keys.cancelled(LANE), *ids, other.id, "no id", b"\xff", "x" * 5000)  # type: ignore[misc]
    hold = await LaneHold.begin(redis)
    assert hold.held.cancelled == {batch.id}
    assert await redis.scard(keys.cancelled(LANE)) == 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("due_ms", value) for value in ("inf", "nan", "1e300", "x")),
        *(("shut_until_ms", value) for value in ("nan", "1e300")),
        *(("earliest_ms", value) for value in ("nan", "-inf", "1e300")),
        *((name, "x") for name in ("generation", "token", "owner", "open", "gate", "state")),
        ("state", "held"),
    ],
)
@pytest.mark.parametrize("while_held", [False, True], ids=["due", "held"])
async def test_fetches_are_served_with_any_values_in_the_hash_of_their_lane(
    fleet: Fleet, redis: Redis, field: str, value: str, *, while_held: bool
) -> None:
    """The lane is served after a submit and a sweep at the latest, and loses no fetch."""
    await fleet.submit([url("/x")])
    hold = await LaneHold.begin(redis, "owner") if while_held else None
    await ask(redis, "HSET", keys.lane(LANE), field, value)
    await fleet.submit([url("/y")])
    if hold is not None and await hold.renew():
        await hold.release(shut_until_ms=await now_ms(redis) + 1000)
    await lapse(redis)
    reclaimed, refused = await reclaim_overdue(redis)
    assert [LANE] == [due.lane for due, _ in reclaimed]
    assert refused == []
    heir = await LaneHold.begin(redis, "heir")
    assert sorted(paths((await heir.claim()).serialized)) == ["/x", "/y"]
    await heir.release()
    assert (await attention_ms(redis) or 0) < 1e14
    await redis.flushall()


@pytest.mark.parametrize("of", ["schedule", "hash", "both"])
@pytest.mark.parametrize("while_held", [False, True], ids=["due", "held"])
async def test_a_lane_that_is_lost_from_the_schedule_is_found(
    fleet: Fleet, redis: Redis, repair: KeyRepair, of: str, *, while_held: bool
) -> None:
    """The repair finds it by its keys, so it is due or watched again."""
    await fleet.submit([url("/x")])
    if while_held:
        await (await LaneHold.begin(redis, "dead")).claim()
    lost = {
        "schedule": [keys.ATTENTION],
        "hash": [keys.lane(LANE)],
        "both": [keys.ATTENTION, keys.lane(LANE)],
    }
    await redis.delete(*lost[of])
    await redis.set(keys.waiting_at("x" * 5000, "normal"), "not a lane's", px=60_000)
    await repair.find_lost_lanes()
    assert await attention_ms(redis) is not None
    await lapse(redis)
    await reclaim(redis)
    heir = await LaneHold.begin(redis, "heir")
    found = [*heir.held.orphans.serialized, *(await heir.claim()).serialized]
    assert paths(found) == ["/x"]
    await redis.flushall()


async def test_a_deadline_replaces_a_value_that_is_not_a_number(fleet: Fleet, redis: Redis) -> None:
    """Otherwise a closed lane would miss it."""
    await fleet.submit([url("/x")])
    await ask(redis, "HSET", keys.lane(LANE), "earliest_ms", "nan")
    await fleet.submit([{"url": url("/y"), "deadline_s": 60}])
    assert 0 < int((await fields(redis))["earliest_ms"]) - await now_ms(redis) <= 60_000


async def test_a_held_lane_without_a_place_in_the_schedule_gets_one_with_the_next_submit(
    fleet: Fleet, redis: Redis
) -> None:
    """Another program has created the lane, and no worker holds it."""
    await ask(redis, "HSET", keys.lane(LANE), "state", "held", "token", "1")
    await fleet.submit([url("/x")])
    assert await attention_ms(redis) is not None
    await lapse(redis)
    assert [LANE] == [due.lane for due, _ in await reclaim(redis)]
    assert await (await LaneHold.begin(redis)).finish() == ["/x"]


@pytest.mark.parametrize("score", ["inf", "1e300"])
async def test_a_retry_with_an_impossible_time_is_due_now(fleet: Fleet, redis: Redis, score: str) -> None:
    """It is due once the lane is released."""
    await fleet.submit([url("/x")])
    hold = await LaneHold.begin(redis)
    (element,) = (await hold.claim()).serialized
    await ask(redis, "HDEL", keys.claimed(LANE), element[:FETCH_ID_CHARS])
    await ask(redis, "ZADD", keys.later(LANE), score, element)
    due = await hold.release()
    assert due is not None
    assert due.due_in_ms == 0
    assert await (await LaneHold.begin(redis)).finish() == ["/x"]


@pytest.mark.parametrize("found", [b"9" * 18, b"x", b"1e300", b"-5", b"z" * 100_000, None])
async def test_the_turn_to_sweep_is_given_with_any_value_in_its_place(
    redis: Redis, found: bytes | None
) -> None:
    """A worker gets the turn once in the interval, and again in the next."""
    if found is None:
        await redis.rpush(keys.SWEPT, "x")  # type: ignore[misc]
    else:
        await redis.set(keys.SWEPT, found)
    assert [True, False] == [await take_turn(redis, keys.SWEPT, every_ms=60_000) for _ in range(2)]
    assert await take_turn(redis, keys.SWEPT, every_ms=0)
    assert 0 < await redis.pttl(keys.SWEPT) <= keys.TURN_TTL_MS
