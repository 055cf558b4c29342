"""What only a newer worker can read waits in the inbox for one, and holds up nothing else.

A worker knows the version that `fetchfleet.jobs.contract.messages.MESSAGE_VERSION` says at the moment.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, suppress
from typing import Any

import msgspec
import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from structlog.testing import capture_logs

from fetchfleet.jobs import keys
from fetchfleet.jobs.client.submit import Submitter
from fetchfleet.jobs.contract import messages as messages_module
from fetchfleet.jobs.scripts import runner
from fetchfleet.worker.intake.inbox import InboxReader, InboxTimings, read_all
from fetchfleet.worker.observability.log import get_logger
from fetchfleet.worker.redis_support.health import RedisErrorReporter
from tests.support.calls import take_messages
from tests.support.lanes import ask, paths, url, waiting

Open = Callable[..., InboxReader]
Know = Callable[[int], None]
OLD, NEW = 1, 2


@pytest.fixture
async def worker(redis_url: str, redis: Redis) -> AsyncIterator[Open]:
    """Makes intakes, each of a worker of its own, that make way for a moment only."""
    async with AsyncExitStack() as stack:

        def make(unsupported_s: float = 0.01) -> InboxReader:
            log = get_logger()
            timings = InboxTimings(unsupported_s=unsupported_s, other_owner_s=0.01)
            made = InboxReader(
                redis_url, "w", Submitter(redis, nothing), RedisErrorReporter(log), log, timings
            )
            stack.push_async_callback(made.aclose)
            return made

        yield make


@pytest.fixture
def know(monkeypatch: pytest.MonkeyPatch) -> Know:
    """From here on workers know messages up to this version."""
    return lambda version: monkeypatch.setattr(messages_module, "MESSAGE_VERSION", version)


async def nothing(_: Any) -> None:
    """No lane is woken."""


def newer(path: str) -> bytes:
    """A message that says it is of version 2."""
    return msgspec.json.encode({"url": url(path), "v": NEW})


async def push(redis: Redis, *messages: str | bytes) -> None:
    """At the end of the inbox."""
    await ask(redis, "RPUSH", keys.INBOX, *messages)


async def inbox(redis: Redis) -> list[bytes]:
    """What is in it."""
    return list(await ask(redis, "LRANGE", keys.INBOX, 0, -1))


async def lapse(redis: Redis) -> None:
    """The worker that empties the inbox has died."""
    await ask(redis, "HSET", keys.INTAKE, "until_ms", 0)


async def drain(redis: Redis, intake: InboxReader) -> None:
    """Take until nothing is left."""
    while await ask(redis, "EXISTS", keys.INBOX, keys.TAKEN):
        await intake.step()


async def test_i27_a_message_for_a_newer_worker_waits_until_one_takes_it(
    redis: Redis, worker: Open, know: Know
) -> None:
    """Its neighbours are in, or dead letters, at once; it is told of once, and the inbox is let go of."""
    old, new = worker(), worker()
    many = msgspec.json.encode({"fetches": "in a form of later", "v": NEW})
    await push(redis, newer("/2"), url("/1"), many, "no URL")
    with capture_logs() as lines:
        for _ in range(3):
            await old.step()
    kept, taken = await inbox(redis), paths(await waiting(redis))
    await ask(redis, "LREM", keys.INBOX, 1, many)
    know(NEW)
    await new.step()

    assert [newer("/2"), many] == kept
    assert ["/1"] == taken
    assert ["/1", "/2"] == paths(await waiting(redis))
    assert 1 == await redis.xlen(keys.DEAD)
    assert ["intake.newer", "intake.taken", "intake.refused"] == [line["event"] for line in lines]
    assert not await ask(redis, "EXISTS", keys.INBOX, keys.TAKEN)


async def test_messages_behind_many_for_newer_workers_do_not_wait(redis: Redis, worker: Open) -> None:
    """A worker makes way only when it has seen them all, or ten thousand."""
    await push(redis, *(newer(f"/{i}") for i in range(1200)), url("/behind"))
    old = worker(unsupported_s=3600)
    for _ in range(3):
        await old.step()
    left = await inbox(redis)
    await redis.delete(keys.INBOX)

    assert ["/behind"] == paths(await waiting(redis))
    assert sorted(newer(f"/{i}") for i in range(1200)) == sorted(left)


async def test_an_old_worker_that_dies_half_way_leaves_what_a_newer_one_can_end(
    redis: Redis, worker: Open, know: Know
) -> None:
    """What was enqueued is not enqueued again, though the newer worker reads more of the messages."""
    await push(redis, url("/1"), newer("/2"), url("/3"))
    old, new = worker(), worker()
    batch, messages = await take_messages(old)
    read = read_all(messages)
    assert await old.return_unsupported(batch, read)
    await old.submit(batch, read.orders)
    await lapse(redis)
    know(NEW)
    await drain(redis, new)

    assert ["/1", "/3", "/2"] == paths(await waiting(redis))
    assert 0 == await redis.xlen(keys.DEAD)


async def test_what_a_newer_worker_has_begun_an_old_one_leaves_to_newer_ones(
    redis: Redis, worker: Open, know: Know
) -> None:
    """It died after the enqueuing; the old worker cannot know what of it is in."""
    await push(redis, url("/1"), newer("/2"))
    first, old, second = worker(), worker(), worker()
    know(NEW)
    batch, messages = await take_messages(first)
    await first.submit(batch, read_all(messages).orders)
    await lapse(redis)
    know(OLD)
    await old.step()
    taken = await ask(redis, "LRANGE", keys.TAKEN, 0, -1)
    know(NEW)
    await drain(redis, second)

    assert messages == taken
    assert ["/1", "/2"] == paths(await waiting(redis))
    assert 0 == await redis.xlen(keys.DEAD)


async def test_a_worker_that_was_away_too_long_hands_nothing_back(redis: Redis, worker: Open) -> None:
    """The messages are in another's hands."""
    await push(redis, newer("/1"))
    one, two = worker(), worker()
    batch, messages = await take_messages(one)
    await lapse(redis)
    await two.take()

    assert not await one.return_unsupported(batch, read_all(messages))
    assert [] == await inbox(redis)
    await two.enqueue(batch, messages)
    assert messages == await inbox(redis)
    await redis.delete(keys.INBOX)


@pytest.mark.parametrize("lost", ["the call", "the answer"])
async def test_a_redis_that_goes_away_at_the_handing_back_costs_no_message(
    redis: Redis, worker: Open, know: Know, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    """Whether or not it did it before it went."""
    really, faults = runner.run, iter([RedisConnectionError("gone")])

    async def run(client: Redis, name: str, *how: Any) -> Any:
        fault = next(faults, None) if name == "inbox_return" else None
        reply = await really(client, name, *how) if lost == "the answer" or not fault else None
        if fault:
            raise fault
        return reply

    monkeypatch.setattr(runner, "run", run)
    await push(redis, newer("/2"), url("/1"), newer("/3"))
    old, new = worker(), worker()
    for _ in range(3):
        with suppress(RedisConnectionError):
            await old.step()
    kept = await inbox(redis)
    know(NEW)
    await drain(redis, new)

    assert [newer("/2"), newer("/3")] == kept
    assert ["/1", "/2", "/3"] == paths(await waiting(redis))
