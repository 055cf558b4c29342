"""The record of a batch: submit writes it, claims are compared with it, and each fetch ends in it once."""

from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from redis.asyncio import Redis

from fetchfleet import Batch, Fetch, Fleet, Outcome, Priority, Reason
from fetchfleet.jobs import keys
from fetchfleet.jobs.contract import fetch as fetches
from fetchfleet.jobs.contract.entry import Entry, parse_entry, serialize_entry
from fetchfleet.jobs.contract.ids import FETCH_ID_CHARS, fetch_id
from fetchfleet.jobs.scripts import settlement, submission
from fetchfleet.jobs.scripts.lanes import ENDED, UNKNOWN_BATCH, UNRECORDED
from fetchfleet.worker.lanes.store import ALL
from tests.support.lanes import (
    BATCH_ID,
    LANE,
    LaneHold,
    ask,
    backlog,
    claimed,
    ended,
    everything,
    fields,
    lapse,
    open_in,
    put,
    reclaim,
    results,
    stored,
    url,
)

OTHER = "b.example"


def record_of(entry: Entry) -> int:
    """Return the value of the entry in the record of its batch."""
    return fetches.record_of(fetches.encode(entry.fetch), entry.deadline_ms)


async def record(redis: Redis, batch: Batch, count: int) -> list[int]:
    """Return the first places of a batch's record."""
    gets = [part for place in range(count) for part in ("GET", "u48", f"#{place}")]
    found: list[int] = await ask(redis, "BITFIELD_RO", keys.record(batch.id), *gets)
    return found


async def letters(redis: Redis) -> list[tuple[str, bytes]]:
    """Return the reason and the element of each dead letter."""
    rows = await ask(redis, "XRANGE", keys.DEAD, "-", "+")
    return [(row[b"reason"].decode(), row[b"element"]) for _, row in rows]


def copy_of(element: bytes, *, place: int | None = None, **changed: Any) -> bytes:
    """Return the entry with other fields, and perhaps another place."""
    of = parse_entry(element)
    if place is not None:
        changed["id"] = fetch_id(of.batch_id, place)
    return serialize_entry(msgspec.structs.replace(of, **changed))


async def test_submit_records_each_fetch_with_its_deadline(fleet: Fleet, redis: Redis) -> None:
    """The batch has fetches in two lanes and two priorities, and keeps the latest deadline of all."""
    batch = await fleet.submit(
        [
            Fetch(url=url("/1"), deadline_s=30),
            Fetch(url=url("/2", OTHER), meta={"b": [1, 2.0, None], "a": "ü"}),
            Fetch(url=url("/3"), priority=Priority.HIGH, deadline_s=0.5),
        ]
    )
    elements = [
        *await ask(redis, "LRANGE", keys.waiting_at(LANE, "normal"), 0, -1),
        *await ask(redis, "LRANGE", keys.waiting_at(OTHER, "normal"), 0, -1),
        *await ask(redis, "LRANGE", keys.waiting_at(LANE, "high"), 0, -1),
    ]
    entries = [parse_entry(element) for element in elements]
    assert await record(redis, batch, 4) == [*map(record_of, entries), 0]
    latest = await ask(redis, "HGET", keys.batch(batch.id), "last_deadline_ms")
    assert int(latest) == max(entry.deadline_ms for entry in entries)
    assert 0 < await redis.pttl(keys.record(batch.id)) <= keys.UNFINISHED_TTL_MS


async def test_a_claim_returns_the_values_of_the_record(fleet: Fleet, redis: Redis) -> None:
    """A number for each fetch of the batch, and the reason for others."""
    batch = await fleet.submit([url("/1"), url("/2")])
    hold = await LaneHold.begin(redis)
    one, two = (await hold.claim(2)).serialized
    await hold.settle(stored(one))
    of_nobody = serialize_entry(msgspec.structs.replace(parse_entry(two), id=fetch_id(BATCH_ID[::-1], 0)))
    await put(redis, one, of_nobody, copy_of(two, place=0xFFFFFFFF), b"\xff" * 60)
    assert (await hold.claim()).records == [ENDED, UNKNOWN_BATCH, ENDED, UNKNOWN_BATCH]
    claims = await hold.store.claims(LANE, hold.held.token)
    records = dict(zip(claims.serialized, claims.records, strict=True))
    assert records[two] == record_of(parse_entry(two))
    assert batch.id


@pytest.mark.parametrize(
    "changed",
    [
        {"fetch": Fetch(url=url("/other"))},
        {"fetch": Fetch(url=url("/1"), dest="d")},
        {"fetch": Fetch(url=url("/1"), meta=1)},
        {"deadline_ms": 9_000_000_000_000},
    ],
    ids=["another URL", "a dest", "meta", "another deadline"],
)
async def test_a_differing_copy_does_not_match_the_record(
    fleet: Fleet, redis: Redis, changed: dict[str, Any]
) -> None:
    """It holds in any field of the fetch, or the deadline."""
    await fleet.submit([url("/1")])
    hold = await LaneHold.begin(redis)
    (element,) = await ask(redis, "LRANGE", keys.waiting_at(LANE, "normal"), 0, -1)
    await ask(redis, "LSET", keys.waiting_at(LANE, "normal"), 0, copy_of(element, **changed))
    claim = await hold.claim()
    assert claim.records != [record_of(parse_entry(claim.serialized[0]))]
    assert claim.records == [record_of(parse_entry(element))]


async def test_counters_of_an_entry_are_not_in_the_record(fleet: Fleet, redis: Redis) -> None:
    """An entry after an attempt is the same fetch."""
    await fleet.submit([url("/1")])
    hold = await LaneHold.begin(redis)
    (element,) = (await hold.claim()).serialized
    again = copy_of(element, attempts=3, throttles=2, last=Reason.READ)
    await hold.release(again)
    hold = await LaneHold.begin(redis)
    claim = await hold.claim()
    assert (claim.serialized, claim.records) == ([again], [record_of(parse_entry(element))])


async def test_orphans_and_withdrawn_fetches_are_checked_too(fleet: Fleet, redis: Redis) -> None:
    """Acquire, scan and withdrawal return the record of each fetch, or ENDED for a foreign copy."""
    batch = await fleet.submit([url("/1"), url("/2")])
    first = await LaneHold.begin(redis)
    (one,) = (await first.claim(1)).serialized
    foreign = copy_of(one, place=7)
    await ask(redis, "HSET", keys.claimed(LANE), foreign[:25], foreign)
    await put(redis, foreign)
    await lapse(redis)
    await reclaim(redis)
    second = await LaneHold.begin(redis)
    orphans = dict(zip(*second.held.orphans[:2], strict=True))
    assert orphans == {one: record_of(parse_entry(one)), foreign: ENDED}
    await ask(redis, "HDEL", keys.claimed(LANE), foreign[:25])
    found = await second.scan_queue(ALL)
    assert found.records == [record_of(parse_entry(found.serialized[0])), ENDED]
    left = await second.store.withdrawn(LANE, second.held.token, {batch.id})
    assert sorted(left.records) == sorted(
        [ENDED, *map(record_of, map(parse_entry, (one, found.serialized[0])))]
    )


async def test_a_fetch_that_is_in_two_lanes_has_one_result(fleet: Fleet, redis: Redis) -> None:
    """The copy that ends second becomes a dead letter, and no count changes."""
    batch = await fleet.submit([url("/1"), url("/2")])
    await fleet.submit([url("/x", OTHER)])
    here, there = await LaneHold.begin(redis), await LaneHold.begin(redis, name=OTHER)
    one, two = (await here.claim()).serialized
    await put(redis, one, lane=OTHER)
    other, copy = (await there.claim()).serialized
    assert await here.settle(stored(one)) == [pytest.approx(1e12, rel=1)]
    counts, open_there = await fields_of(redis, batch), await open_in(redis, OTHER)
    now, *had_ended = await there.settle(ended(copy, Outcome.FAILED, reason=Reason.READ), stored(other))
    assert (bool(now), had_ended) == (True, [parse_entry(one).id.encode()])
    assert await fields_of(redis, batch) == counts
    assert (await open_in(redis, OTHER), await backlog(redis)) == (open_there - 1, 1)
    assert [result.outcome for result in await results(redis, batch)] == [Outcome.STORED]
    assert await letters(redis) == [("invalid", copy)]
    assert await claimed(redis, OTHER) == []
    await here.settle(stored(two))
    assert (await batch.counts()).ended
    assert not await redis.exists(keys.record(batch.id))
    await here.release()
    await there.release()


async def test_a_fetch_that_two_lanes_end_in_one_call_has_one_result(fleet: Fleet, redis: Redis) -> None:
    """The lane that comes second in the call gets the dead letter."""
    batch = await fleet.submit([url("/1")])
    other_batch = await fleet.submit([url("/x", OTHER)])
    here, there = await LaneHold.begin(redis), await LaneHold.begin(redis, name=OTHER)
    (one,) = (await here.claim()).serialized
    await put(redis, one, lane=OTHER)
    other, copy = (await there.claim()).serialized
    lanes = [
        settlement.LaneChanges(LANE, here.held.token, None, [stored(one).change]),
        settlement.LaneChanges(OTHER, there.held.token, None, [stored(copy).change, stored(other).change]),
    ]
    replies = await settlement.settle_many(redis, lanes, to_all_results=True)

    assert [getattr(reply, "had_ended", None) for reply in replies] == [[], [copy[:FETCH_ID_CHARS]]]
    assert [result.outcome for result in await results(redis, batch)] == [Outcome.STORED]
    assert await letters(redis) == [("invalid", copy)]
    assert (await batch.counts()).ended
    assert (await other_batch.counts()).ended
    await here.release()
    await there.release()


async def fields_of(redis: Redis, batch: Batch) -> dict[bytes, bytes]:
    """Return the hash of the batch."""
    found: dict[bytes, bytes] = await ask(redis, "HGETALL", keys.batch(batch.id))
    return found


async def test_the_fetches_of_an_ended_batch_count_as_ended(
    fleet: Fleet, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its record is gone and its hash decides, also if it was sealed after its last result."""

    async def late() -> AsyncIterator[str]:
        yield url("/late")
        hold = await LaneHold.begin(redis)
        elements.extend((await hold.claim()).serialized)
        await hold.settle(*map(stored, elements))
        await hold.release()

    elements: list[bytes] = []
    monkeypatch.setattr("fetchfleet.jobs.client.submit.CHUNK_FETCHES", 1)
    batch = await fleet.submit(late())
    assert (await batch.counts()).ended
    assert not await redis.exists(keys.record(batch.id))
    await fleet.submit([url("/x")])
    await put(redis, *elements)
    hold = await LaneHold.begin(redis)
    assert (await hold.claim()).records[1:] == [ENDED]


async def test_an_undone_fetch_counts_as_ended(fleet: Fleet, redis: Redis) -> None:
    """Started fetches stay in the record, but none of a batch that is undone completely."""
    sent: list[dict[str, object]] = []
    really = submission.submit

    async def submit(_: Redis, **how: object) -> object:
        sent.append(how)
        return await really(redis, **how)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(submission, "submit", submit)
        batch = await fleet.submit([url("/1"), url("/2")])
    taken_ms = int(await ask(redis, "HGET", keys.batch(batch.id), "taken_ms"))
    back = {"groups": sent[0]["groups"], "keyed": [], "taken_ms": taken_ms}
    hold = await LaneHold.begin(redis)
    (one,) = (await hold.claim(1)).serialized
    assert await submission.undo(redis, batch_id=batch.id, **back) == 1  # type: ignore[arg-type]
    assert await record(redis, batch, 2) == [record_of(parse_entry(one)), 0]
    await hold.settle(stored(one))
    assert not await redis.exists(keys.record(batch.id))


async def test_a_record_has_several_strings(fleet: Fleet, redis: Redis) -> None:
    """A batch may have more fetches than one string has room for."""
    far = keys.RECORD_SEGMENT_PLACES + 2
    batch = await fleet.submit([url("/1")])
    hold = await LaneHold.begin(redis)
    (one,) = (await hold.claim(1)).serialized
    second = copy_of(one, place=far)
    await ask(
        redis, "BITFIELD", keys.record(batch.id, far), "SET", "u48", "#2", record_of(parse_entry(second))
    )
    await redis.pexpire(keys.record(batch.id, far), 60_000)
    await ask(redis, "HINCRBY", keys.batch(batch.id), "total", 1)
    await put(redis, second, copy_of(one, place=far + 1))
    claim = await hold.claim()
    assert claim.records == [record_of(parse_entry(second)), ENDED]
    assert await hold.settle(stored(one), stored(second))
    assert (await batch.counts()).ended
    assert await ask(redis, "BITFIELD_RO", keys.record(batch.id, far), "GET", "u48", "#2") == [0]


@pytest.mark.parametrize("what", ["deleted", "of another type", "its batch lost"])
async def test_a_lost_record_or_batch_loses_no_fetch(fleet: Fleet, redis: Redis, what: str) -> None:
    """After a deletion by another program, each fetch of the batch ends once."""
    batch = await fleet.submit([url("/1"), url("/2")])
    if what == "its batch lost":
        await redis.delete(keys.batch(batch.id))
    else:
        await redis.delete(keys.record(batch.id))
    if what == "of another type":
        await redis.lpush(keys.record(batch.id), "x")  # type: ignore[misc]
    hold = await LaneHold.begin(redis)
    claim = await hold.claim()
    entries = [parse_entry(element) for element in claim.serialized]
    assert claim.records == (
        [record_of(entry) for entry in entries] if what == "its batch lost" else [UNRECORDED] * 2
    )
    await redis.delete(*([keys.record(batch.id)] if what == "of another type" else []), "none")
    await hold.settle(stored(claim.serialized[0]))
    if what == "its batch lost":  # what ended before is still known
        await put(redis, claim.serialized[0])
        assert (await hold.claim()).records == [ENDED]
        await ask(redis, "HDEL", keys.claimed(LANE), claim.serialized[0][:25])
    await hold.settle(stored(claim.serialized[1]))
    assert len(await results(redis, batch)) == 2
    await redis.delete(keys.record(batch.id))


# Beside older producers, which know no records: their chunks come without fingerprints.


async def test_a_batch_of_an_older_producer_is_served_as_before(fleet: Fleet, redis: Redis) -> None:
    """It has no record, and its claims are not compared."""
    batch = await older(fleet, [url("/1")])
    assert not await redis.exists(keys.record(batch.id))
    hold = await LaneHold.begin(redis)
    claim = await hold.claim()
    assert claim.records == [UNRECORDED]
    await hold.settle(stored(claim.serialized[0]))
    assert (await batch.counts()).ended
    await hold.release()


@pytest.mark.parametrize("first", ["older", "newer"])
async def test_a_batch_of_an_older_and_a_newer_producer_is_served_as_before(
    fleet: Fleet, redis: Redis, first: str
) -> None:
    """Each sent a chunk: the record is incomplete, so missing fetches are not refused."""
    monkey = pytest.MonkeyPatch()
    turns = iter([first == "older", first != "older"])
    really = submission.submit

    async def submit(client: Redis, **how: object) -> object:
        how |= {"fingerprints": {}} if next(turns) else {}
        return await really(client, **how)  # type: ignore[arg-type]

    with monkey.context() as patch:
        patch.setattr(submission, "submit", submit)
        patch.setattr("fetchfleet.jobs.client.submit.CHUNK_FETCHES", 1)
        batch = await fleet.submit([url("/1"), url("/2")])
    hold = await LaneHold.begin(redis)
    claim = await hold.claim()
    for element, found in zip(claim.serialized, claim.records, strict=True):
        assert found in {UNRECORDED, record_of(parse_entry(element))}
    await hold.settle(*map(stored, claim.serialized))
    assert len(await results(redis, batch)) == 2
    assert (await batch.counts()).ended
    await hold.release()


async def older(fleet: Fleet, urls: list[str]) -> Batch:
    """Submit a batch as an older producer does."""
    really = submission.submit

    async def submit(client: Redis, **how: object) -> object:
        return await really(client, **{**how, "fingerprints": {}})  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(submission, "submit", submit)
        return await fleet.submit(urls)


async def test_a_foreign_element_writes_nothing_into_a_record(fleet: Fleet, redis: Redis) -> None:
    """A place far beyond the batch allocates no memory, and an invalid batch ID creates no key."""
    await fleet.submit([url("/1")])
    hold = await LaneHold.begin(redis)
    (one,) = (await hold.claim()).serialized
    before = set(await everything(redis))
    await put(redis, copy_of(one, place=0xFFFFFFFF), b"\x00*:" * 20, b"f" * 400)
    await hold.claim()
    assert set(await everything(redis)) - before <= set()
    assert await redis.strlen(keys.record(parse_entry(one).batch_id)) == 6
    assert (await fields(redis))["state"] == "held"
