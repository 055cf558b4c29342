"""The Lua scripts run on any Redis, also one that has dropped them."""

import pytest
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from fetchfleet.jobs import keys
from fetchfleet.jobs.scripts import runner
from tests.support.lanes import LANE, ask, attention_ms, lapse, now_ms
from tests.support.script_calls import ADOPT, RECLAIM, STALE, WRONG_TYPE


@pytest.mark.parametrize("script", runner.scripts())
async def test_redis_compiles_every_script(redis: Redis, script: str) -> None:
    """No script has an error that Redis finds when it loads it."""
    assert await redis.script_load(runner.source_of(script))


async def test_run_sends_a_forgotten_script_again(redis: Redis) -> None:
    """SCRIPT FLUSH, a restart or a failover costs one more round trip."""
    await redis.script_flush()
    assert await runner.run(redis, *ADOPT) == STALE
    await redis.script_flush()
    assert await runner.run(redis, *ADOPT) == STALE


async def test_run_needs_one_round_trip_for_a_known_script(redis: Redis) -> None:
    """The source is sent once."""
    await redis.script_flush()
    await runner.run(redis, *ADOPT)
    await ask(redis, "CONFIG", "RESETSTAT")
    await runner.run(redis, *ADOPT)
    assert "cmdstat_eval" not in await redis.info("commandstats")


async def test_run_many_sends_forgotten_scripts_again(redis: Redis) -> None:
    """Redis knew none of the scripts, and every call gets its reply."""
    await redis.script_flush()
    assert await runner.run_many(redis, [ADOPT, RECLAIM, ADOPT]) == [STALE, [], STALE]


async def test_run_many_keeps_the_order_when_only_some_are_forgotten(redis: Redis) -> None:
    """Each reply has the position of its call."""
    await redis.script_flush()
    await runner.run(redis, *RECLAIM)
    assert await runner.run_many(redis, [RECLAIM, ADOPT, RECLAIM]) == [[], STALE, []]


async def test_run_many_returns_a_refused_call_as_an_exception(redis: Redis) -> None:
    """The other calls keep their replies."""
    await lapse(redis)
    first, wrong, last = await runner.run_many(redis, [ADOPT, WRONG_TYPE, RECLAIM])
    assert (first, last) == (STALE, [])
    assert isinstance(wrong, ResponseError)


async def test_scripts_read_the_time_from_redis(redis: Redis) -> None:
    """A lane woken by a script is due by Redis's clock."""
    before_ms = await now_ms(redis)
    await ask(redis, "HSET", keys.lane(LANE), "state", "scheduled")
    await lapse(redis)
    await runner.run(redis, *RECLAIM)
    due_ms = await attention_ms(redis)
    assert due_ms is not None
    assert before_ms <= due_ms - 1000 <= await now_ms(redis)
