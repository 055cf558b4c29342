"""Named inboxes: their pushers share nothing, get receipts, and delay no other."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack
from typing import Any

import msgspec
import pytest
from redis.asyncio import Redis

from fetchfleet import Fetch, Fleet
from fetchfleet.jobs import keys
from fetchfleet.jobs.client.submit import NO_LIMITS, Limits, Submitter
from fetchfleet.jobs.contract.entry import parse_entry
from fetchfleet.jobs.contract.ids import inbox_prefix
from fetchfleet.jobs.contract.messages import InboxReceipt, MessageRefusal, decode_receipt
from fetchfleet.jobs.notifications import LaneNotification
from fetchfleet.jobs.scripts import inbox as scripts
from fetchfleet.worker.intake.inbox import InboxReader, InboxTimings
from fetchfleet.worker.observability.log import get_logger
from fetchfleet.worker.redis_support.health import RedisErrorReporter
from fetchfleet.worker.util import aio
from tests.support.inbox import as_taken, take_messages
from tests.support.lanes import BATCH_ID, LaneHold, ask, paths, url, waiting
from tests.support.log_lines import capture_logs
from tests.support.waiting import wait_until

BOB, ALICE = "bob", "alice-2"
BOBS = inbox_prefix(BOB) + "00000001"
OTHERS = inbox_prefix(ALICE) + "00000001"

Open = Callable[..., InboxReader]


async def nothing(_: Iterable[LaneNotification]) -> None:
    """Wake no lane."""


@pytest.fixture
async def worker(redis_url: str, redis: Redis) -> AsyncIterator[Open]:
    """Return a function that makes intakes, each of another worker, over two inboxes."""
    await ask(redis, "SADD", keys.INBOXES, BOB, ALICE, "Not a name", "taken")
    async with AsyncExitStack() as stack:

        def make(limits: Limits = NO_LIMITS) -> InboxReader:
            log, submitter = get_logger(), Submitter(redis, nothing, limits)
            timings = InboxTimings(other_owner_s=0.01, full_s=0.01, failed_s=0.01)
            made = InboxReader(redis_url, "w", submitter, RedisErrorReporter(log), log, timings)
            stack.push_async_callback(made.aclose)
            return made

        yield make


async def push(redis: Redis, inbox: str, *messages: str | dict[str, Any]) -> None:
    """Append to the inbox."""
    texts = [msgspec.json.encode(item) if isinstance(item, dict) else item for item in messages]
    await ask(redis, "RPUSH", keys.inbox(inbox), *texts)


async def drain(redis: Redis, intake: InboxReader, *inboxes: str) -> None:
    """Take messages until none is left."""
    names = [key(inbox) for inbox in inboxes or (BOB, ALICE, "") for key in (keys.inbox, keys.taken)]
    while await ask(redis, "EXISTS", *names):
        await intake.step()


async def receipt(redis: Redis, batch_id: str, name: str = "") -> InboxReceipt:
    """Return the receipt of a message."""
    return decode_receipt(await ask(redis, "GET", keys.receipt(batch_id, name)))


async def refusals(redis: Redis) -> list[str]:
    """Return the note of each dead letter."""
    return [row[b"note"].decode() for _, row in await ask(redis, "XRANGE", keys.DEAD, "-", "+")]


async def test_a_flood_in_one_inbox_delays_no_other(redis: Redis, worker: Open) -> None:
    """They take turns: a message of another is enqueued after at most one take of the flood."""
    one = worker()
    await push(redis, BOB, *(url(f"/{i}") for i in range(3000)))
    await one.step()  # leads from here on
    await one.step()
    await push(redis, ALICE, url("/alice"))
    await push(redis, "", url("/shared"))
    for _ in range(4):
        await one.step()
    found = paths(await waiting(redis))
    await drain(redis, one)

    assert {"/alice", "/shared"} < set(found)
    assert len(found) < 2000
    assert 3002 == len(await waiting(redis))


async def test_an_unregistered_inbox_waits(redis: Redis, worker: Open) -> None:
    """A worker reads it once an operator adds its name, and reads the shared inbox meanwhile."""
    one = worker()
    await redis.delete(keys.INBOXES)
    await push(redis, BOB, url("/1"))
    await push(redis, "", url("/2"))
    await drain(redis, one, "")
    before = paths(await waiting(redis))
    await ask(redis, "SADD", keys.INBOXES, BOB)
    await drain(redis, one)

    assert ["/2"] == before
    assert ["/2", "/1"] == paths(await waiting(redis))


async def test_a_name_among_many_foreign_members_is_served(redis: Redis, worker: Open) -> None:
    """They are removed a page at a time, and no read grows with their number."""
    await ask(redis, "SADD", keys.INBOXES, *(f"Foreign {i}" for i in range(3000)))
    await push(redis, BOB, url("/1"))
    await drain(redis, worker())

    assert ["/1"] == paths(await waiting(redis))
    assert await redis.scard(keys.INBOXES) < 3000  # type: ignore[misc]


async def test_batches_of_an_inbox_begin_with_its_prefix(redis: Redis, worker: Open) -> None:
    """A batch may be named or not. A message for any other is a dead letter and changes no receipt."""
    fetches = [url("/no")]
    await push(redis, BOB, url("/1"), {"batch": BOBS, "fetches": [url("/2")]})
    await push(redis, BOB, {"batch": OTHERS, "fetches": fetches}, {"batch": BATCH_ID, "fetches": fetches})
    await push(redis, BOB, {"cancel": OTHERS}, {"batch": "f", "fetches": fetches})
    await drain(redis, worker())

    assert {"/1", "/2"} == set(paths(await waiting(redis)))
    assert {inbox_prefix(BOB)} == {parse_entry(entry).batch_id[:8] for entry in await waiting(redis)}
    assert ["batch", "batch", "cancel", "batch"] == [note.split(":")[0] for note in await refusals(redis)]
    assert not await ask(redis, "EXISTS", keys.receipt(OTHERS), keys.receipt(BATCH_ID))


async def test_a_receipt_has_the_outcome_of_a_message(redis: Redis, worker: Open) -> None:
    """Redis keeps it for a day under the requested name, and as the latest receipt of its batch."""
    one = worker()
    keyed = {"url": url("/1"), "key": "k"}
    await push(redis, BOB, {"batch": BOBS, "fetches": [keyed, keyed, url("/2")], "receipt": "a"})
    await drain(redis, one)
    first = await receipt(redis, BOBS, "a")
    await push(redis, BOB, {"batch": BOBS, "fetches": [url("/other")], "receipt": "b"})
    await push(redis, BOB, {"batch": BOBS[:-1] + "2", "fetches": ["no URL"], "receipt": "c", "part": 1})
    await drain(redis, one)
    other, bad = await receipt(redis, BOBS, "b"), await receipt(redis, BOBS[:-1] + "2", "c")

    assert InboxReceipt(batch=BOBS, accepted=3, repeats={f"{BOBS}-00000001": f"{BOBS}-00000000"}) == first
    assert (MessageRefusal.BATCH_EXISTS, other) == (other.refused, await receipt(redis, BOBS))
    assert (MessageRefusal.INVALID, 1, "item 0") == (bad.refused, bad.part, bad.note.split(":")[0])
    assert 2 == len(await refusals(redis))
    assert 0 < await redis.pttl(keys.receipt(BOBS, "a")) <= keys.RECEIPT_TTL_MS


async def test_a_crash_between_enqueuing_and_the_receipt_repeats_it(redis: Redis, worker: Open) -> None:
    """The fetches are enqueued once, and the receipt is that of the first time."""
    keyed = [{"url": url(f"/{i}"), "key": f"k{i}"} for i in range(3)]
    await push(redis, BOB, {"batch": BOBS, "part": 1, "fetches": keyed[:2], "receipt": "1"})
    await push(redis, BOB, {"batch": BOBS, "part": 2, "fetches": keyed[1:], "last": True, "receipt": "2"})
    one, two = worker(), worker()
    await one.step()
    taken = await take_messages(one, BOB)
    await one.orders_of(BOB).submit(as_taken(taken, BOB))
    before = await ask(redis, "EXISTS", keys.receipt(BOBS, "1"))
    await ask(redis, "HSET", keys.INTAKE, "until_ms", 0)
    await drain(redis, two)

    assert 0 == before
    assert ["/0", "/1", "/2"] == paths(await waiting(redis))
    assert InboxReceipt(batch=BOBS, part=1, accepted=2) == await receipt(redis, BOBS, "1")
    repeats = {f"{BOBS}-{500:08x}": f"{BOBS}-00000001"}
    assert InboxReceipt(batch=BOBS, part=2, accepted=2, repeats=repeats) == await receipt(redis, BOBS, "2")


async def test_the_keys_of_an_inbox_are_its_own(redis: Redis, fleet: Fleet, worker: Open) -> None:
    """No pusher can refer to fetches of others by their keys."""
    mine = await fleet.submit([Fetch(url=url("/producer"), key="k")])
    for inbox in (BOB, ALICE):
        batch_id = inbox_prefix(inbox) + "00000001"
        message = {"batch": batch_id, "fetches": [{"url": url(f"/{inbox}"), "key": "k"}]}
        await push(redis, inbox, message)
    await drain(redis, worker())
    again = await fleet.submit([Fetch(url=url("/again"), key="k")])

    assert mine.ids == again.ids
    assert {} == (await receipt(redis, BOBS)).repeats == (await receipt(redis, OTHERS)).repeats
    assert {"/producer", f"/{BOB}", f"/{ALICE}"} == set(paths(await waiting(redis)))


async def test_a_batch_in_parts_is_enqueued_once_in_its_order(redis: Redis, worker: Open) -> None:
    """A repeated part changes nothing. One that is too early, or different, is refused."""

    def part(number: int, count: int, path: str = "", **more: Any) -> dict[str, Any]:
        fetches = [url(f"/{number}-{i}{path}") for i in range(count)]
        return {"batch": BOBS, "part": number, "fetches": fetches, "receipt": f"{number}{path}", **more}

    first, second, last = part(1, 500), part(2, 3), part(3, 1, last=True)
    await push(redis, BOB, first, part(3, 1, "early"), second, first, part(2, 3, "other"), last, last)
    await push(redis, BOB, part(4, 1), part(5, 501), part(6, 0))
    await drain(redis, worker())

    ids = [parse_entry(entry).id[-8:] for entry in await waiting(redis)]
    assert [f"{place:08x}" for place in (*range(500), 500, 501, 502, 1000)] == ids
    names = ("1", "2", "3", "3early", "2other", "4", "5", "6")
    lost, exists, invalid = MessageRefusal.BATCH_LOST, MessageRefusal.BATCH_EXISTS, MessageRefusal.INVALID
    assert [None, None, None, lost, exists, exists, invalid, invalid] == [
        (await receipt(redis, BOBS, name)).refused for name in names
    ]
    assert [b"504", b"1"] == await ask(redis, "HMGET", keys.batch(BOBS), "total", "sealed")


async def test_a_message_cancels_a_batch_of_its_inbox(redis: Redis, fleet: Fleet, worker: Open) -> None:
    """A worker applies messages in order. The receipt reports an unknown batch, without a dead letter."""
    await push(redis, BOB, {"batch": BOBS, "fetches": [url("/1")]}, {"cancel": BOBS, "receipt": "c"})
    await push(redis, BOB, {"cancel": BOBS[:-1] + "9"})
    one = worker()
    await drain(redis, one)
    await push(redis, BOB, {"batch": BOBS, "fetches": [url("/1")], "receipt": "late"})
    await drain(redis, one)

    assert (await fleet.batch(BOBS).counts()).sealed
    assert b"1" <= await ask(redis, "HGET", keys.batch(BOBS), "cancel_ms")
    assert InboxReceipt(batch=BOBS) == await receipt(redis, BOBS, "c")
    assert MessageRefusal.UNKNOWN_BATCH is (await receipt(redis, BOBS[:-1] + "9")).refused
    assert MessageRefusal.BATCH_CANCELLED is (await receipt(redis, BOBS, "late")).refused
    assert 1 == len(await refusals(redis))


async def test_a_full_fleet_refuses_waits_and_cancels_by_the_messages(
    redis: Redis, fleet: Fleet, worker: Open
) -> None:
    """A cancel does not wait, in any inbox. Waiting fetches are enqueued as soon as there is room."""
    await fleet.submit([url("/before")])
    one = worker(Limits(fleet=1))
    refused, waits, old = BOBS[:-1] + "2", BOBS[:-1] + "3", OTHERS
    message = {"fetches": [url("/1")], "receipt": "r"}
    await push(redis, BOB, {"batch": refused, **message, "when_full": "refuse"}, {"batch": waits, **message})
    await push(redis, BOB, {"cancel": BOBS})
    await push(redis, ALICE, {"cancel": old})
    running = asyncio.create_task(one.run())
    try:
        await wait_until(
            lambda: ask(redis, "EXISTS", keys.receipt(waits, "r")), "the receipt of the waiting message"
        )
        waiting_receipt = await receipt(redis, waits, "r")
        await wait_until(lambda: ask(redis, "EXISTS", keys.receipt(old)), "the cancel of another inbox")
        await (await LaneHold.begin(redis)).finish()
        await wait_until(lambda: ask(redis, "EXISTS", keys.receipt(waits)), "room")
    finally:
        await aio.end(running)

    assert (True, None) == (waiting_receipt.waits, waiting_receipt.refused)
    assert InboxReceipt(batch=waits, accepted=1) == await receipt(redis, waits, "r")
    assert MessageRefusal.FLEET_FULL is (await receipt(redis, refused, "r")).refused
    assert MessageRefusal.UNKNOWN_BATCH is (await receipt(redis, BOBS)).refused
    assert [] == await refusals(redis)
    assert ["/1"] == paths(await waiting(redis))


async def test_a_pushers_garbage_displaces_no_other_dead_letters(
    redis: Redis, worker: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few per minute are kept, truncated, and the log counts the rest. The shared inbox is unlimited."""
    monkeypatch.setattr(scripts, "MAX_LETTERS_PER_MINUTE", 3)
    await push(redis, BOB, *(f"{i} " + "x" * 5000 for i in range(30)))
    await push(redis, "", *(f"shared {i}" for i in range(5)))
    with capture_logs() as lines:
        await drain(redis, worker())

    letters = [row[b"element"] for _, row in await ask(redis, "XRANGE", keys.DEAD, "-", "+")]
    assert 5 == len([text for text in letters if text.startswith(b"shared")])
    assert [4096] * 3 == [len(text) for text in letters if not text.startswith(b"shared")]
    logged = [line for line in lines if line["event"] == "intake.refused" and line.get("inbox") == BOB]
    assert 30 == len(logged) + sum(line.get("suppressed", 0) for line in logged)


async def test_only_the_owner_of_the_shared_inbox_takes_messages(redis: Redis, worker: Open) -> None:
    """Its lease covers all inboxes."""
    one, two = worker(), worker()
    await one.step()
    await push(redis, BOB, url("/1"))

    assert scripts.NoMessages.OTHER_WORKER is await two.take(BOB)
    await drain(redis, one)
    assert ["/1"] == paths(await waiting(redis))
