"""Foreign values at the keys of a fleet are quarantined, reported, and not executed."""

import itertools
from pathlib import Path

import pytest
from redis.asyncio import Redis

from fetchfleet import Fleet, JobsError, KeyTypeConflictError
from fetchfleet.jobs import keys
from fetchfleet.worker.observability.log import get_logger
from fetchfleet.worker.redis_support.health import RedisErrorReporter
from fetchfleet.worker.redis_support.key_repair import KeyRepair, is_key_conflict
from fetchfleet.worker.scheduler.sweep import reclaim_overdue
from tests.support.conflicting_keys import TYPES, other_type, plant_value
from tests.support.lanes import (
    BATCH_ID,
    LANE,
    LEASE_MS,
    LaneHold,
    ask,
    attention_ms,
    backlog,
    lapse,
    open_in,
    paths,
    put,
    reclaim,
    state,
    url,
)
from tests.support.log_lines import capture_logs

EVERY = {**keys.FIXED, **keys.kinds_of_lane(LANE), **keys.kinds_of_batch(BATCH_ID)}
NO_COUNTS = ["abc", "", "1.5", "007", "1" * 30, "-"]


@pytest.fixture
def foreign(redis: Redis) -> KeyRepair:
    """Return the repair of a worker."""
    return KeyRepair(redis, LEASE_MS, RedisErrorReporter(get_logger()), get_logger())


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """Return the file that a pickle creates when it is loaded."""
    return tmp_path / "canary"


async def notes(redis: Redis) -> list[str]:
    """Return the note of each dead letter."""
    return [row.get(b"note", b"").decode() for _, row in await ask(redis, "XRANGE", keys.DEAD, "-", "+")]


async def test_i26_every_type_at_every_key_is_quarantined(
    redis: Redis, foreign: KeyRepair, canary: Path
) -> None:
    """Each value gets a dead letter and a log line and leaves its key. A value of the right type stays."""
    for kind, (key, wanted) in itertools.product(TYPES, EVERY.items()):
        await plant_value(redis, key, kind, canary)
        with capture_logs() as lines:
            await foreign.quarantine(EVERY)
        found = [line for line in lines if line["event"] == "redis.foreign" and line["key"] == key]
        assert bool(found) is (kind != wanted), (key, kind)
        expected = [f"{key} was a {kind}, not a {wanted}"] if kind != wanted and key != keys.DEAD else []
        assert [note for note in await notes(redis) if note.startswith(f"{key} ")] == expected
        assert await redis.type(key) in {wanted.encode(), b"none", b"string" if key == keys.BACKLOG else b""}
        await redis.flushall()
    assert not canary.exists()  # noqa: ASYNC240 - a test may wait


@pytest.mark.parametrize("key", [key for key, kind in keys.FIXED.items() if kind == "counter"])
async def test_i26_an_invalid_counter_is_quarantined(redis: Redis, foreign: KeyRepair, key: str) -> None:
    """The dead letter has the value. A valid counter stays."""
    for text in NO_COUNTS:
        await redis.set(key, text)
        assert [found.key for found in await foreign.quarantine(keys.FIXED)] == [key]
        assert await redis.get(key) in {None, b"0"}
    letters = await ask(redis, "XRANGE", keys.DEAD, "-", "+")
    assert [row[b"element"].decode() for _, row in letters] == NO_COUNTS
    for count in ("0", "-3", "1234567890123456"):
        await redis.set(key, count)
        assert await foreign.quarantine(keys.FIXED) == []


async def test_i26_fetches_whose_lane_was_overwritten_run(
    fleet: Fleet, redis: Redis, foreign: KeyRepair, canary: Path
) -> None:
    """The lane is created again with all its waiting fetches, and none is counted twice."""
    batch = await fleet.submit([url("/1"), url("/2"), url("/3")])
    await (await LaneHold.begin(redis)).claim(1)
    await plant_value(redis, keys.lane(LANE), "string", canary)
    await lapse(redis)
    reclaimed, broken = await reclaim_overdue(redis)
    assert reclaimed == []
    ((name, error),) = broken
    assert is_key_conflict(error)
    assert await foreign.repair(error, name)
    assert (await open_in(redis), await backlog(redis)) == (3, 3)
    ((wake, _),) = await reclaim(redis)
    assert wake.lane == LANE
    hold = await LaneHold.begin(redis, "heir")
    assert paths(hold.held.orphans.serialized) == ["/1"]
    await hold.release()
    assert await (await LaneHold.begin(redis, "last")).finish() == ["/1", "/2", "/3"]
    assert (await batch.counts()).ended
    assert await state(redis) == "idle"


async def test_i26_the_list_of_lanes_and_the_backlog_are_rebuilt(
    fleet: Fleet, redis: Redis, foreign: KeyRepair, canary: Path
) -> None:
    """They are rebuilt from the lanes themselves."""
    await fleet.submit([url("/1"), url("/2", "b.example")])
    await LaneHold.begin(redis)
    await plant_value(redis, keys.ATTENTION, "stream", canary)
    await plant_value(redis, keys.BACKLOG, "hash", canary)
    assert len(await foreign.quarantine(keys.FIXED)) == 2
    assert await attention_ms(redis) is not None
    assert await attention_ms(redis, "b.example") is not None
    assert await backlog(redis) == 2


async def test_i26_a_name_that_is_not_text_does_not_stop_the_sweep(fleet: Fleet, redis: Redis) -> None:
    """It is removed, and the lanes in need are woken."""
    await fleet.submit([url("/1")])
    await lapse(redis)
    await redis.zadd(keys.ATTENTION, {b"\x80\x04\xff": 0})
    assert [wake.lane for wake, _ in await reclaim(redis)] == [LANE]
    assert await redis.zcard(keys.ATTENTION) == 1


async def test_i26_a_foreign_value_for_one_lane_costs_no_other_its_lease(
    fleet: Fleet, redis: Redis, canary: Path
) -> None:
    """All leases are renewed in one call, which succeeds for the others."""
    await fleet.submit([url("/1"), url("/2", "b.example")])
    holds = [await LaneHold.begin(redis), await LaneHold.begin(redis, name="b.example")]
    await plant_value(redis, keys.lane(LANE), "list", canary)
    _, kept = await holds[0].store.renew([(hold.lane.name, hold.held.token) for hold in holds])
    assert kept == [False, True]
    await redis.flushall()


@pytest.mark.parametrize("where", ["returned", "high", "normal", "low"])
async def test_i26_a_claim_that_meets_a_foreign_value_loses_nothing(
    fleet: Fleet, redis: Redis, foreign: KeyRepair, canary: Path, where: str
) -> None:
    """It checks every queue before it claims. After the repair it returns the other fetches."""
    others = [name for name in ("returned", "high", "normal", "low") if name != where]
    await fleet.submit([url("/1")])
    hold = await LaneHold.begin(redis)
    elements = await ask(redis, "LRANGE", keys.waiting_at(LANE, "normal"), 0, -1)
    await redis.delete(keys.waiting_at(LANE, "normal"))
    await put(redis, *elements, where=others[0])
    await plant_value(redis, keys.waiting_at(LANE, where), "zset", canary)
    with pytest.raises(Exception, match="WRONGTYPE") as raised:
        await hold.claim()
    assert await foreign.repair(raised.value, LANE)
    assert await hold.finish() == ["/1"]


@pytest.mark.parametrize("turn", range(5))
async def test_i26_a_producer_that_meets_a_foreign_value_gets_an_error_and_enqueues_nothing(
    fleet: Fleet, redis: Redis, canary: Path, turn: int
) -> None:
    """It holds at any key of a list: the error names the key and the remedy."""
    mine = {**keys.kinds_of_batch(BATCH_ID), keys.key("k"): "string"}
    del mine[keys.results(BATCH_ID)]
    fixed = (keys.ATTENTION, keys.SERIAL, keys.BACKLOG, keys.BATCHES)
    mine |= {key: keys.FIXED[key] for key in fixed}
    mine |= {keys.lane(LANE): "hash", keys.waiting_at(LANE, "normal"): "list"}
    for key, wanted in mine.items():
        await plant_value(redis, key, other_type(wanted, turn), canary)
        before = await redis.keys("*")
        with pytest.raises(KeyTypeConflictError, match="RENAME or DEL") as raised:
            await fleet.submit([{"url": url("/1"), "key": "k"}], batch_id=BATCH_ID)
        assert isinstance(raised.value, JobsError)
        assert raised.value.key == key
        assert await redis.keys("*") == before
        await redis.flushall()
