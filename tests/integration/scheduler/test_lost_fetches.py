"""A fetch whose entry was lost or damaged ends after its deadline, once."""

from typing import Any

import pytest
from redis.asyncio import Redis

from fetchfleet import Batch, Fetch, Fleet, Outcome, Reason
from fetchfleet.jobs import keys
from fetchfleet.jobs.contract.ids import fetch_id
from fetchfleet.worker.observability.log import get_logger
from fetchfleet.worker.redis_support import lost_fetches
from fetchfleet.worker.redis_support.lost_fetches import LostFetches
from tests.support.lanes import LANE, LaneHold, ask, backlog, now_ms, results, stored, url
from tests.support.log_lines import capture_logs

Lines = list[Any]


@pytest.fixture
def lost(redis: Redis) -> LostFetches:
    """Return an object that ends lost fetches right after the last deadline."""
    return LostFetches(redis, "sweeper", get_logger(), grace_s=0)


async def late(redis: Redis, batch: Batch) -> None:
    """Set the last deadline of the batch to an earlier time."""
    at_ms = await now_ms(redis)
    times = ("last_deadline_ms", at_ms - 1000, "taken_ms", at_ms - 2000)
    await ask(redis, "HSET", keys.batch(batch.id), *times)


async def lose(redis: Redis) -> None:
    """Empty the lane as another program would, and let a worker find that."""
    await redis.delete(*keys.waiting(LANE))
    await (await LaneHold.begin(redis)).release()


async def test_lost_fetches_end_once_as_deadline(fleet: Fleet, redis: Redis, lost: LostFetches) -> None:
    """Earlier results stay. Counts and streams are correct, and the batch ends."""
    batch = await fleet.submit([Fetch(url=url(f"/{number}"), deadline_s=60) for number in range(4)])
    hold = await LaneHold.begin(redis)
    await hold.settle(*map(stored, (await hold.claim(1)).serialized))
    await hold.release()
    await lose(redis)
    await lost.end(await now_ms(redis))
    assert len(await results(redis, batch)) == 1

    await late(redis, batch)
    with capture_logs() as lines:
        await lost.end(await now_ms(redis))
        await lost.end(await now_ms(redis))
    _, *ended = await results(redis, batch)
    assert [result.id for result in ended] == [fetch_id(batch.id, place) for place in (1, 2, 3)]
    assert {(of.outcome, of.reason, of.note, of.worker) for of in ended} == {
        (Outcome.FAILED, Reason.DEADLINE, lost_fetches.NOTE, "sweeper")
    }
    counts = await batch.counts()
    assert (counts.total, counts.stored, counts.failed, counts.ended) == (4, 1, 3, True)
    assert await redis.xlen(keys.ALL_RESULTS) == 4
    assert await backlog(redis) == 0
    assert not await redis.exists(keys.record(batch.id))
    assert [(line["event"], line["fetches"]) for line in lines] == [("fetch.lost", 3)]


async def test_many_lost_fetches_end_in_pieces(
    fleet: Fleet, redis: Redis, lost: LostFetches, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis is not busy for long."""
    monkeypatch.setattr(lost_fetches, "FETCHES_AT_ONCE", 2)
    batch = await fleet.submit([url(f"/{number}") for number in range(5)])
    await lose(redis)
    await late(redis, batch)
    found = []
    for _ in range(4):
        await lost.end(await now_ms(redis))
        found.append(len(await results(redis, batch)))
    assert found == [2, 4, 5, 5]
    assert (await batch.counts()).ended


@pytest.mark.parametrize("found", [1, 0, -1, "inf", "nan", "x", "9" * 400, "1e308"])
async def test_a_last_deadline_of_another_program_ends_no_fetch(
    fleet: Fleet, redis: Redis, lost: LostFetches, found: str | int
) -> None:
    """No deadline precedes the submit."""
    batch = await fleet.submit([url("/x")])
    await LaneHold.begin(redis)
    await ask(redis, "HSET", keys.batch(batch.id), "last_deadline_ms", found)
    await lost.end(await now_ms(redis))
    assert not await results(redis, batch)


@pytest.mark.parametrize("why", ["waits", "has no record", "has results of older workers"])
async def test_fetches_that_may_end_otherwise_are_left_alone(
    fleet: Fleet, redis: Redis, lost: LostFetches, why: str
) -> None:
    """A lane ends its own fetches. Without a complete record the open ones are unknown."""
    batch = await fleet.submit(
        [Fetch(url=url("/1"), deadline_s=0.001), Fetch(url=url("/2"), deadline_s=0.001)]
    )
    if why != "waits":
        await lose(redis)
    if why == "has no record":
        await ask(redis, "HDEL", keys.batch(batch.id), "recorded")
    if why == "has results of older workers":
        await ask(redis, "HINCRBY", keys.batch(batch.id), "done", 1)
    if why == "waits":
        last_deadline_ms = int(await ask(redis, "HGET", keys.batch(batch.id), "last_deadline_ms"))
        while await now_ms(redis) <= last_deadline_ms:
            pass
    else:
        await late(redis, batch)
    await lost.end(await now_ms(redis))
    assert await results(redis, batch) == []


@pytest.mark.parametrize("key", [keys.batch, keys.results, keys.batch_lanes, keys.record])
async def test_a_conflicting_key_of_one_batch_stops_no_other(
    fleet: Fleet, redis: Redis, lost: LostFetches, key: Any
) -> None:
    """It is left to its repair."""
    batches = [await fleet.submit([url("/1")]) for _ in range(3)]
    await lose(redis)
    for batch in batches:
        await late(redis, batch)
    await redis.delete(key(batches[1].id))
    await redis.zadd(key(batches[1].id), {"x": 1})
    await ask(redis, "ZADD", keys.BATCHES, 0, b"\xff", 1, "x")
    await lost.end(await now_ms(redis))
    assert [len(await results(redis, batch)) for batch in (batches[0], batches[2])] == [1, 1]
    await redis.delete(key(batches[1].id))
