"""`Fleet.each`: every result reaches the handler at least once, whatever dies."""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE
from collections import Counter
from collections.abc import Awaitable, Callable

import pytest
from redis.asyncio import Redis

from fetchfleet import Fleet, Result, RoleError
from fetchfleet.jobs import keys
from fetchfleet.jobs.client import consumer
from fetchfleet.jobs.contract.result import decode_result
from fetchfleet.jobs.contract.webhooks import webhook_batch_id
from fetchfleet.jobs.redis_connection import connect
from fetchfleet.worker.util import aio
from tests.support.lanes import LaneHold, url
from tests.support.own_redis import own_redis
from tests.support.waiting import wait_until

GROUP = "billing"
SHORT_S = 0.3

PROGRAM = """
import asyncio, sys
from fetchfleet import Fleet

async def handle(result):
    print(result.id, flush=True)
    if int(result.id[-8:], 16) % 3 == 2:
        await asyncio.Event().wait()

async def main():
    async with Fleet(sys.argv[1]) as fleet:
        await fleet.each(handle, group="billing", concurrency=4)

asyncio.run(main())
"""
"""A consumer whose handler never returns for every third result."""


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let handlers be called again at once."""
    monkeypatch.setattr(consumer, "RETRY_PAUSE_S", 0.001)
    monkeypatch.setattr(consumer, "CLAIM_EVERY_S", 0.05)


async def finished(fleet: Fleet, redis: Redis, count: int, batch_id: str | None = None) -> list[str]:
    """Return the IDs of fetches that have a result."""
    batch = await fleet.submit([url(f"/{place}") for place in range(count)], batch_id=batch_id)
    await (await LaneHold.begin(redis)).finish(count)
    return batch.ids


async def pending(redis: Redis) -> int:
    """Return the number of results that the group has not acknowledged."""
    return int((await redis.xpending(keys.ALL_RESULTS, GROUP))["pending"])


async def unacknowledged(redis: Redis) -> set[str]:
    """Return the IDs of fetches whose results the group has not acknowledged, or not read yet."""
    [group] = await redis.xinfo_groups(keys.ALL_RESULTS)
    rows = await redis.xpending_range(keys.ALL_RESULTS, GROUP, "-", "+", 100)
    pending_ids = {row["message_id"] for row in rows}
    unread = await redis.xrange(keys.ALL_RESULTS, min=b"(" + group["last-delivered-id"])
    entries = [entry for entry in await redis.xrange(keys.ALL_RESULTS) if entry[0] in pending_ids]
    return {decode_result(fields[b"r"]).id for _, fields in entries + unread}


async def run_until(
    work: Awaitable[None], predicate: Callable[[], object], what: str, *, ends: bool = False
) -> None:
    """Run a consumer until the predicate is true, then cancel it."""
    task = asyncio.ensure_future(work)
    try:
        await wait_until(lambda: predicate() or task.done(), what, 30.0)
        assert ends or not task.done(), task.exception()
    finally:
        await aio.end(task)


async def test_every_result_reaches_the_handler_and_is_acknowledged(fleet: Fleet, redis: Redis) -> None:
    """A new group begins with the oldest result. Results that arrive later follow."""
    before, seen = await finished(fleet, redis, 20), list[Result]()

    async def handle(result: Result) -> None:
        seen.append(result)

    task = asyncio.create_task(fleet.each(handle, group=GROUP))
    await wait_until(lambda: len(seen) == 20, "the earlier results")
    after = await finished(fleet, redis, 5)
    await wait_until(lambda: len(seen) == 25, "the later results")
    await wait_until(lambda: acknowledged(redis), "the acknowledgements")
    await aio.end(task)

    assert Counter(before + after) == Counter(result.id for result in seen)


async def acknowledged(redis: Redis) -> bool:
    return await pending(redis) == 0


async def test_concurrency_bounds_the_handlers_at_a_time(fleet: Fleet, redis: Redis) -> None:
    """A slow handler delays only its own slot."""
    await finished(fleet, redis, 12)
    running, most, seen, slow = 0, 0, 0, asyncio.Event()

    async def handle(result: Result) -> None:
        nonlocal running, most, seen
        running += 1
        most = max(most, running)
        if result.id.endswith("0"):
            await slow.wait()
        await asyncio.sleep(0)
        running -= 1
        seen += 1

    await run_until(fleet.each(handle, group=GROUP, concurrency=3), lambda: seen >= 11, "the others")

    assert (most, seen) == (3, 11)
    assert await pending(redis) == 1


async def test_a_consumer_that_is_killed_loses_no_result(fleet: Fleet, redis: Redis, redis_url: str) -> None:
    """Another one handles the results that the dead one had not acknowledged."""
    ids = await finished(fleet, redis, 30)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", PROGRAM, redis_url), stdout=PIPE, env=os.environ
    )
    assert process.stdout is not None
    handled = [(await process.stdout.readline()).decode().strip() for _ in range(8)]
    process.send_signal(signal.SIGKILL)
    handled += (await process.stdout.read()).decode().split()
    await process.wait()
    left = await unacknowledged(redis)
    seen: list[str] = []

    async def handle(result: Result) -> None:
        seen.append(result.id)

    await run_until(
        fleet.each(handle, group=GROUP, claim_after_s=SHORT_S), lambda: left <= set(seen), "every result"
    )
    assert await acknowledged(redis)
    stuck = {of for of in handled if int(of[-8:], 16) % 3 == 2}
    assert stuck
    assert stuck <= left
    assert set(ids) == set(handled) | left
    assert Counter(left) == Counter(seen)


async def test_a_failing_handler_is_called_again(fleet: Fleet, redis: Redis) -> None:
    """After `attempts` failures, on_failure gets the result, which is then acknowledged."""
    ids, calls, failures = await finished(fleet, redis, 3), Counter[str](), dict[str, str]()

    async def handle(result: Result) -> None:
        calls[result.id] += 1
        if result.id == ids[0] and calls[result.id] < 3:
            raise ValueError("not yet")
        if result.id == ids[1]:
            raise ValueError("never")

    async def on_failure(result: Result, error: Exception) -> None:
        failures[result.id] = str(error)

    work = fleet.each(handle, group=GROUP, attempts=3, on_failure=on_failure)
    await run_until(work, lambda: failures and sum(calls.values()) == 7, "the failure")

    assert calls == {ids[0]: 3, ids[1]: 3, ids[2]: 1}
    assert failures == {ids[1]: "never"}
    assert await acknowledged(redis)


async def test_a_handler_that_awaits_a_cancelled_task_has_failed(fleet: Fleet, redis: Redis) -> None:
    """The call goes on: such a cancellation is not one of the call."""
    ids, failures, seen = await finished(fleet, redis, 3), list[str](), list[str]()

    async def handle(result: Result) -> None:
        if result.id == ids[0]:
            inner = asyncio.create_task(asyncio.sleep(60))
            inner.cancel()
            await inner
        seen.append(result.id)

    async def on_failure(result: Result, error: Exception) -> None:
        failures.append(f"{result.id} {error}")

    work = fleet.each(handle, group=GROUP, concurrency=1, attempts=2, on_failure=on_failure)
    await run_until(work, lambda: len(seen) == 2, "the other results")

    assert seen == ids[1:]
    assert failures == [f"{ids[0]} the function waited for a task or a future that was cancelled"]


async def test_without_on_failure_a_result_stays_pending_and_is_handed_over_again(
    fleet: Fleet, redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """The error is logged with the ID of the fetch. Other results go on."""
    ids, calls = await finished(fleet, redis, 2), Counter[str]()

    async def handle(result: Result) -> None:
        calls[result.id] += 1
        if result.id == ids[0] and calls[ids[0]] <= 2:
            raise ValueError("down")

    work = fleet.each(handle, group=GROUP, attempts=2, claim_after_s=SHORT_S)
    await run_until(work, lambda: calls[ids[0]] == 3, "another call")

    assert calls == {ids[0]: 3, ids[1]: 1}
    [record] = [record for record in caplog.records if record.name == "fetchfleet"]
    assert (record.levelname, ids[0] in record.getMessage()) == ("ERROR", True)


async def test_cancellation_stops_the_handlers_and_leaves_their_results_pending(
    fleet: Fleet, redis: Redis
) -> None:
    """No task is left; the next call gets the results."""
    ids, begun, ended = await finished(fleet, redis, 4), list[str](), list[str]()

    async def never(result: Result) -> None:
        begun.append(result.id)
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(result.id)

    await run_until(fleet.each(never, group=GROUP, concurrency=2), lambda: len(begun) == 2, "two handlers")
    assert (ended, await pending(redis)) == (begun, 2)

    seen: list[str] = []

    async def handle(result: Result) -> None:
        seen.append(result.id)

    await run_until(
        fleet.each(handle, group=GROUP, claim_after_s=SHORT_S), lambda: len(seen) == 4, "every result"
    )
    assert sorted(seen) == sorted(ids)


async def test_an_error_of_on_failure_ends_the_call(fleet: Fleet, redis: Redis) -> None:
    """It is raised as it is, and the result stays pending."""
    await finished(fleet, redis, 1)

    async def handle(_: Result) -> None:
        raise ValueError("no")

    async def on_failure(_: Result, error: Exception) -> None:
        raise OSError("disk") from error

    with pytest.raises(OSError, match="disk"):
        await fleet.each(handle, group=GROUP, attempts=1, on_failure=on_failure)
    assert await pending(redis) == 1


async def test_webhooks_and_foreign_records_are_skipped(fleet: Fleet, redis: Redis) -> None:
    """They are acknowledged without a call."""
    await finished(fleet, redis, 1, webhook_batch_id("0" * 16))
    await redis.xadd(keys.ALL_RESULTS, {"other": b"\xff"})
    [mine] = await finished(fleet, redis, 1)
    seen: list[str] = []

    async def handle(result: Result) -> None:
        seen.append(result.id)

    await run_until(fleet.each(handle, group=GROUP), lambda: seen, "the result")
    assert seen == [mine]


async def test_a_consumer_outlives_a_restart_and_a_loss_of_redis() -> None:
    """It waits while Redis is away. If the group is gone, it creates it again."""
    seen: list[str] = []

    async def handle(result: Result) -> None:
        seen.append(result.id)

    with own_redis() as server:
        async with Fleet(server.url, warn=lambda _: None) as fleet, connect(server.url) as redis:
            first = await finished(fleet, redis, 2)
            task = asyncio.create_task(fleet.each(handle, group=GROUP, claim_after_s=SHORT_S))
            await wait_until(lambda: len(seen) == 2, "the first results")
            await asyncio.to_thread(server.kill)
            server.start()
            second = await finished(fleet, redis, 2)
            await wait_until(lambda: set(second) <= set(seen), "those after the restart", 30.0)
            await redis.flushall()
            third = await finished(fleet, redis, 2)
            await wait_until(lambda: set(third) <= set(seen), "those after the loss", 30.0)
            await aio.end(task)
            await redis.connection_pool.aclose()

    assert {*first, *second, *third} == set(seen)


@pytest.mark.parametrize(
    "wrong", [{"group": ""}, {"concurrency": 0}, {"attempts": 0}, {"claim_after_s": 0.0}], ids=str
)
async def test_a_wrong_argument_is_named(fleet: Fleet, wrong: dict[str, object]) -> None:
    """The error names it before Redis is called."""

    async def handle(_: Result) -> None:
        raise AssertionError

    with pytest.raises(ValueError, match=next(iter(wrong))):
        await fleet.each(handle, **{"group": GROUP, **wrong})  # type: ignore[arg-type]


async def test_a_producer_with_an_inbox_may_not_read_all_results(redis_url: str) -> None:
    """Its Redis user may read its own batches only."""

    async def handle(_: Result) -> None:
        raise AssertionError

    async with Fleet(redis_url, via="inbox", inbox="billing") as fleet:
        with pytest.raises(RoleError, match="read all results"):
            await fleet.each(handle, group=GROUP)
