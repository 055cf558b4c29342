"""Script calls of many lanes share a round trip, and nothing else."""

import asyncio

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from fetchfleet.jobs.scripts import runner
from fetchfleet.jobs.scripts.runner import Call
from fetchfleet.worker.redis_support.script_batches import ScriptBatcher
from tests.support.lanes import attention_ms, lapse
from tests.support.script_calls import ADOPT, RECLAIM, STALE, WRONG_TYPE


@pytest.fixture
def trips(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the number of calls in each round trip."""
    made: list[int] = []
    run_many = runner.run_many

    async def counted(redis: Redis, calls: list[Call]) -> list[object]:
        made.append(len(calls))
        return await run_many(redis, calls)

    monkeypatch.setattr(runner, "run_many", counted)
    return made


async def test_calls_of_one_loop_iteration_share_a_round_trip(redis: Redis, trips: list[int]) -> None:
    """Each gets its own reply. A later call is sent separately."""
    batcher = ScriptBatcher(redis)
    await lapse(redis)

    adopted, scheduled = await asyncio.gather(batcher.run(*ADOPT), batcher.run(*RECLAIM))
    assert (adopted, scheduled) == (STALE, [])
    assert await batcher.run(*ADOPT) == STALE

    assert trips == [2, 1]


async def test_a_refusal_reaches_its_own_caller_only(redis: Redis) -> None:
    """The others get their replies."""
    batcher = ScriptBatcher(redis)
    await lapse(redis)

    found = await asyncio.gather(batcher.run(*WRONG_TYPE), batcher.run(*ADOPT), return_exceptions=True)

    assert [type(one) for one in found] == [ResponseError, int]
    await batcher.run(*RECLAIM)


async def test_a_connection_error_reaches_every_caller() -> None:
    """No caller waits for a reply that cannot come."""
    gone = Redis.from_url("unix:///nowhere/redis.sock")
    batcher = ScriptBatcher(gone)

    found = await asyncio.gather(*(batcher.run(*ADOPT) for _ in range(3)), return_exceptions=True)

    assert [type(one) for one in found] == [RedisConnectionError] * 3
    await gone.aclose()


async def test_a_cancelled_caller_stops_neither_its_call_nor_others(redis: Redis) -> None:
    """Its call may still have its effect, as any call that was sent."""
    await lapse(redis)
    batcher = ScriptBatcher(redis)
    gives_up = asyncio.create_task(batcher.run(*RECLAIM))
    stays = asyncio.create_task(batcher.run(*ADOPT))
    await asyncio.sleep(0)
    gives_up.cancel()

    assert await stays == STALE

    assert gives_up.cancelled()
    assert await attention_ms(redis) is None, "nothing waits in the lane: the call took it out"


async def test_pending_calls_end_with_the_batcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """No caller waits for a Redis that does not answer, and no task is left."""
    asked = asyncio.Event()

    async def never(*_: object) -> None:
        asked.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(runner, "run_many", never)
    batcher = ScriptBatcher(Redis())
    waiting = asyncio.create_task(batcher.run(*ADOPT))
    await asked.wait()

    await batcher.aclose()

    await asyncio.wait([waiting])
    assert waiting.cancelled()
