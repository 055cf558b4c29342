"""Submitting: fetches reach their lanes once and in order, and only lanes that need it are woken."""

import math
from collections.abc import AsyncIterator, Iterable, Iterator

import pytest
from redis.asyncio import Redis

from fetchfleet import Fetch, Fleet, InvalidFetchError, Priority, RedisFullError
from fetchfleet.jobs import keys
from fetchfleet.jobs.client import submit
from fetchfleet.jobs.client.submit import CHUNK_FETCHES, Submitter
from fetchfleet.jobs.contract.entry import parse_entry
from fetchfleet.jobs.contract.fetch import MAX_FETCH_BYTES
from fetchfleet.jobs.notifications import LaneNotification
from fetchfleet.jobs.scripts import submission
from fetchfleet.jobs.scripts.submission import MAX_DUE_NOTIFICATIONS
from tests.support.lanes import (
    BATCH_ID,
    HOUR_MS,
    LANE,
    LaneHold,
    ask,
    everything,
    fields,
    notifications,
    now_ms,
    paths,
    retried,
    state,
    url,
    waiting,
)

OTHER = "b.example"


class FailedProducerError(Exception):
    """The death of a producer."""


async def generation(redis: Redis, lane: str = LANE) -> int:
    return int((await fields(redis, lane))["generation"])


async def due_in_ms(redis: Redis, lane: str = LANE) -> float:
    return int((await fields(redis, lane))["due_ms"]) - await now_ms(redis)


async def shut_for_an_hour(fleet: Fleet, redis: Redis) -> int:
    """Leave a waiting fetch in a lane in a cool-down; return its end."""
    await fleet.submit([url("/before")])
    until_ms = await now_ms(redis) + HOUR_MS
    await (await LaneHold.begin(redis)).release(shut_until_ms=until_ms)
    return until_ms


async def test_fetches_are_grouped_by_lane_and_priority(fleet: Fleet, redis: Redis) -> None:
    """Every host has its lists, one for each priority, in the order of submission."""
    await fleet.submit(
        [
            url("/1"),
            Fetch(url=url("/2"), priority=Priority.LOW),
            url("/3", OTHER),
            Fetch(url=url("/4"), priority=Priority.HIGH),
            url("/5"),
        ]
    )
    assert paths(await waiting(redis, "high")) == ["/4"]
    assert paths(await waiting(redis, "normal")) == ["/1", "/5"]
    assert paths(await waiting(redis, "low")) == ["/2"]
    assert paths(await waiting(redis, "normal", OTHER)) == ["/3"]


@pytest.mark.parametrize(
    ("origin", "lane"),
    [("http://a.example:8080", "a.example"), ("https://A.example", "a.example"), ("http://[::1]:80", "::1")],
)
async def test_a_lane_is_a_host(fleet: Fleet, redis: Redis, origin: str, lane: str) -> None:
    """Scheme, port and spelling make no other lane."""
    await fleet.submit([f"{origin}/x"])
    assert paths(await waiting(redis, lane=lane)) == ["/x"]


async def test_the_deadline_counts_from_submit_by_the_clock_of_redis(fleet: Fleet, redis: Redis) -> None:
    """An element holds the absolute time at which its fetch must have ended."""
    before_ms = await now_ms(redis)
    batch = await fleet.submit([Fetch(url=url("/x"), deadline_s=60, meta={"any": 1})])
    (found,) = map(parse_entry, await waiting(redis))
    assert before_ms <= found.submitted_ms <= await now_ms(redis)
    assert found.batch_id == batch.id
    assert found.fetch.meta == {"any": 1}


async def test_all_of_a_large_batch_arrives(fleet: Fleet, redis: Redis) -> None:
    """100,000 fetches of one call wait in their lanes, each once."""
    count, hosts = 100_000, 7
    batch = await fleet.submit(url(f"/{i}", f"h{i % hosts}.example") for i in range(count))
    lengths = [await ask(redis, "LLEN", keys.waiting_at(f"h{i}.example", "normal")) for i in range(hosts)]
    assert sum(lengths) == count
    assert max(lengths) - min(lengths) == 1
    assert (await batch.counts()).total == count


async def test_an_async_iterator_is_submitted_as_it_yields(fleet: Fleet, redis: Redis) -> None:
    """A producer may create its fetches during the submit."""

    async def made() -> AsyncIterator[str]:
        for path in ("/1", "/2"):
            yield url(path)

    await fleet.submit(made())
    assert paths(await waiting(redis)) == ["/1", "/2"]


async def test_an_empty_batch_has_ended(fleet: Fleet, redis: Redis) -> None:
    """It ends at once, and no lane is woken."""
    batch = await fleet.submit([])
    assert (await batch.counts()).ended
    assert sorted(await redis.keys("*")) == sorted([keys.batch(batch.id).encode(), keys.BATCHES.encode()])


async def test_a_batch_submitted_twice_changes_nothing(fleet: Fleet, redis: Redis) -> None:
    """A producer may repeat a submit with an unknown outcome."""
    await fleet.submit([url("/1"), url("/2")], batch_id=BATCH_ID)
    before = await everything(redis)
    await fleet.submit([url("/1"), url("/2")], batch_id=BATCH_ID)
    assert await everything(redis) == before


async def test_a_chunk_sent_twice_wakes_no_lane(redis: Redis) -> None:
    """The repetition after a lost reply has no effect."""
    woken: list[str] = []

    async def notify(wakes: Iterable[LaneNotification]) -> None:
        woken.extend(wake.lane for wake in wakes)

    submitter = Submitter(redis, notify)
    await submitter.submit([url("/1")], batch_id=BATCH_ID)
    assert woken == [LANE]
    await submitter.submit([url("/1")], batch_id=BATCH_ID)
    assert woken == [LANE]


async def test_a_submit_of_a_dead_producer_can_be_completed(fleet: Fleet, redis: Redis) -> None:
    """Submitting under the same ID again adds exactly the missing fetches."""
    count = 2 * CHUNK_FETCHES

    def dying() -> Iterator[str]:
        yield from (url(f"/{i}") for i in range(count - 1))
        raise FailedProducerError

    with pytest.raises(FailedProducerError):
        await fleet.submit(dying(), batch_id=BATCH_ID)
    assert not (await fleet.batch(BATCH_ID).counts()).sealed
    await fleet.submit([url(f"/{i}") for i in range(count)], batch_id=BATCH_ID)
    assert paths(await waiting(redis)) == [f"/{i}" for i in range(count)]
    assert (await fleet.batch(BATCH_ID).counts()).total == count


@pytest.mark.parametrize(
    "bad",
    [
        "ftp://a.example/",
        {"url": "http://a.example/", "colour": "red"},
        Fetch(url=url("/x"), meta=object()),
        Fetch(url=url("/x"), meta="x" * MAX_FETCH_BYTES),
    ],
    ids=["url", "unknown field", "meta that is no JSON", "too large"],
)
@pytest.mark.parametrize("place", [0, 1, CHUNK_FETCHES + 1])
async def test_a_list_with_a_bad_item_enqueues_nothing(
    fleet: Fleet, redis: Redis, place: int, bad: str | Fetch
) -> None:
    """The item is named, at any position, and Redis holds no key."""
    with pytest.raises(InvalidFetchError, match=rf"^item {place}: "):
        await fleet.submit([*[url("/good")] * place, bad])
    assert await redis.keys("*") == []


async def test_a_full_redis_accepts_all_of_a_chunk_or_nothing(fleet: Fleet, redis: Redis) -> None:
    """The producer gets an out-of-memory error, and may repeat the submit."""
    await redis.config_set("maxmemory", 1)
    try:
        with pytest.raises(RedisFullError, match="nothing was enqueued"):
            await fleet.submit([url("/1"), url("/2", OTHER)], batch_id=BATCH_ID)
    finally:
        await redis.config_set("maxmemory", 0)
    assert await redis.keys("*") == []


async def test_an_idle_lane_is_woken(fleet: Fleet, redis: Redis) -> None:
    """It is scheduled for now, and arq holds the notification of its generation."""
    await fleet.submit([url("/x")])
    assert await state(redis) == "scheduled"
    assert await due_in_ms(redis) <= 0
    assert list(await notifications(redis)) == [keys.notification_job_id(LANE, await generation(redis))]


async def test_each_lane_is_woken_once(fleet: Fleet, redis: Redis) -> None:
    """Many fetches of many priorities make one notification a lane."""
    await fleet.submit(
        Fetch(url=url("/x", lane), priority=priority) for lane in (LANE, OTHER) for priority in Priority
    )
    assert len(await notifications(redis)) == 2


async def test_only_some_of_many_lanes_are_notified(fleet: Fleet, redis: Redis) -> None:
    """All of them can be acquired by a worker that acquires one."""
    lanes = [f"{number}.example" for number in range(3 * MAX_DUE_NOTIFICATIONS)]
    await fleet.submit([url("/x", lane) for lane in lanes])
    assert {await state(redis, lane) for lane in lanes} == {"scheduled"}
    assert len(await notifications(redis)) == MAX_DUE_NOTIFICATIONS


async def test_the_later_chunks_of_a_submit_get_one_notification_each(
    fleet: Fleet, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The workers that the first chunk has woken look for the lanes of the others."""
    monkeypatch.setattr(submission, "WORKERS_LOOK_EVERY_S", math.inf)
    monkeypatch.setattr(submit, "CHUNK_FETCHES", 2 * MAX_DUE_NOTIFICATIONS)
    await fleet.submit([url("/x", f"{number}.example") for number in range(6 * MAX_DUE_NOTIFICATIONS)])
    assert len(await notifications(redis)) == MAX_DUE_NOTIFICATIONS + 2


async def test_a_lane_that_is_due_is_not_woken_again(fleet: Fleet, redis: Redis) -> None:
    """Its notification exists already."""
    await fleet.submit([url("/1")])
    first = await generation(redis)
    await fleet.submit([url("/2")])
    assert await generation(redis) == first


async def test_a_held_lane_is_not_woken(fleet: Fleet, redis: Redis) -> None:
    """Its owner finds the new fetch itself."""
    await fleet.submit([url("/1")])
    hold = await LaneHold.begin(redis)
    await fleet.submit([url("/2")])
    assert await state(redis) == "held"
    assert len(await notifications(redis)) == 1
    assert await hold.finish() == ["/1", "/2"]


async def test_a_lane_that_waits_for_a_retry_is_woken(fleet: Fleet, redis: Redis) -> None:
    """A lane that is due later, without a cool-down, has work now."""
    await fleet.submit([url("/1")])
    hold = await LaneHold.begin(redis)
    (element,) = (await hold.claim()).serialized
    await hold.settle(retried(element, 3600))
    await hold.release()
    before = await generation(redis)
    await fleet.submit([url("/2")])
    assert await generation(redis) > before
    assert await due_in_ms(redis) <= 0


async def test_a_lane_in_a_cool_down_is_not_woken(fleet: Fleet, redis: Redis) -> None:
    """A new fetch does not end the cool-down."""
    until_ms = await shut_for_an_hour(fleet, redis)
    before = await everything(redis)
    await fleet.submit([url("/x")])
    after = await everything(redis)
    lane = keys.lane(LANE).encode()
    assert after[lane] == {**before[lane], b"open": b"2"}
    assert int((await fields(redis))["due_ms"]) == until_ms


async def test_an_idle_lane_in_a_cool_down_is_scheduled_for_its_end(fleet: Fleet, redis: Redis) -> None:
    """A fetch submitted meanwhile waits until then."""
    await fleet.submit([url("/1")])
    hold = await LaneHold.begin(redis)
    until_ms = await now_ms(redis) + HOUR_MS
    (element,) = (await hold.claim()).serialized
    await hold.transfer(element, OTHER)
    assert await hold.release(shut_until_ms=until_ms) is None
    await fleet.submit([url("/2")])
    assert int((await fields(redis))["due_ms"]) == until_ms
    hand_off = (await notifications(redis))[keys.notification_job_id(LANE, await generation(redis))]
    assert abs(hand_off - until_ms) < 60_000


async def test_a_deadline_within_a_cool_down_wakes_the_lane(fleet: Fleet, redis: Redis) -> None:
    """A closed lane is due at the first deadline, so that no fetch outlives its own."""
    until_ms = await shut_for_an_hour(fleet, redis)
    await fleet.submit([Fetch(url=url("/x"), deadline_s=60)])
    due_ms = int((await fields(redis))["due_ms"])
    assert due_ms == parse_entry((await waiting(redis))[-1]).deadline_ms
    assert due_ms < until_ms
