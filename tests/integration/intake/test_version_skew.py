"""Messages that only a newer worker can read wait for it in a list of their own, and block no others."""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, suppress
from typing import Any

import msgspec
import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from fetchfleet.jobs import keys
from fetchfleet.jobs.client.submit import Submitter
from fetchfleet.jobs.scripts import runner
from fetchfleet.worker.intake.inbox import InboxReader, InboxTimings
from fetchfleet.worker.intake.inbox_orders import read_all
from fetchfleet.worker.observability.log import get_logger
from fetchfleet.worker.redis_support.health import RedisErrorReporter
from tests.support.inbox import as_taken, take_messages
from tests.support.lanes import ask, paths, url, waiting
from tests.support.log_lines import capture_logs

Open = Callable[..., InboxReader]
OLD, NEW = 1, 2


@pytest.fixture
async def worker(redis_url: str, redis: Redis) -> AsyncIterator[Open]:
    """Return a function that makes intakes, each of another worker that reads messages up to a version."""
    async with AsyncExitStack() as stack:

        def make(reads: int = OLD, unsupported_s: float = 0.01) -> InboxReader:
            log = get_logger()
            timings = InboxTimings(unsupported_s=unsupported_s, other_owner_s=0.01)
            made = InboxReader(
                *(redis_url, "w", Submitter(redis, nothing), RedisErrorReporter(log), log, timings),
                reads=reads,
            )
            stack.push_async_callback(made.aclose)
            return made

        yield make


async def nothing(_: Any) -> None:
    """Wake no lane."""


def newer(path: str, version: int = NEW) -> bytes:
    """Return a message of a newer version."""
    return msgspec.json.encode({"url": url(path), "v": version})


async def push(redis: Redis, *messages: str | bytes) -> None:
    """Append to the inbox."""
    await ask(redis, "RPUSH", keys.INBOX, *messages)


async def waiting_messages(redis: Redis) -> list[bytes]:
    """Return the messages that wait for a newer worker, each after its version."""
    return list(await ask(redis, "LRANGE", keys.NEWER, 0, -1))


async def lapse(redis: Redis) -> None:
    """End the lease of the worker that empties the inbox."""
    await ask(redis, "HSET", keys.INTAKE, "until_ms", 0)


async def drain(redis: Redis, intake: InboxReader) -> None:
    """Take messages until none is left."""
    while await ask(redis, "EXISTS", keys.INBOX, keys.TAKEN):
        await intake.step()


async def test_i27_a_message_for_a_newer_worker_waits_for_it(redis: Redis, worker: Open) -> None:
    """Its neighbours are enqueued, or dead letters, at once. It is logged once."""
    old, new = worker(), worker(NEW)
    later = newer("/3", NEW + 1)
    await push(redis, newer("/2"), url("/1"), later, "no URL")
    with capture_logs() as lines:
        await drain(redis, old)
        kept, taken = await waiting_messages(redis), paths(await waiting(redis))
        while len(await waiting(redis)) < 2:
            await new.step()

    assert [b"2 " + newer("/2"), b"3 " + later] == kept
    assert ["/1"] == taken
    assert ["/1", "/2"] == paths(await waiting(redis))
    assert [b"3 " + later] == await waiting_messages(redis)
    assert 1 == await redis.xlen(keys.DEAD)
    assert ["intake.newer", "intake.taken", "intake.refused", "intake.taken"] == [
        line["event"] for line in lines
    ]
    assert not await ask(redis, "EXISTS", keys.INBOX, keys.TAKEN)


async def test_messages_behind_many_for_newer_workers_do_not_wait(redis: Redis, worker: Open) -> None:
    """Each is read once: a message behind them is enqueued after one more take."""
    await push(redis, *(newer(f"/{i}") for i in range(1200)), url("/behind"))
    old = worker(unsupported_s=3600)
    for _ in range(3):
        await old.step()
    first = paths(await waiting(redis))
    await push(redis, url("/next"))
    for _ in range(4):  # up to three of them search the waiting messages once
        await old.step()

    assert ["/behind"] == first
    assert ["/behind", "/next"] == paths(await waiting(redis))
    assert sorted(b"2 " + newer(f"/{i}") for i in range(1200)) == sorted(await waiting_messages(redis))


async def test_messages_above_the_limits_become_dead_letters(
    redis: Redis, worker: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both limits apply. A foreign sum is counted again."""
    monkeypatch.setattr(keys, "NEWER_LENGTH", 2)
    old = worker()
    await push(redis, *(newer(f"/{i}") for i in range(3)), url("/1"))
    await drain(redis, old)
    monkeypatch.setattr(keys, "NEWER_LENGTH", 100)
    monkeypatch.setattr(keys, "NEWER_BYTES", 3 * len(newer("/0")) + 3 * len("2 "))
    await ask(redis, "HSET", keys.INTAKE, "newer_bytes", "1" * 300)
    await push(redis, *(newer(f"/{i}") for i in range(3, 6)))
    await drain(redis, old)

    assert [b"2 " + newer(f"/{i}") for i in (0, 1, 3)] == await waiting_messages(redis)
    letters = await ask(redis, "XRANGE", keys.DEAD, "-", "+")
    assert [newer(f"/{i}") for i in (2, 4, 5)] == [row[b"element"] for _, row in letters]
    assert ["/1"] == paths(await waiting(redis))


async def test_a_foreign_entry_among_waiting_messages_returns_to_the_inbox(
    redis: Redis, worker: Open
) -> None:
    """Without a version before it, it is read like any other message."""
    await ask(
        redis, "RPUSH", keys.NEWER, b"\xff", url("/1"), "1 " + url("/2"), b"999999999999999999999 x", ""
    )
    old = worker()
    while len(await waiting(redis)) < 2 or await ask(redis, "EXISTS", keys.INBOX, keys.TAKEN):
        await old.step()

    assert ["/1", "/2"] == paths(await waiting(redis))
    assert [b"999999999999999999999 x"] == await waiting_messages(redis)
    assert 2 == await redis.xlen(keys.DEAD)


async def test_a_newer_worker_completes_a_take_of_a_dead_older_one(redis: Redis, worker: Open) -> None:
    """Enqueued fetches are not enqueued again, though the newer worker reads more of the messages."""
    await push(redis, url("/1"), newer("/2"), url("/3"))
    old, new = worker(), worker(NEW)
    taken = await old.orders_of().read(await take_messages(old), OLD)
    assert taken is not None
    await old.orders_of().submit(taken)
    await lapse(redis)
    while len(await waiting(redis)) < 3:
        await new.step()

    assert ["/1", "/3", "/2"] == paths(await waiting(redis))
    assert 0 == await redis.xlen(keys.DEAD)


async def test_an_older_worker_leaves_a_take_of_a_dead_newer_one(redis: Redis, worker: Open) -> None:
    """It cannot know which fetches are enqueued."""
    await push(redis, url("/1"), newer("/2"))
    first, old, second = worker(NEW), worker(), worker(NEW)
    begun = await take_messages(first)
    await first.orders_of().submit(as_taken(begun, reads=NEW))
    await lapse(redis)
    await old.step()
    taken = await ask(redis, "LRANGE", keys.TAKEN, 0, -1)
    await drain(redis, second)

    assert begun.messages == taken
    assert ["/1", "/2"] == paths(await waiting(redis))
    assert 0 == await redis.xlen(keys.DEAD)


async def test_a_worker_that_was_away_too_long_puts_nothing_aside(redis: Redis, worker: Open) -> None:
    """Another worker has the messages."""
    await push(redis, newer("/1"))
    one, two = worker(), worker()
    found = await take_messages(one)
    await lapse(redis)
    await two.take()

    assert not await one.orders_of().defer_unsupported(found.batch_id, read_all(found.messages))
    assert [] == await waiting_messages(redis)
    await drain(redis, two)
    assert [b"2 " + newer("/1")] == await waiting_messages(redis)


@pytest.mark.parametrize("lost", ["the call", "the answer"])
async def test_an_outage_while_putting_aside_costs_no_message(
    redis: Redis, worker: Open, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    """It holds with or without the effect of the call."""
    really, faults = runner.run, iter([RedisConnectionError("gone")])

    async def run(client: Redis, name: str, *how: Any) -> Any:
        fault = next(faults, None) if name == "inbox_defer" else None
        reply = await really(client, name, *how) if lost == "the answer" or not fault else None
        if fault:
            raise fault
        return reply

    monkeypatch.setattr(runner, "run", run)
    await push(redis, newer("/2"), url("/1"), newer("/3"))
    old, new = worker(), worker(NEW)
    while await ask(redis, "EXISTS", keys.INBOX, keys.TAKEN):
        with suppress(RedisConnectionError):
            await old.step()
    kept = await waiting_messages(redis)
    while len(await waiting(redis)) < 3:
        await new.step()

    assert [b"2 " + newer("/2"), b"2 " + newer("/3")] == kept
    assert ["/1", "/2", "/3"] == paths(await waiting(redis))
