"""The inbox: under any failure, each message is in its lane once, or a dead letter once."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, suppress
from typing import Any

import msgspec
import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from fetchfleet import Fleet
from fetchfleet.jobs import keys
from fetchfleet.jobs.client.submit import NO_LIMITS, Limits, Submitter
from fetchfleet.jobs.contract.entry import parse_entry
from fetchfleet.jobs.contract.fetch import MAX_FETCH_BYTES
from fetchfleet.jobs.contract.messages import MAX_INPUT_BYTES
from fetchfleet.jobs.notifications import LaneNotification
from fetchfleet.jobs.scripts import runner
from fetchfleet.jobs.scripts.inbox import InboxMessages, NoMessages, RefusedMessage
from fetchfleet.worker.intake import inbox as inbox_module
from fetchfleet.worker.intake import inbox_orders as module
from fetchfleet.worker.intake.inbox import InboxReader, InboxTimings
from fetchfleet.worker.observability.log import get_logger
from fetchfleet.worker.redis_support.health import RedisErrorReporter
from fetchfleet.worker.redis_support.key_repair import KeyRepair
from fetchfleet.worker.util import aio
from tests.support.inbox import as_taken, take_messages
from tests.support.lanes import BATCH_ID, LANE, LaneHold, ask, paths, url, waiting
from tests.support.log_lines import capture_logs
from tests.support.waiting import wait_until

OTHER_LANE = "b.example"
OTHER_ID = "fedcba9876543210"
NOBODYS = 0

Open = Callable[..., InboxReader]


class CrashError(Exception):
    """The death of the worker."""


async def nothing(_: Iterable[LaneNotification]) -> None:
    """Wake no lane."""


async def crash(_: Iterable[LaneNotification]) -> None:
    """Crash after a chunk was enqueued."""
    raise CrashError


@pytest.fixture
async def worker(redis_url: str, redis: Redis) -> AsyncIterator[Open]:
    """Return a function that makes intakes, each of another worker."""
    async with AsyncExitStack() as stack:

        def make(
            name: str = "one", notify: Any = nothing, limits: Limits = NO_LIMITS, lease_ms: int = 5000
        ) -> InboxReader:
            log, submitter = get_logger(), Submitter(redis, notify, limits)
            timings = InboxTimings(lease_ms=lease_ms, other_owner_s=0.01, full_s=0.01, failed_s=0.01)
            made = InboxReader(redis_url, name, submitter, RedisErrorReporter(log), log, timings)
            stack.push_async_callback(made.aclose)
            return made

        yield make


async def push(redis: Redis, *messages: str | bytes | dict[str, Any]) -> None:
    """Append to the inbox."""
    texts = [msgspec.json.encode(item) if isinstance(item, dict) else item for item in messages]
    await ask(redis, "RPUSH", keys.INBOX, *texts)


async def lapse(redis: Redis) -> None:
    """End the lease on the inbox."""
    await ask(redis, "HSET", keys.INTAKE, "until_ms", NOBODYS)


async def left(redis: Redis) -> int:
    """Return the number of messages that are not enqueued yet."""
    return int(await ask(redis, "LLEN", keys.INBOX)) + int(await ask(redis, "LLEN", keys.TAKEN))


async def empty(redis: Redis) -> bool:
    """Return whether every message is enqueued or a dead letter."""
    return await left(redis) == 0


async def drain(redis: Redis, intake: InboxReader) -> None:
    """Take messages until none is left."""
    while await left(redis):
        await intake.step()


async def running(redis: Redis, *intakes: InboxReader) -> None:
    """Run the intakes until no message is left."""
    loops = [asyncio.create_task(one.run()) for one in intakes]
    try:
        await wait_until(lambda: empty(redis), "an empty inbox", 60)
    finally:
        await aio.end(*loops)


async def dead(redis: Redis) -> list[tuple[str, str]]:
    """Return the note and the beginning of each dead letter."""
    rows = await ask(redis, "XRANGE", keys.DEAD, "-", "+")
    assert all((row[b"door"], row[b"reason"]) == (b"inbox", b"invalid") for _, row in rows)
    return [(row[b"note"].decode(), row[b"element"].decode()) for _, row in rows]


async def batches(redis: Redis) -> set[str]:
    """Return the batches of the waiting fetches."""
    return {parse_entry(element).batch_id for element in await waiting(redis)}


async def test_ten_thousand_messages_are_enqueued_each_once_and_in_their_order(
    redis: Redis, worker: Open
) -> None:
    """A take enqueues at most 500 messages, in any form, and each lane keeps the order of pushing."""
    for start in range(0, 10_000, 1000):
        texts = (url(f"/{i}", [LANE, OTHER_LANE][i % 2]) for i in range(start, start + 1000))
        await push(redis, *(text if i % 3 else {"url": text} for i, text in enumerate(texts)))
    await drain(redis, worker())

    assert [f"/{i}" for i in range(0, 10_000, 2)] == paths(await waiting(redis))
    assert [f"/{i}" for i in range(1, 10_000, 2)] == paths(await waiting(redis, lane=OTHER_LANE))
    assert len(await batches(redis)) >= 20
    assert [] == await dead(redis)


async def test_many_fetches_in_one_message_are_one_batch_with_their_neighbours(
    redis: Redis, worker: Open
) -> None:
    """The fetches of a message that names a batch go into that batch instead."""
    await push(redis, url("/0"), {"fetches": [url(f"/{i}") for i in range(1, 1001)]}, url("/1001"))
    await push(redis, {"fetches": []}, {"fetches": [url("/1002")], "batch": BATCH_ID})
    await drain(redis, worker())

    assert [f"/{i}" for i in range(1003)] == paths(await waiting(redis))
    assert 2 == len(await batches(redis))
    assert BATCH_ID in await batches(redis)


async def test_messages_of_a_dead_worker_are_taken_again_under_the_same_batch(
    redis: Redis, worker: Open
) -> None:
    """Others wait until the lease ends. The next one finds the same messages."""
    await push(redis, url("/1"), url("/2"))
    one, two = worker("one"), worker("two")
    taken = await one.take()
    await push(redis, url("/3"))

    assert await two.take() is NoMessages.OTHER_WORKER
    await lapse(redis)
    assert taken == await two.take()
    await drain(redis, two)
    assert ["/1", "/2", "/3"] == paths(await waiting(redis))


async def test_a_worker_that_dies_before_its_acknowledgement_enqueues_nothing_twice(
    redis: Redis, worker: Open
) -> None:
    """The next one repeats it without effect. A refused message is a dead letter once."""
    await push(redis, url("/1"), "no URL", {"fetches": [url("/2")], "batch": BATCH_ID})
    one, two = worker("one"), worker("two")
    taken = await take_messages(one)
    await one.orders_of().submit(as_taken(taken))
    await lapse(redis)
    await drain(redis, two)

    assert ["/1", "/2"] == paths(await waiting(redis))
    assert {taken.batch_id, BATCH_ID} == await batches(redis)
    assert ["no URL"] == [text for _, text in await dead(redis)]


async def test_a_message_is_continued_after_the_death_of_its_worker(redis: Redis, worker: Open) -> None:
    """A message becomes several chunks: enqueued ones stay, the rest follows."""
    await push(redis, {"fetches": [url(f"/{i}") for i in range(1700)]})
    with suppress(CrashError):
        await worker("one", crash).step()
    in_before = len(await waiting(redis))
    await lapse(redis)
    await drain(redis, worker("two"))

    assert 500 == in_before
    assert [f"/{i}" for i in range(1700)] == paths(await waiting(redis))


async def test_a_worker_that_was_away_too_long_changes_nothing(redis: Redis, worker: Open) -> None:
    """Its acknowledgement is refused: other messages are in their place by now."""
    one, two = worker("one"), worker("two")
    await push(redis, url("/1"))
    late = as_taken(await take_messages(one))
    late.refused.append(RefusedMessage("late", b"late"))
    await lapse(redis)
    await drain(redis, two)
    await push(redis, url("/2"))
    await two.take()
    await one.orders_of().submit(late)
    await one.orders_of().acknowledge(late)

    assert 1 == await left(redis)
    assert not await one.lease.renew()
    await drain(redis, two)
    assert ["/1", "/2"] == paths(await waiting(redis))
    assert [] == await dead(redis)


async def test_workers_that_take_the_inbox_from_each_other_lose_and_repeat_nothing(
    redis: Redis, worker: Open
) -> None:
    """Three of them, with leases that end at any moment and a steady flow of messages."""
    loops = [asyncio.create_task(worker(f"w{i}").run()) for i in range(3)]
    try:
        for start in range(0, 3000, 20):
            await push(redis, *(url(f"/{i}") for i in range(start, start + 20)))
            await lapse(redis)
        await wait_until(lambda: empty(redis), "an empty inbox", 60)
    finally:
        await aio.end(*loops)

    assert sorted(f"/{i}" for i in range(3000)) == sorted(paths(await waiting(redis)))
    assert [] == await dead(redis)


async def test_a_slow_worker_keeps_the_inbox(redis: Redis, worker: Open) -> None:
    """The lease is renewed while it enqueues."""
    resume, begun = asyncio.Event(), asyncio.Event()

    async def slow(_: Iterable[LaneNotification]) -> None:
        begun.set()
        await resume.wait()

    async def renewed() -> bool:
        return int(await ask(redis, "HGET", keys.INTAKE, "until_ms")) > first_until_ms

    await push(redis, url("/1"))
    taking = asyncio.create_task(worker("one", slow, lease_ms=3000).step())
    await begun.wait()
    first_until_ms = int(await ask(redis, "HGET", keys.INTAKE, "until_ms"))
    await wait_until(renewed, "a renewal")
    resume.set()
    await taking

    assert await empty(redis)


async def test_a_worker_whose_inbox_was_taken_over_stops_waiting_for_room(
    redis: Redis, fleet: Fleet, worker: Open
) -> None:
    """It leaves the messages to the present owner."""
    await fleet.submit([url("/before")])
    await push(redis, url("/1"))
    waits = asyncio.create_task(worker("one", limits=Limits(fleet=1), lease_ms=30).step())
    await wait_until(lambda: ask(redis, "EXISTS", keys.TAKEN), "the taking")
    await ask(redis, "HSET", keys.INTAKE, "token", "two")
    await waits

    assert 1 == await left(redis)
    await lapse(redis)
    await drain(redis, worker("three"))


async def test_no_message_expires_without_workers(redis: Redis, worker: Open) -> None:
    """The owner expires after an hour, half-enqueued messages do not."""
    await push(redis, url("/1"))
    one = worker()
    await one.take()
    while_taken_ms = await redis.pttl(keys.INTAKE)
    await redis.delete(keys.INTAKE)
    await push(redis, url("/2"))
    await drain(redis, one)

    assert -1 == while_taken_ms
    assert await redis.pttl(keys.INTAKE) > 0
    assert ["/1", "/2"] == paths(await waiting(redis))


async def test_an_oversized_message_becomes_a_truncated_dead_letter(redis: Redis, worker: Open) -> None:
    """Its neighbours are enqueued. One of exactly the largest size is read."""
    most = b'{"fetches":["' + url("/2").encode() + b'"' + b" " * MAX_INPUT_BYTES
    await push(redis, url("/1"), b"x" * (MAX_INPUT_BYTES + 1), most[: MAX_INPUT_BYTES - 2] + b"]}", url("/3"))
    await drain(redis, worker())

    assert ["/1", "/2", "/3"] == paths(await waiting(redis))
    [(note, element)] = await dead(redis)
    assert ("x" * 1000, f"the message has {MAX_INPUT_BYTES + 1} bytes") == (element, note.split(";")[0])


async def test_each_invalid_message_is_one_dead_letter_with_its_reason(redis: Redis, worker: Open) -> None:
    """The valid ones around it are enqueued."""
    nested = b'{"url":"http://a.example/","meta":' + b"[" * 985 + b"]" * 985 + b"}"
    large = {"fetches": [url("/no"), {"url": url("/no"), "method": "POST", "meta": "x" * MAX_FETCH_BYTES}]}
    bad: list[str | bytes] = ["", "ftp://a/", "{", '{"fetches":["x"]}', nested]
    with capture_logs() as lines:
        for message in bad:
            await push(redis, url("/ok"), message)
        await push(redis, large, url("/ok"))
        await drain(redis, worker())

    found = await dead(redis)
    assert ["/ok"] * 6 == paths(await waiting(redis))
    assert [text for text in bad if isinstance(text, str)] == [text for _, text in found[:4]]
    assert ["url", "url", "Input data was truncated", "item 0", "meta", "item 1"] == [
        note.split(":")[0] for note, _ in found
    ]
    assert 6 == len([line for line in lines if line["event"] == "intake.refused"])


async def test_a_batch_pushed_twice_is_enqueued_once(redis: Redis, worker: Open) -> None:
    """Together or later, before its end."""
    again = {"batch": BATCH_ID, "fetches": [url(f"/{i}") for i in range(600)]}
    await push(redis, again, again)
    one = worker()
    await drain(redis, one)
    await push(redis, again)
    await drain(redis, one)

    assert [f"/{i}" for i in range(600)] == paths(await waiting(redis))
    assert [] == await dead(redis)


async def test_other_fetches_under_the_id_of_a_batch_are_a_dead_letter(
    redis: Redis, fleet: Fleet, worker: Open
) -> None:
    """Fetches for a cancelled batch are dead letters too."""
    other = {"batch": BATCH_ID, "fetches": [url("/other")]}
    await push(redis, {"batch": BATCH_ID, "fetches": [url("/1")]}, other, url("/2"))
    one = worker()
    await drain(redis, one)
    cancelled = await fleet.submit([url("/3")], batch_id=OTHER_ID)
    await cancelled.cancel()
    await push(redis, {"batch": OTHER_ID, "fetches": [url("/4")]})
    await drain(redis, one)

    assert ["/2", "/1", "/3"] == paths(await waiting(redis))
    (exists, text), (ended, _) = await dead(redis)
    assert other == msgspec.json.decode(text)
    assert (True, True) == ("holds other fetches" in exists, "is cancelled" in ended)


async def test_messages_with_a_conflicting_batch_are_dead_letters(
    redis: Redis, fleet: Fleet, worker: Open
) -> None:
    """A worker of another release may have read them differently before it died. The inbox continues."""
    await push(redis, url("/1"))
    one = worker()
    batch, _ = await take_messages(one)
    await fleet.submit([url("/other")], batch_id=batch)
    await push(redis, url("/2"))
    await drain(redis, one)

    assert ["/other", "/2"] == paths(await waiting(redis))
    assert [url("/1")] == [text for _, text in await dead(redis)]


async def test_a_full_fleet_makes_the_inbox_wait_and_lose_nothing(
    redis: Redis, fleet: Fleet, worker: Open
) -> None:
    """It logs that once, and continues as soon as there is room."""
    await fleet.submit([url("/1"), url("/2")])
    await push(redis, url("/3"), "no URL", {"fetches": [url("/4")], "batch": BATCH_ID})
    one = worker(limits=Limits(fleet=2))
    with capture_logs() as lines:
        loop = asyncio.create_task(one.run())
        try:
            await wait_until(
                lambda: [line for line in lines if line["event"] == "intake.full"], "the log line"
            )
            waited = paths(await waiting(redis))
            await (await LaneHold.begin(redis)).finish()
            await wait_until(lambda: empty(redis), "room")
        finally:
            await aio.end(loop)

    assert ["/1", "/2"] == waited
    assert ["/3", "/4"] == paths(await waiting(redis))
    assert 1 == len([line for line in lines if line["event"] == "intake.full"])
    assert ["no URL"] == [text for _, text in await dead(redis)]


async def test_a_worker_that_stops_while_the_fleet_is_full_leaves_the_messages_to_the_next(
    redis: Redis, fleet: Fleet, worker: Open
) -> None:
    """The stopping worker releases the inbox, so the next one takes the messages at once."""
    await fleet.submit([url("/1")])
    await push(redis, url("/2"))
    one, two = worker("one", limits=Limits(fleet=1)), worker("two")
    with capture_logs() as lines:
        loop = asyncio.create_task(one.run())
        await wait_until(lambda: lines, "the log line")
        await aio.end(loop)
    await one.lease.end()
    await two.step()

    assert await empty(redis)
    assert ["/1", "/2"] == paths(await waiting(redis))


@pytest.mark.parametrize("when", ["before the taking", "before the enqueuing", "before the dead letter"])
async def test_a_redis_without_memory_makes_the_inbox_wait_and_lose_nothing(
    redis: Redis, worker: Open, when: str
) -> None:
    """It holds at any step."""
    one = worker()
    await push(redis, url("/1"), "no URL")
    if when == "before the enqueuing":
        await one.take()
    if when == "before the dead letter":
        await one.orders_of().submit(as_taken(await take_messages(one)))
    try:
        await ask(redis, "CONFIG", "SET", "maxmemory", "1")
        with capture_logs() as lines:
            loop = asyncio.create_task(one.run())
            await wait_until(
                lambda: [line for line in lines if line["event"] == "intake.full"], "the log line"
            )
            kept = await left(redis)
            await ask(redis, "CONFIG", "SET", "maxmemory", "0")
            await wait_until(lambda: empty(redis), "room")
            await aio.end(loop)
    finally:
        await ask(redis, "CONFIG", "SET", "maxmemory", "0")

    assert 2 == kept
    assert ["/1"] == paths(await waiting(redis))
    assert ["no URL"] == [text for _, text in await dead(redis)]


@pytest.mark.parametrize("script", ["inbox_take", "submit", "inbox_ack"])
@pytest.mark.parametrize("lost", ["the call", "the answer"])
async def test_an_outage_of_redis_costs_no_message(
    redis: Redis, worker: Open, monkeypatch: pytest.MonkeyPatch, script: str, lost: str
) -> None:
    """It holds with or without the effect of the interrupted call."""
    really, faults = runner.run, iter([RedisConnectionError("gone"), OSError("gone")])

    async def run(client: Redis, name: str, *how: Any) -> Any:
        fault = next(faults, None) if name == script else None
        reply = await really(client, name, *how) if lost == "the answer" or not fault else None
        if fault:
            raise fault
        return reply

    monkeypatch.setattr(runner, "run", run)
    await push(redis, url("/1"), "no URL", {"fetches": [url("/2")], "batch": BATCH_ID}, url("/3"))
    await running(redis, worker())

    assert ["/1", "/3", "/2"] == paths(await waiting(redis))
    assert ["no URL"] == [text for _, text in await dead(redis)]


async def test_a_bug_does_not_end_the_intake(
    redis: Redis, worker: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is logged, and the take is repeated."""
    really, faults = module.read_all, iter([RuntimeError("a bug")])

    def read(*args: Any) -> Any:
        for fault in faults:
            raise fault
        return really(*args)

    monkeypatch.setattr(module, "read_all", read)
    await push(redis, url("/1"))
    with capture_logs() as lines:
        await running(redis, worker())

    assert ["/1"] == paths(await waiting(redis))
    assert ["RuntimeError('a bug')"] == [line["error"] for line in lines if line["event"] == "redis.trouble"]


async def test_messages_pushed_at_the_head_are_first(redis: Redis, worker: Open) -> None:
    """LPUSH is for urgent messages."""
    await push(redis, url("/2"))
    await ask(redis, "LPUSH", keys.INBOX, url("/1"))
    await drain(redis, worker())

    assert ["/1", "/2"] == paths(await waiting(redis))


@pytest.mark.parametrize("until_ms", ["inf", "-inf", "nan", "1e300", "9" * 20, "x"])
async def test_an_invalid_lease_is_ignored(redis: Redis, worker: Open, until_ms: str) -> None:
    """A time that is not a number, or far ahead, does not lock the inbox."""
    await ask(redis, "HSET", keys.INTAKE, "token", "x", "until_ms", until_ms, "reads", "9 x")
    await push(redis, url("/1"))
    await worker().step()

    assert ["/1"] == paths(await waiting(redis))


async def test_foreign_entries_among_the_taken_messages_block_nothing(redis: Redis, worker: Open) -> None:
    """They come before or after the take, too many or too long. Each is read as a message once."""
    await ask(redis, "RPUSH", keys.TAKEN, *(f"x{i}" for i in range(700)), b"x" * (MAX_INPUT_BYTES + 1))
    await push(redis, url("/1"), url("/2"))
    one = worker()
    await drain(redis, one)
    taken = as_taken(await _pushed(redis, one, url("/3")))
    await ask(redis, "LPUSH", keys.TAKEN, "forged")
    await one.orders_of().submit(taken)
    await one.orders_of().acknowledge(taken)
    left_over = await ask(redis, "LRANGE", keys.TAKEN, 0, -1)
    await drain(redis, one)

    assert [b"forged"] == left_over
    assert ["/1", "/2", "/3"] == paths(await waiting(redis))
    assert 702 == len(await dead(redis))


async def _pushed(redis: Redis, intake: InboxReader, *messages: str) -> InboxMessages:
    await push(redis, *messages)
    return await take_messages(intake)


async def test_many_messages_that_are_too_long_are_dropped_a_few_at_a_time(
    redis: Redis, worker: Open
) -> None:
    """One call reads at most the bytes of a take, and one message."""
    await push(redis, *([b"x" * (MAX_INPUT_BYTES + 1)] * 3), url("/1"))
    one = worker()

    assert [NoMessages.LOOK_AGAIN] * 3 == [await one.take() for _ in range(3)]
    await drain(redis, one)
    assert ["/1"] == paths(await waiting(redis))
    assert 3 == len(await dead(redis))


async def test_a_value_of_another_type_at_a_key_of_the_inbox_is_quarantined(
    redis: Redis, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker that finds it quarantines it at once, and the inbox continues."""
    monkeypatch.setattr(inbox_module, "WAIT_S", 0.05)
    log = get_logger()
    report, foreign = RedisErrorReporter(log), KeyRepair(redis, 5000, RedisErrorReporter(log), log)
    one = InboxReader(redis_url, "w", Submitter(redis, nothing), report, log, repair=foreign.quarantine)
    running = asyncio.create_task(one.run())
    try:
        for key in (keys.INBOXES, *keys.kinds_of_inbox()):
            await redis.delete(key)
            await ask(redis, "XADD", key, "*", "a", "b")
            if key == keys.NEWER:
                await push(redis, {"v": 999})
            await wait_until(lambda key=key: _was_quarantined(redis, key), f"{key} to be quarantined")  # type: ignore[misc]
            await push(redis, url(f"/{key}"))
            await wait_until(lambda: empty(redis), "an empty inbox")
    finally:
        await aio.end(running)
        await one.aclose()

    assert 5 == len(await waiting(redis))


async def _was_quarantined(redis: Redis, key: str) -> bool:
    notes = [row[b"note"].decode() for _, row in await ask(redis, "XRANGE", keys.DEAD, "-", "+")]
    return any(note.startswith(f"{key} was a stream") for note in notes)
