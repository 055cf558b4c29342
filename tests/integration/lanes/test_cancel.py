"""Cancelling, in Redis: every lane with a fetch of the batch is notified, and no other is touched."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from fetchfleet import (
    Batch,
    BatchCancelledError,
    Fetch,
    Fleet,
    Outcome,
    Priority,
    UnknownBatchError,
)
from fetchfleet.jobs import keys
from fetchfleet.jobs.client import submit as submit_module
from fetchfleet.jobs.contract.entry import parse_entry
from fetchfleet.jobs.scripts.lanes import RemovalKind
from fetchfleet.worker.lanes.store import BatchCancelled, LaneLostError, Removal
from tests.support.lanes import (
    BATCH_ID,
    HOUR_MS,
    LANE,
    LaneHold,
    ask,
    backlog,
    claimed,
    ended,
    everything,
    fields,
    lapse,
    later,
    notifications,
    now_ms,
    paths,
    reclaim,
    results,
    retried,
    state,
    stored,
    url,
    waiting,
)

OTHER = "b.example"
LISTS = ["returned", *Priority]


async def flagged(redis: Redis, lane: str = LANE) -> set[str]:
    """Return the cancelled batches that the lane knows."""
    return {of.decode() for of in await ask(redis, "SMEMBERS", keys.cancelled(lane))}


async def due_in_ms(redis: Redis, lane: str = LANE) -> int:
    """Return the time until the lane is due."""
    return int((await fields(redis, lane))["due_ms"]) - await now_ms(redis)


async def everywhere(fleet: Fleet, redis: Redis) -> tuple[Batch, Batch]:
    """Return two batches, each with fetches in every queue of a lane that is not held."""
    one, two = [await fleet.submit([url(f"/{name}-back"), url(f"/{name}-retry")]) for name in ("one", "two")]
    hold = await LaneHold.begin(redis)
    elements = (await hold.claim()).serialized
    await hold.settle(*(retried(of, 3600) for of in elements if "retry" in paths([of])[0]))
    await hold.release()
    for priority in Priority:
        for place in range(3):
            for batch, name in ((one, "one"), (two, "two")):
                await _add(
                    fleet, redis, batch, Fetch(url=url(f"/{name}-{priority}-{place}"), priority=priority)
                )
    return one, two


async def _add(fleet: Fleet, redis: Redis, batch: Batch, fetch: Fetch) -> None:
    """Add a fetch of a batch of an older producer, as if it had not sealed it."""
    await ask(redis, "HDEL", keys.batch(batch.id), "recorded")
    total = int(await ask(redis, "HGET", keys.batch(batch.id), "total"))
    made = await fleet.submit([fetch])
    (element,) = await ask(redis, "LRANGE", keys.waiting_at(LANE, fetch.priority.value), -1, -1)
    ours = f"{batch.id}-{total:08x}".encode() + element[25:]
    await ask(redis, "LSET", keys.waiting_at(LANE, fetch.priority.value), -1, ours)
    await ask(redis, "HINCRBY", keys.batch(batch.id), "total", 1)
    await redis.delete(keys.batch(made.id))
    await redis.zrem(keys.BATCHES, made.id)


# Notifications


async def test_a_lane_that_is_due_later_is_woken_now(fleet: Fleet, redis: Redis) -> None:
    """It is woken even in a cool-down of an hour: cancelling sends no request to the host."""
    batch = await fleet.submit([url("/x")])
    await (await LaneHold.begin(redis)).release(shut_until_ms=await now_ms(redis) + HOUR_MS)
    assert await due_in_ms(redis) > HOUR_MS // 2
    await batch.cancel()

    assert ({batch.id}, "scheduled") == (await flagged(redis), await state(redis))
    assert await due_in_ms(redis) <= 0
    assert keys.notification_job_id(LANE, int((await fields(redis))["generation"])) in await notifications(
        redis
    )
    assert {batch.id} == (await LaneHold.begin(redis)).held.cancelled


async def test_a_lane_that_is_due_is_woken_once(fleet: Fleet, redis: Redis) -> None:
    """Its notification exists already, and the next owner learns of the batch."""
    batch = await fleet.submit([url("/x")])
    before = await notifications(redis)
    await batch.cancel()

    assert before == await notifications(redis)
    assert {batch.id} == (await LaneHold.begin(redis)).held.cancelled


async def test_the_owner_of_a_held_lane_is_notified(fleet: Fleet, redis: Redis) -> None:
    """Its token stays valid, and the counter that all workers watch increases."""
    batch = await fleet.submit([url("/x")])
    hold = await LaneHold.begin(redis)
    before = int(await redis.get(keys.CANCELS) or 0)
    await batch.cancel()

    assert int(await redis.get(keys.CANCELS) or 0) > before
    assert {LANE: {batch.id}, OTHER: set()} == (await hold.store.cancelled([LANE, OTHER])).by_lane
    assert await hold.renew()


async def test_only_lanes_of_the_batch_are_notified(fleet: Fleet, redis: Redis) -> None:
    """Owners of others search nothing."""
    batch = await fleet.submit([url("/x")])
    await fleet.submit([url("/x", OTHER)])
    await batch.cancel()

    assert ({batch.id}, set()) == (await flagged(redis), await flagged(redis, OTHER))


async def test_an_idle_lane_stays_idle(fleet: Fleet, redis: Redis) -> None:
    """The lane no longer has a fetch of the batch."""
    batch = await fleet.submit([url("/x"), url("/x", OTHER)])
    await (await LaneHold.begin(redis)).finish()
    await batch.cancel()

    assert ("idle", set()) == (await state(redis), await flagged(redis))
    assert {batch.id} == await flagged(redis, OTHER)


async def test_a_lane_released_with_cancelled_fetches_is_due_at_once(fleet: Fleet, redis: Redis) -> None:
    """Its owner was not notified yet. The next one is, although the lane is closed."""
    batch = await fleet.submit([url("/x")])
    hold = await LaneHold.begin(redis)
    await hold.claim()
    await batch.cancel()
    wake = await hold.release(shut_until_ms=await now_ms(redis) + HOUR_MS)

    assert wake
    assert 0 == wake.due_in_ms
    assert {batch.id} == (await LaneHold.begin(redis)).held.cancelled


async def test_a_lane_released_empty_drops_the_batch(fleet: Fleet, redis: Redis) -> None:
    """Its last fetch had its result before its owner was notified."""
    batch = await fleet.submit([url("/x")])
    hold = await LaneHold.begin(redis)
    (element,) = (await hold.claim()).serialized
    await batch.cancel()
    await hold.settle(stored(element))
    await hold.release()

    assert ("idle", set()) == (await state(redis), await flagged(redis))
    assert (1, 0) == ((await batch.counts()).stored, (await batch.counts()).cancelled)


# Withdrawn fetches


async def test_a_batch_is_withdrawn_and_other_fetches_keep_their_order(fleet: Fleet, redis: Redis) -> None:
    """The batch has fetches in every queue: returned ones, each priority, retries that are not due."""
    one, two = await everywhere(fleet, redis)
    before = {where: paths(await waiting(redis, where)) for where in LISTS}
    await one.cancel()
    hold = await LaneHold.begin(redis)
    withdrawn = await hold.withdraw(one)

    assert 11 == len(withdrawn)
    for where in LISTS:
        left = [path for path in before[where] if path.startswith("/two")]
        assert left == paths(await waiting(redis, where))
    assert ["/two-retry"] == paths(list(await later(redis)))
    assert [] == await hold.withdrawn(one)
    assert set() == await flagged(redis)
    counts = await one.counts()
    assert (11, 11, True) == (counts.total, counts.cancelled, counts.ended)
    assert 11 == len({of.id for of in await results(redis, one)}) == await backlog(redis)
    assert 0 == (await two.counts()).done
    await hold.release()


async def test_a_large_queue_is_searched_in_pieces(fleet: Fleet, redis: Redis) -> None:
    """20,000 wait, every other one of another batch: each is found once, and the others keep their order."""
    count = 10_000
    batches = [f"{number:016x}" for number in range(2)]
    await fleet.submit([url("/x")])
    elements = [
        f"{batches[place % 2]}-{place // 2:08x}9000000000000".encode()
        + b'{"v":1,"fetch":{"url":"http://a.example/%d"}}' % place
        for place in range(2 * count)
    ]
    await redis.delete(keys.waiting_at(LANE, "normal"))
    for at in range(0, len(elements), 1000):
        await ask(redis, "RPUSH", keys.waiting_at(LANE, "normal"), *elements[at : at + 1000])
    hold = await LaneHold.begin(redis)

    found: list[bytes] = []
    offset: int | None = 0
    while offset is not None:
        kind = Removal(RemovalKind.BATCH, batches[0])
        stretch = await hold.store.withdraw(LANE, hold.held.token, kind, "normal", offset)
        found += stretch.serialized
        offset = stretch.next_offset

    assert elements[0::2] == found
    assert elements[1::2] == await waiting(redis)
    assert count == len(await claimed(redis))
    await ask(redis, "DEL", keys.claimed(LANE), keys.waiting_at(LANE, "normal"))
    await hold.release()


@pytest.mark.parametrize("count", [999, 1000, 1001, 2000])
async def test_a_piece_may_end_anywhere(fleet: Fleet, redis: Redis, count: int) -> None:
    """A queue as long as a piece, one less or one more: everything is found."""
    batch = await fleet.submit([url(f"/{place}") for place in range(count)])
    await fleet.submit([url("/other")])
    await batch.cancel()
    hold = await LaneHold.begin(redis)

    assert count == len(await hold.withdraw(batch))
    assert ["/other"] == paths(await waiting(redis))
    assert (await batch.counts()).ended


async def test_a_withdrawal_whose_reply_was_lost_is_found(fleet: Fleet, redis: Redis) -> None:
    """Its claims are named before the lane drops the batch."""
    batch = await fleet.submit([url("/1"), url("/2")])
    await batch.cancel()
    hold = await LaneHold.begin(redis)
    await hold.store.withdraw(LANE, hold.held.token, Removal(RemovalKind.BATCH, batch.id), "normal", 0)
    left = await hold.withdrawn(batch)

    assert ["/1", "/2"] == sorted(paths(left))
    assert {batch.id} == await flagged(redis)
    await hold.settle(*(ended(element, Outcome.CANCELLED) for element in left))
    assert [] == await hold.withdrawn(batch)
    assert set() == await flagged(redis)
    await hold.release()


async def test_only_the_owner_withdraws(fleet: Fleet, redis: Redis) -> None:
    """An earlier token is refused and changes nothing."""
    batch = await fleet.submit([url("/x")])
    stale = await LaneHold.begin(redis)
    await lapse(redis)
    await reclaim(redis)
    await batch.cancel()
    before = await everything(redis)

    with pytest.raises(LaneLostError):
        await stale.withdraw(batch)
    with pytest.raises(LaneLostError):
        await stale.withdrawn(batch)
    assert before == await everything(redis)


async def test_fetches_withdrawn_by_a_dead_owner_are_ended_by_the_next(fleet: Fleet, redis: Redis) -> None:
    """They are among the orphans, and the batch among the cancelled."""
    batch = await fleet.submit([url("/1"), url("/2"), url("/3")])
    await batch.cancel()
    first = await LaneHold.begin(redis, "first")
    await first.store.withdraw(LANE, first.held.token, Removal(RemovalKind.BATCH, batch.id), "normal", 0)
    await lapse(redis)
    await reclaim(redis)
    second = await LaneHold.begin(redis, "second")

    assert ["/1", "/2", "/3"] == sorted(paths(second.held.orphans.serialized))
    assert {batch.id} == second.held.cancelled
    await second.settle(*(ended(element, Outcome.CANCELLED) for element in second.held.orphans.serialized))
    assert [] == await second.withdrawn(batch)
    assert (await batch.counts()).ended
    await second.release()


# The batch


async def test_earlier_results_stay(fleet: Fleet, redis: Redis) -> None:
    """The counters add up, and each fetch has one result."""
    batch = await fleet.submit([url(f"/{place}") for place in range(4)])
    hold = await LaneHold.begin(redis)
    await hold.settle(*(stored(element) for element in (await hold.claim(2)).serialized))
    counts = await batch.cancel()
    assert (4, 2, 0, False) == (counts.total, counts.stored, counts.cancelled, counts.ended)
    await hold.withdraw(batch)

    counts = await batch.counts()
    assert (4, 2, 2, True) == (counts.total, counts.stored, counts.cancelled, counts.ended)
    outcomes = [of.outcome for of in await results(redis, batch)]
    assert [Outcome.STORED, Outcome.STORED, Outcome.CANCELLED, Outcome.CANCELLED] == outcomes
    await hold.release()


async def test_cancelling_twice_is_cancelling_once(fleet: Fleet, redis: Redis) -> None:
    """The time of the first call counts, and no lane is woken again."""
    batch = await fleet.submit([url("/x")])
    await batch.cancel()
    before = await everything(redis)
    await batch.cancel()
    after = await everything(redis)

    assert before.pop(keys.CANCELS.encode()) < after.pop(keys.CANCELS.encode())
    assert before == after


async def test_an_unknown_batch_cannot_be_cancelled(fleet: Fleet, redis: Redis) -> None:
    """No key is created by the attempt."""
    with pytest.raises(UnknownBatchError, match=BATCH_ID):
        await fleet.batch(BATCH_ID).cancel()
    assert [] == await redis.keys("*")


@pytest.mark.parametrize("count", [0, 2])
async def test_an_ended_batch_is_unchanged(fleet: Fleet, redis: Redis, count: int) -> None:
    """Neither its counters nor its time change, nor do other waiting lanes."""
    batch = await fleet.submit([url("/x")] * count)
    if count:
        await (await LaneHold.begin(redis)).finish()
    await fleet.submit([url("/other")])
    before = await everything(redis)
    await redis.pexpire(keys.batch(batch.id), 60_000)
    counts = await batch.cancel()

    assert (count, True) == (counts.stored, counts.ended)
    assert before == await everything(redis)
    assert await redis.pttl(keys.batch(batch.id)) <= 60_000


async def test_a_cancelled_batch_accepts_no_fetch(fleet: Fleet, redis: Redis) -> None:
    """A repeated fetch and a new one are both refused, and Redis is unchanged."""
    batch = await fleet.submit([url("/1")], batch_id=BATCH_ID)
    await batch.cancel()
    before = await everything(redis)
    for again in ([url("/1")], [url("/1"), url("/2")], iter([url("/3")])):
        with pytest.raises(BatchCancelledError, match=BATCH_ID):
            await fleet.submit(again, batch_id=BATCH_ID)

    assert before == await everything(redis)


async def test_a_batch_cancelled_while_it_is_submitted_ends(
    fleet: Fleet, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its producer gets the error at the next chunk. Enqueued fetches end as cancelled."""
    monkeypatch.setattr(submit_module, "CHUNK_FETCHES", 2)

    async def made() -> AsyncIterator[str]:
        for place in range(10):
            if place == 5:
                await fleet.batch(BATCH_ID).cancel()
            yield url(f"/{place}")

    with pytest.raises(BatchCancelledError):
        await fleet.submit(made(), batch_id=BATCH_ID)
    hold = await LaneHold.begin(redis)
    batch = fleet.batch(BATCH_ID)
    assert 4 == len(await hold.withdraw(batch))
    counts = await batch.counts()
    assert (4, 4, True) == (counts.total, counts.cancelled, counts.ended)
    assert 4 == len([of async for of in batch.results()])
    await hold.release()


async def test_a_batch_of_many_lanes_is_cancelled_in_each(fleet: Fleet, redis: Redis) -> None:
    """It holds with any number of them."""
    lanes = [f"h{number}.example" for number in range(600)]
    batch = await fleet.submit(url("/x", lane) for lane in lanes)
    await batch.cancel()

    assert [{batch.id}] * len(lanes) == [await flagged(redis, lane) for lane in lanes]


async def test_racing_cancels_and_submits_lose_nothing(fleet: Fleet, redis: Redis) -> None:
    """Fetches accepted before the cancel are withdrawn, later ones are refused."""
    batch = await fleet.submit([url("/first")], batch_id=BATCH_ID)
    submits = [fleet.submit([url("/first"), url(f"/{n}")], batch_id=BATCH_ID) for n in range(5)]
    await asyncio.gather(*submits, batch.cancel(), return_exceptions=True)
    hold = await LaneHold.begin(redis)
    await hold.withdraw(batch)

    counts = await batch.counts()
    assert (counts.total, True) == (counts.cancelled, counts.ended)
    assert 0 == await backlog(redis)
    assert await hold.release() is None


# Redirects to another lane


async def test_a_cancelled_fetch_is_not_handed_to_another_lane(fleet: Fleet, redis: Redis) -> None:
    """It stays claimed, to be ended there."""
    batch = await fleet.submit([url("/x")])
    hold = await LaneHold.begin(redis)
    (element,) = (await hold.claim()).serialized
    await batch.cancel()

    assert isinstance(await hold.transfer(element, OTHER), BatchCancelled)
    assert [element] == await claimed(redis)
    assert await state(redis, OTHER) is None
    await hold.settle(ended(element, Outcome.CANCELLED))
    assert (await batch.counts()).ended
    await hold.release()


async def test_a_fetch_transferred_before_is_cancelled_in_its_new_lane(fleet: Fleet, redis: Redis) -> None:
    """The new lane belongs to the batch from then on."""
    batch = await fleet.submit([url("/x")])
    hold = await LaneHold.begin(redis)
    (element,) = (await hold.claim()).serialized
    await hold.transfer(element, OTHER)
    await hold.release()
    await batch.cancel()

    other = await LaneHold.begin(redis, name=OTHER)
    assert {batch.id} == other.held.cancelled
    assert [parse_entry(element).id] == [parse_entry(of).id for of in await other.withdraw(batch)]
    assert (await batch.counts()).ended
    await other.release()
