"""Fencing tokens and counters, with any values of another program in their place."""

from typing import Any

import pytest
from redis.asyncio import Redis

from fetchfleet import Fleet
from fetchfleet.jobs import keys
from fetchfleet.worker.observability.log import get_logger
from fetchfleet.worker.redis_support.key_repair import KeyRepair
from tests.support.lanes import LANE, LEASE_MS, LaneHold, ask, backlog, fields, now_ms, stored, url
from tests.support.log_lines import capture_logs

LIMIT = 2**53
YEAR_US = 366 * 24 * 3600 * 10**6


@pytest.mark.parametrize(
    ("serial", "token"),
    [
        (990_000_000_000_000_000, None),
        (LIMIT, LIMIT - 5),
        (LIMIT - 1, 4 * 10**15),
        (-(10**16), 10**18),
        (-(10**17), -7),
        (10**18 - 1, "x"),
        (3 * 10**15, "1e300"),
    ],
)
async def test_tokens_grow_for_any_serial(fleet: Fleet, redis: Redis, serial: int, token: Any) -> None:
    """No token is issued twice or too large for a double, and the serial is repaired and logged."""
    await fleet.submit([url("/1")])
    await redis.set(keys.SERIAL, serial)
    if token is not None:
        await ask(redis, "HSET", keys.lane(LANE), "generation", token)
    given = [int(token)] if isinstance(token, int) and 0 < token < LIMIT // 2 else []
    for _ in range(3):
        held = await LaneHold.begin(redis) if isinstance(token, int | None) else await taken(redis)
        token = 0
        given.append(held.held.token)
        await held.release()
        given.append(int((await fields(redis))["generation"]))
    assert given == sorted(set(given))
    assert given[-1] < LIMIT + 10
    repair = KeyRepair(redis, LEASE_MS, lambda _: None, get_logger())
    with capture_logs() as lines:
        await repair.quarantine(keys.FIXED)
    assert [line["key"] for line in lines] == [keys.SERIAL]
    await (await LaneHold.begin(redis)).release()
    now_us = await now_ms(redis) * 1000
    assert abs(int(await redis.get(keys.SERIAL) or 0) - now_us) < 60 * 10**6
    assert int((await fields(redis))["generation"]) > given[-1]


async def taken(redis: Redis) -> LaneHold:
    """Return the lane, acquired although its generation is not a number."""
    await ask(redis, "HSET", keys.lane(LANE), "generation", 1)
    return await LaneHold.begin(redis)


async def test_a_serial_a_little_ahead_of_the_clock_is_kept(fleet: Fleet, redis: Redis) -> None:
    """The serial is ahead after the clock was set back."""
    ahead = await now_ms(redis) * 1000 + YEAR_US // 2
    await redis.set(keys.SERIAL, ahead)
    await fleet.submit([url("/1")])
    hold = await LaneHold.begin(redis)
    assert hold.held.token == ahead + 2
    assert await KeyRepair(redis, LEASE_MS, lambda _: None, get_logger()).quarantine(keys.FIXED) == []
    await hold.release()


@pytest.mark.parametrize("count", [-(10**17), LIMIT, 10**17])
async def test_an_impossible_backlog_is_counted_again(fleet: Fleet, redis: Redis, count: int) -> None:
    """The contents of the lanes are counted."""
    await fleet.submit([url("/1"), url("/2")])
    await redis.set(keys.BACKLOG, count)
    await KeyRepair(redis, LEASE_MS, lambda _: None, get_logger()).quarantine(keys.FIXED)
    assert await backlog(redis) == 2


@pytest.mark.parametrize("value", ["x", "nan", "-1e300", "1.5"])
@pytest.mark.parametrize("name", ["total", "done", "bytes", "open"])
async def test_counters_of_other_programs_stop_nothing(
    fleet: Fleet, redis: Redis, name: str, value: str
) -> None:
    """A chunk is accepted and a fetch is settled, with a counter that is not a number."""
    batch = await fleet.submit(url(f"/{number}") for number in range(2))
    hold = await LaneHold.begin(redis)
    await ask(redis, "HSET", keys.lane(LANE) if name == "open" else keys.batch(batch.id), name, value)
    await fleet.submit([url("/more")])
    for element in (await hold.claim()).serialized:
        assert await hold.settle(stored(element))
    assert await redis.xlen(keys.ALL_RESULTS) == 3
    await hold.release()
    assert (await fields(redis))["state"] == "idle"
