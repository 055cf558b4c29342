"""Settling: exactly one result for each fetch under any repetition, and retries that return."""

import asyncio
import pickle
from collections.abc import AsyncIterator
from typing import Any

import pytest
from msgspec.structs import replace
from redis.asyncio import Redis

from fetchfleet import Batch, Counts, Fleet, Outcome, Reason
from fetchfleet.jobs import keys
from fetchfleet.jobs.contract.entry import BadEntryError, PartialNote, parse_entry, serialize_entry
from fetchfleet.jobs.contract.ids import fetch_id
from fetchfleet.jobs.scripts import batches, runner, settlement
from fetchfleet.worker.gate.state import GateState, from_json
from fetchfleet.worker.lanes import settler
from fetchfleet.worker.lanes.settler import Settlement, Settler
from fetchfleet.worker.lanes.store import EXPIRED
from fetchfleet.worker.util import aio
from tests.support.lanes import (
    BATCH_ID,
    HOUR_MS,
    LANE,
    LaneHold,
    ask,
    claimed,
    ended,
    entry,
    everything,
    fields,
    interrupted,
    lapse,
    later,
    now_ms,
    paths,
    put,
    reclaim,
    results,
    retried,
    state,
    stored,
    url,
    waiting,
)
from tests.support.waiting import wait_until

GATE = GateState(failures=3)
ID = fetch_id(BATCH_ID, 7).encode()
HEAD = ID + b"9000000000000"
GARBAGE = {
    "pickle": pickle.dumps({"f": "os.system", "a": ("true",)}),
    "arq's pickle": b"\x80\x04" + b"\xff" * 60,
    "empty": b"",
    "short": b"x",
    "half JSON": HEAD + b'{"v":1,"fetch":{"url":"http://a.exa',
    "half UTF-8": HEAD + b'{"v":1,"fetch":{"url":"\xc3',
    "wrong version": HEAD + b'{"v":3,"fetch":{"url":"http://a.example/"}}',
    "refused fetch": HEAD + b'{"v":1,"fetch":{"url":"file:///etc/passwd"}}',
    "deadline that is no number": ID + b"nan          {}",
    "deadline without end": ID + b"inf          {}",
    "deadline before all time": ID + b"-999999999999{}",
    "head alone": HEAD,
    "id alone": ID,
}


async def begun(fleet: Fleet, redis: Redis, count: int = 1) -> tuple[Batch, LaneHold, list[bytes]]:
    """Return a batch with every fetch claimed."""
    batch = await fleet.submit([url(f"/{i}") for i in range(count)])
    hold = await LaneHold.begin(redis)
    return batch, hold, (await hold.claim(count)).serialized


async def ttl_ms(redis: Redis, batch: Batch) -> list[int]:
    return [await redis.pttl(keys.batch(batch.id)), await redis.pttl(keys.results(batch.id))]


async def letters(redis: Redis) -> list[tuple[str, bytes]]:
    """Return the fault and the element of each dead letter."""
    rows = await ask(redis, "XRANGE", keys.DEAD, "-", "+")
    return [(row[b"note"].decode(), row[b"element"]) for _, row in rows]


def returned(element: bytes) -> Settlement:
    """Let the fetch wait unchanged for an hour."""
    return Settlement(settlement.return_claim(element[:25], wait_ms=HOUR_MS), lambda: None)


def begins(element: bytes) -> Settlement:
    """Mark the fetch as started; return its new element."""
    return Settlement(settlement.start(element[:25], serialized=element), lambda: None)


async def seal(redis: Redis, batch: Batch) -> None:
    """Seal the batch."""
    await batches.seal(redis, batch_id=batch.id)


async def test_a_settled_fetch_has_its_result(fleet: Fleet, redis: Redis) -> None:
    """It is no longer claimed, and its result is in the stream of its batch."""
    batch, hold, (one, two) = await begun(fleet, redis, 2)
    assert await hold.settle(stored(one))
    (result,) = await results(redis, batch)
    assert (result.id, result.outcome) == (parse_entry(one).id, Outcome.STORED)
    assert await claimed(redis) == [two]


async def test_a_reply_holds_the_time_of_redis(fleet: Fleet, redis: Redis) -> None:
    """It sets the clock of the owner."""
    _, hold, (element,) = await begun(fleet, redis)
    before_ms = await now_ms(redis)
    (now,) = await hold.settle(stored(element))
    assert before_ms <= now <= await now_ms(redis)


async def test_a_settlement_sent_twice_counts_once(fleet: Fleet, redis: Redis) -> None:
    """After a lost reply it may be repeated: one result, counters once."""
    batch, hold, elements = await begun(fleet, redis, 3)
    call = hold.settlement(*(stored(element) for element in elements[:2]))
    assert await runner.run(redis, *call)
    before = await everything(redis)
    assert await runner.run(redis, *call)
    assert await everything(redis) == before
    assert await batch.counts() == Counts(total=3, sealed=True, stored=2, bytes=6)


async def test_a_settlement_that_released_its_lane_may_be_sent_again(fleet: Fleet, redis: Redis) -> None:
    """The repeat changes nothing, even after a new fetch of the lane or under its next owner."""
    _, hold, (element,) = await begun(fleet, redis)
    call = hold.settlement(stored(element), release_if_empty=True)
    ((_, left),) = await runner.run(redis, *call)
    assert left == b"left"
    await fleet.submit([url("/new")])
    before = await everything(redis)
    ((_, left),) = await runner.run(redis, *call)
    assert left == b"left"
    assert await everything(redis) == before
    heir = await LaneHold.begin(redis, "heir")
    ((_, left),) = await runner.run(redis, *call)
    assert left == b"left"
    assert await heir.finish() == ["/new"]


async def test_two_results_for_one_fetch_are_one(fleet: Fleet, redis: Redis) -> None:
    """The first result counts, also within one call."""
    batch, hold, (element,) = await begun(fleet, redis)
    await hold.settle(stored(element), ended(element, Outcome.FAILED, reason=Reason.INTERNAL))
    assert [result.outcome for result in await results(redis, batch)] == [Outcome.STORED]
    assert (await batch.counts()).done == 1


async def test_every_outcome_is_counted(fleet: Fleet, redis: Redis) -> None:
    """The counters of a batch add up, over outcomes and bytes."""
    batch, hold, elements = await begun(fleet, redis, 5)
    outcomes = [Outcome.STORED, Outcome.STORED, Outcome.UNCHANGED, Outcome.FAILED, Outcome.CANCELLED]
    sizes = [5, 1 << 40, None, None, None]
    settlements = [ended(*each) for each in zip(elements, outcomes, sizes, strict=True)]
    await hold.settle(*settlements[:2])
    await hold.settle(*settlements[2:])
    counts = await batch.counts()
    assert (counts.stored, counts.unchanged, counts.failed, counts.cancelled) == (2, 1, 1, 1)
    assert counts.bytes == 5 + (1 << 40)
    assert counts.ended


async def test_one_call_settles_many_batches(fleet: Fleet, redis: Redis) -> None:
    """Each result goes to its own batch, in any order."""
    batches = [await fleet.submit([url(f"/{i}a"), url(f"/{i}b")]) for i in range(3)]
    hold = await LaneHold.begin(redis)
    elements = (await hold.claim()).serialized
    await hold.settle(*(stored(element) for element in reversed(elements)))
    for i, batch in enumerate(batches):
        assert [result.url for result in await results(redis, batch)] == [url(f"/{i}b"), url(f"/{i}a")]
        assert (await batch.counts()).ended


async def test_a_batch_lives_longer_while_fetches_are_open(fleet: Fleet, redis: Redis) -> None:
    """The last result starts the time after which a batch expires."""
    batch, hold, (one, two) = await begun(fleet, redis, 2)
    await hold.settle(stored(one))
    for ttl in await ttl_ms(redis, batch):
        assert keys.RESULTS_TTL_MS < ttl <= keys.UNFINISHED_TTL_MS
    await hold.settle(stored(two))
    for ttl in await ttl_ms(redis, batch):
        assert 0 < ttl <= keys.RESULTS_TTL_MS


async def test_a_batch_that_is_still_being_submitted_has_not_ended(fleet: Fleet, redis: Redis) -> None:
    """Further fetches may follow."""
    batch, hold, (element,) = await begun(fleet, redis)
    await ask(redis, "HDEL", keys.batch(batch.id), "sealed")
    await hold.settle(stored(element))
    assert not (await batch.counts()).ended
    for ttl in await ttl_ms(redis, batch):
        assert ttl > keys.RESULTS_TTL_MS
    await seal(redis, batch)
    assert (await batch.counts()).ended
    assert 0 < (await ttl_ms(redis, batch))[0] <= keys.RESULTS_TTL_MS


async def test_a_late_result_of_an_expired_batch_expires_too(fleet: Fleet, redis: Redis) -> None:
    """No key without a TTL remains in Redis."""
    batch, hold, (element,) = await begun(fleet, redis)
    await redis.delete(keys.batch(batch.id))
    await hold.settle(stored(element))
    for ttl in await ttl_ms(redis, batch):
        assert ttl > 0


# Retries


async def test_a_retry_waits_for_its_time(fleet: Fleet, redis: Redis) -> None:
    """It is in `later`, due by Redis's clock, with its new ledger, and cannot be claimed."""
    batch, hold, (element,) = await begun(fleet, redis)
    (now,) = await hold.settle(retried(element, 3600))
    ((waits, due_ms),) = (await later(redis)).items()
    assert due_ms == now + HOUR_MS
    assert parse_entry(waits).attempts == 1
    assert await claimed(redis) == []
    assert (await hold.claim()).serialized == []
    assert await results(redis, batch) == []


async def test_a_due_retry_is_claimed_first(fleet: Fleet, redis: Redis) -> None:
    """It is claimed before all other fetches."""
    _, hold, (one, _two) = await begun(fleet, redis, 2)
    await hold.settle(retried(one, 3600))
    (waits,) = await later(redis)
    await redis.zadd(keys.later(LANE), {waits: 1})
    assert (await hold.claim()).serialized == [waits]
    assert await later(redis) == {}


async def test_a_retry_sent_twice_waits_once(fleet: Fleet, redis: Redis) -> None:
    """Its due time is the first one."""
    _, hold, (element,) = await begun(fleet, redis)
    call = hold.settlement(retried(element, 3600))
    await runner.run(redis, *call)
    before = await everything(redis)
    await runner.run(redis, *call)
    assert await everything(redis) == before


async def test_a_retry_sent_again_after_its_claim_is_ignored(fleet: Fleet, redis: Redis) -> None:
    """A lost reply must not take the next attempt from its owner."""
    batch, hold, (element,) = await begun(fleet, redis)
    call = hold.settlement(retried(element, 0))
    await runner.run(redis, *call)
    (again,) = (await hold.claim()).serialized
    await runner.run(redis, *call)
    assert await claimed(redis) == [again]
    assert await later(redis) == {}
    await hold.settle(stored(again))
    assert (await batch.counts()).ended


async def test_a_fetch_may_be_retried_many_times(fleet: Fleet, redis: Redis) -> None:
    """Each attempt's ledger is kept, and the last one ends it."""
    batch, hold, (element,) = await begun(fleet, redis)
    for _ in range(5):
        await hold.settle(retried(element, 0))
        (element,) = (await hold.claim()).serialized
    assert parse_entry(element).attempts == 5
    await hold.settle(stored(element))
    assert len(await results(redis, batch)) == 1


# Returned and started fetches


async def test_a_returned_fetch_waits_unchanged(fleet: Fleet, redis: Redis) -> None:
    """It is in `later` as it was claimed, due by Redis's clock, and no longer claimed."""
    batch, hold, (one, two) = await begun(fleet, redis, 2)
    (now,) = await hold.settle(returned(one))
    assert await later(redis) == {one: now + HOUR_MS}
    assert await claimed(redis) == [two]
    assert await results(redis, batch) == []


async def test_an_unclaimed_fetch_cannot_be_returned(fleet: Fleet, redis: Redis) -> None:
    """The fetch has its result or was returned earlier, so Redis is unchanged."""
    _, hold, (one, two) = await begun(fleet, redis, 2)
    await hold.settle(stored(one), returned(two))
    before = await everything(redis)
    await hold.settle(returned(one), returned(two))
    assert await everything(redis) == before


async def test_a_started_fetch_stays_claimed_with_its_new_ledger(fleet: Fleet, redis: Redis) -> None:
    """The next owner after a crash finds the ledger written before the start."""
    _, hold, (one, two) = await begun(fleet, redis, 2)
    await hold.settle(begins(interrupted(one)))
    assert await claimed(redis) == [interrupted(one), two]
    await lapse(redis)
    await reclaim(redis)
    heir = await LaneHold.begin(redis, "heir")
    assert sorted(heir.held.orphans.serialized) == [interrupted(one), two]
    assert await hold.settle(begins(two)) == []


async def test_an_unclaimed_fetch_cannot_be_started(fleet: Fleet, redis: Redis) -> None:
    """An ended or waiting fetch does not become claimed."""
    _, hold, (one, two) = await begun(fleet, redis, 2)
    await hold.settle(stored(one), returned(two))
    before = await everything(redis)
    await hold.settle(begins(one), begins(two))
    assert await everything(redis) == before


async def test_a_started_fetch_may_end_in_the_same_call(fleet: Fleet, redis: Redis) -> None:
    """Settlements apply in order. A dead letter has the last claimed element."""
    batch, hold, (one, two) = await begun(fleet, redis, 2)
    buried = settler.buried(two[:25], Reason.INTERNAL, "note", lambda: None)
    await hold.settle(begins(interrupted(one)), stored(one), begins(interrupted(two)), buried, stored(two))
    assert await claimed(redis) == []
    assert await letters(redis) == [("note", interrupted(two))]
    assert (await batch.counts()).stored == 2


async def test_thousands_are_claimed_and_settled_in_one_call(fleet: Fleet, redis: Redis) -> None:
    """Lua's stack is smaller than that."""
    batch, hold, elements = await begun(fleet, redis, 9000)
    assert len(elements) == 9000
    await hold.settle(*(retried(element, 0) for element in elements))
    again = (await hold.claim(9000)).serialized
    assert len(again) == 9000
    await hold.settle(*(begins(element) for element in again))
    assert await hold.settle(*(stored(element) for element in again))
    assert await batch.counts() == Counts(total=9000, sealed=True, stored=9000, bytes=27_000)
    assert await hold.release() is None


# The gate


async def test_the_gate_is_saved_with_a_settlement(fleet: Fleet, redis: Redis) -> None:
    """The learned state of the host outlives a crash. An unchanged gate is not written."""
    _, hold, (one, two) = await begun(fleet, redis, 2)
    hold.lane.gate = GATE
    await hold.settle(stored(one))
    assert from_json((await fields(redis))["gate"].encode()) == GATE
    await ask(redis, "HSET", keys.lane(LANE), "gate", "mark")
    await hold.settle(stored(two))
    assert (await fields(redis))["gate"] == "mark"


# Invalid entries


@pytest.mark.parametrize("name", GARBAGE)
async def test_garbage_is_claimed_and_becomes_a_dead_letter(fleet: Fleet, redis: Redis, name: str) -> None:
    """Foreign elements stop no lane."""
    garbage = GARBAGE[name]
    await fleet.submit([url("/good")])
    await put(redis, garbage, where="high")
    hold = await LaneHold.begin(redis)
    bad, good = (await hold.claim()).serialized
    assert bad == garbage
    with pytest.raises(BadEntryError):
        parse_entry(bad)
    head = garbage[:25]
    await hold.settle(
        settler.buried(head, Reason.INVALID, "no entry", lambda: None), settler.dropped(head), stored(good)
    )
    assert await letters(redis) == [("no entry", garbage)]
    assert await claimed(redis) == []
    assert await hold.release() is None
    assert await state(redis) == "idle"


@pytest.mark.parametrize("name", GARBAGE)
async def test_garbage_survives_a_crash_and_a_closed_lane(fleet: Fleet, redis: Redis, name: str) -> None:
    """It is returned and found again like any element, also by a search for deadlines."""
    await fleet.submit([url("/good")])
    await put(redis, GARBAGE[name], where="high")
    hold = await LaneHold.begin(redis)
    await hold.claim(1)
    assert await hold.release(shut_until_ms=await now_ms(redis) + HOUR_MS)
    assert await waiting(redis, "returned") == [GARBAGE[name]]
    await ask(redis, "HSET", keys.lane(LANE), "due_ms", 1)
    hold = await LaneHold.begin(redis)
    assert set((await hold.scan_queue(EXPIRED, "returned")).serialized) <= {GARBAGE[name]}


async def test_a_broken_entry_ends_its_fetch(fleet: Fleet, redis: Redis) -> None:
    """With a readable ID, the batch gets a result and the dead letters a copy."""
    batch, hold, (element,) = await begun(fleet, redis)
    broken = element[:60]
    await ask(redis, "HSET", keys.claimed(LANE), broken[:25], broken)
    await hold.settle(
        settler.buried(broken[:25], Reason.INVALID, "no entry", lambda: None),
        ended(element, Outcome.FAILED, reason=Reason.INVALID),
    )
    assert await letters(redis) == [("no entry", broken)]
    assert (await batch.counts()).failed == 1


async def test_a_dead_letter_sent_twice_is_written_once(fleet: Fleet, redis: Redis) -> None:
    """An unclaimed element is not copied again."""
    await fleet.submit([url("/good")])
    await put(redis, b"garbage", where="high")
    hold = await LaneHold.begin(redis)
    await hold.claim(1)
    call = hold.settlement(
        settler.buried(b"garbage", Reason.INVALID, "no entry", lambda: None), settler.dropped(b"garbage")
    )
    await runner.run(redis, *call)
    await runner.run(redis, *call)
    assert await letters(redis) == [("no entry", b"garbage")]


async def test_garbage_that_begins_alike_is_not_lost(fleet: Fleet, redis: Redis) -> None:
    """Two pickles have the same head: both are found, one after the other if necessary."""
    pickles = [pickle.dumps({"function": "fetch", "arguments": place}) for place in range(2)]
    assert pickles[0][:25] == pickles[1][:25]
    await fleet.submit([url("/good")])
    await put(redis, *pickles, where="high")
    hold = await LaneHold.begin(redis)
    for _ in range(3):
        for element in (await hold.claim()).serialized:
            if element in pickles:
                head = element[:25]
                await hold.settle(
                    settler.buried(head, Reason.INVALID, "no entry", lambda: None), settler.dropped(head)
                )
            else:
                await hold.settle(stored(element))
    assert sorted(element for _, element in await letters(redis)) == sorted(pickles)


# Through the Settler


class Running:
    """A running Settler, and its errors."""

    def __init__(self, redis: Redis) -> None:
        self.troubles: list[BaseException] = []
        self.settler = Settler(redis, self.troubles.append)


@pytest.fixture
async def running(redis: Redis) -> AsyncIterator[Running]:
    """Run a Settler for the duration of the test."""
    made = Running(redis)
    task = asyncio.create_task(made.settler.run())
    yield made
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_the_settler_reports_a_written_settlement(fleet: Fleet, redis: Redis, running: Running) -> None:
    """`done` is called once, and the lane has no more to settle."""
    batch, hold, (element,) = await begun(fleet, redis)
    hold.lane.hold(parse_entry(element))
    notified: list[str] = []
    settlement = stored(element)._replace(done=lambda: notified.append("done"))
    running.settler.add(hold.lane, settlement)
    assert running.settler.count == 1
    await running.settler.flush(hold.lane)
    assert notified == ["done"]
    assert hold.lane.entries == {}
    assert running.settler.count == 0
    assert (await batch.counts()).ended


async def test_the_settler_settles_many_lanes_together(fleet: Fleet, redis: Redis, running: Running) -> None:
    """The refusal of one lane does not affect the others."""
    lanes = [LANE, "b.example"]
    batch = await fleet.submit([url("/x", lane) for lane in lanes])
    holds = [await LaneHold.begin(redis, name=lane) for lane in lanes]
    elements = [(await hold.claim()).serialized[0] for hold in holds]
    await ask(redis, "HSET", keys.lane(LANE), "token", 0)
    for hold, element in zip(holds, elements, strict=True):
        running.settler.add(hold.lane, stored(element))
    await running.settler.flush(holds[1].lane)
    assert [hold.lane.lost for hold in holds] == [True, False]
    assert [result.url for result in await results(redis, batch)] == [url("/x", "b.example")]
    assert running.settler.count == 0


async def test_a_foreign_value_refuses_only_the_lanes_that_need_its_key(
    fleet: Fleet, redis: Redis, running: Running
) -> None:
    """Of three lanes, one has it in place of its retries, and one in place of the stream of its batch."""
    hosts = ["good.example", "retries.example", "stream.example"]
    batch, _, other = [await fleet.submit([url("/x", host)]) for host in hosts]
    stays = [await LaneHold.begin(redis, name=host) for host in hosts]
    good, again, refused = [(await stay.claim()).serialized[0] for stay in stays]
    await ask(redis, "SET", keys.later(hosts[1]), "foreign")
    await ask(redis, "SET", keys.results(other.id), "foreign")

    for stay, change in zip(stays, (stored(good), retried(again, 1), stored(refused)), strict=True):
        running.settler.add(stay.lane, change)
    await running.settler.flush(stays[0].lane)

    assert [stay.lane.lost for stay in stays] == [False, True, True]
    assert [result.url for result in await results(redis, batch)] == [url("/x", hosts[0])]
    assert await ask(redis, "HVALS", keys.claimed(hosts[1])) == [again]
    assert await ask(redis, "HVALS", keys.claimed(hosts[2])) == [refused]
    await redis.delete(keys.later(hosts[1]), keys.results(other.id))


async def test_the_settler_saves_a_gate_alone(fleet: Fleet, redis: Redis, running: Running) -> None:
    """A cool-down is written without a settlement."""
    _, hold, _ = await begun(fleet, redis)
    hold.lane.gate = GATE
    running.settler.save_gate(hold.lane)
    await running.settler.flush(hold.lane)
    assert from_json((await fields(redis))["gate"].encode()) == GATE


async def test_the_last_settlement_of_a_lane_at_rest_releases_it(
    fleet: Fleet, redis: Redis, running: Running
) -> None:
    """Its last claim left no fetch waiting. A lane that reads from Redis meanwhile is not released."""
    await fleet.submit([url("/0"), url("/1")])
    hold = await LaneHold.begin(redis)
    one, two = (await hold.claim(2)).serialized
    hold.lane.claims.record(emptied=True, found=True)
    running.settler.add(hold.lane, stored(one))
    await running.settler.flush(hold.lane)
    assert (hold.lane.released, await state(redis)) == (False, "held")
    hold.lane.is_idle = True
    running.settler.add(hold.lane, stored(two))
    await running.settler.flush(hold.lane)
    assert (hold.lane.released, await state(redis)) == (True, "idle")


async def test_a_lane_that_has_a_new_fetch_is_kept(fleet: Fleet, redis: Redis, running: Running) -> None:
    """The last claim left none waiting, but one was added since: the lane has to claim again."""
    _, hold, (element,) = await begun(fleet, redis)
    hold.lane.claims.record(emptied=True, found=True)
    hold.lane.is_idle = True
    await fleet.submit([url("/new")])
    running.settler.add(hold.lane, stored(element))
    await running.settler.flush(hold.lane)
    assert (hold.lane.released, hold.lane.claims.emptied, await state(redis)) == (False, False, "held")


async def test_the_settler_repeats_until_redis_accepts(fleet: Fleet, redis: Redis, running: Running) -> None:
    """A full Redis gets the result when it has room, and half of it is never written."""
    batch, hold, (element,) = await begun(fleet, redis)
    hold.lane.gate = GATE
    before = await everything(redis)
    await redis.config_set("maxmemory", 1)
    try:
        running.settler.add(hold.lane, stored(element))
        await wait_until(lambda: running.troubles, "the refusal")
        assert await everything(redis) == before
    finally:
        await redis.config_set("maxmemory", 0)
    await running.settler.flush(hold.lane)
    assert "maxmemory" in str(running.troubles[0])
    assert len(await results(redis, batch)) == 1
    assert from_json((await fields(redis))["gate"].encode()) == GATE


async def test_the_settler_reaches_a_redis_that_forgot_the_scripts(
    fleet: Fleet, redis: Redis, running: Running
) -> None:
    """A failover has this effect."""
    batch, hold, (element,) = await begun(fleet, redis)
    await redis.script_flush()
    running.settler.add(hold.lane, stored(element))
    await running.settler.flush(hold.lane)
    assert (await batch.counts()).ended
    assert running.troubles == []


@pytest.fixture
def endless(running: "Running") -> None:
    """Make the gathering of settlements last until it is interrupted."""
    running.settler._gather_more_s = 3600


@pytest.fixture
async def busy(fleet: Fleet, redis: Redis) -> AsyncIterator[tuple[Batch, LaneHold, list[bytes]]]:
    """Return four claimed fetches, and four in flight."""
    batch, hold, elements = await begun(fleet, redis, 4)
    for number in range(4):
        hold.lane.in_flight[str(number)] = asyncio.create_task(asyncio.sleep(3600))
    yield batch, hold, elements
    await aio.end(*hold.lane.in_flight.values())


async def test_a_single_settlement_is_written_at_once(
    fleet: Fleet, redis: Redis, running: Running, endless: None
) -> None:
    """No other fetch is in flight that could be written with it."""
    batch, hold, (element,) = await begun(fleet, redis)
    running.settler.add(hold.lane, stored(element))
    await wait_until(lambda: running.settler.finished, "its result")
    assert len(await results(redis, batch)) == 1


async def test_settlements_are_gathered_while_fetches_are_in_flight(
    busy: tuple[Batch, LaneHold, list[bytes]], redis: Redis, running: Running, endless: None
) -> None:
    """All four are written by one call, once no other is expected."""
    batch, hold, elements = busy
    for element in elements:
        running.settler.add(hold.lane, stored(element))
        await asyncio.sleep(0)
    await wait_until(lambda: running.settler.finished, "their results")
    assert len(await results(redis, batch)) == 4
    assert running.settler._rounds == 1


@pytest.mark.parametrize("who", ["a fetch", "a lane to be released", "a lane that looks for unknown claims"])
async def test_a_settlement_with_a_waiter_is_written_at_once(
    busy: tuple[Batch, LaneHold, list[bytes]], redis: Redis, running: Running, endless: None, who: str
) -> None:
    """It holds with any number of fetches in flight."""
    _, hold, (element, other, *_) = busy
    running.settler.add(hold.lane, stored(element))
    notified = asyncio.Event()
    match who:
        case "a fetch":
            running.settler.add(hold.lane, settler.started(parse_entry(other), notified.set))
            await notified.wait()
        case "a lane to be released":
            await running.settler.flush(hold.lane)
        case _:
            await running.settler.flush_pending(hold.lane)
    assert running.settler.count == 0


async def test_a_full_redis_still_accepts_results(fleet: Fleet, redis: Redis) -> None:
    """A settlement does not stop halfway: an unclaimed fetch has its result."""
    batch, hold, elements = await begun(fleet, redis, 3)
    await redis.config_set("maxmemory", 1)
    try:
        reply: Any = await hold.settle(*(stored(element) for element in elements))
    finally:
        await redis.config_set("maxmemory", 0)
    assert reply
    assert len(await results(redis, batch)) == 3
    assert paths(await claimed(redis)) == []


async def test_an_entry_of_an_unknown_batch_is_settled(fleet: Fleet, redis: Redis) -> None:
    """Its fetch ends, and its keys expire."""
    await fleet.submit([url("/good")])
    await put(redis, serialize_entry(entry(5)))
    hold = await LaneHold.begin(redis)
    assert await hold.finish() == ["/good", "/5"]
    assert await state(redis) == "idle"


async def test_an_overtaken_checkpoint_is_not_written(
    fleet: Fleet, redis: Redis, running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint and the end of its attempt are sent twice. In between, the next attempt is claimed."""
    _, hold, (element,) = await begun(fleet, redis)
    run_many, again = runner.run_many, retried(element, 0)
    lost: list[bytes] = []

    async def reply_lost_once(*call: Any) -> Any:
        monkeypatch.setattr(runner, "run_many", run_many)
        await run_many(*call)
        lost.extend((await hold.claim()).serialized)
        raise ConnectionError

    monkeypatch.setattr(runner, "run_many", reply_lost_once)
    part = PartialNote(token=1, offset_bytes=1, of="")
    running.settler.add(hold.lane, settler.rewritten(replace(parse_entry(element), part=part)))
    running.settler.add(hold.lane, again)
    await running.settler.flush(hold.lane)

    assert lost
    assert await claimed(redis) == lost
    assert await later(redis) == {}
    assert running.settler.count == 0
