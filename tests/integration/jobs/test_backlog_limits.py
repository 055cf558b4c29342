"""Backlog limits: a full fleet accepts no more, reports that and loses nothing; and their counts."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any

import pytest
from redis.asyncio import Redis

from fetchfleet import (
    BatchCancelledError,
    BatchExistsError,
    Fetch,
    Fleet,
    FleetFullError,
    RedisFullError,
)
from fetchfleet.jobs import keys
from fetchfleet.jobs.client import submit as submit_module
from fetchfleet.jobs.client.submit import Limits, Submitter
from fetchfleet.jobs.notifications import LaneNotification
from tests.support.lanes import (
    BATCH_ID,
    LANE,
    LaneHold,
    backlog,
    everything,
    open_in,
    paths,
    retried,
    state,
    stored,
    url,
    waiting,
)
from tests.support.waiting import wait_until

OTHER = "b.example"
CHUNK = 3


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make many chunks of few fetches, and poll often for room."""
    monkeypatch.setattr(submit_module, "CHUNK_FETCHES", CHUNK)
    monkeypatch.setattr(submit_module, "FULL_PAUSE_S", 0.01)


def urls(count: int, lane: str = LANE) -> list[str]:
    """Return that many URLs of a lane."""
    return [url(f"/{place}", lane) for place in range(count)]


async def settle(redis: Redis, count: int, hold: LaneHold | None = None) -> LaneHold:
    """Settle that many fetches of the lane."""
    hold = hold or await LaneHold.begin(redis)
    await hold.settle(*(stored(element) for element in (await hold.claim(count)).serialized))
    return hold


# Raise


async def test_a_full_fleet_accepts_no_part_of_a_list(redis_url: str, fleet: Fleet, redis: Redis) -> None:
    """The error names limit and backlog, and Redis is unchanged."""
    await fleet.submit(urls(3))
    before = await everything(redis)
    async with Fleet(redis_url, max_backlog=5) as limited:
        with pytest.raises(FleetFullError, match=r"the fleet has 3 .* limit is 5; nothing was") as caught:
            await limited.submit([*urls(1), *urls(2, OTHER)])

    assert 0 == caught.value.enqueued
    assert before == await everything(redis)


async def test_a_full_lane_refuses_the_whole_list(redis_url: str, fleet: Fleet, redis: Redis) -> None:
    """Fetches of lanes with room stay out too, and the lane is named."""
    await fleet.submit(urls(3))
    before = await everything(redis)
    async with Fleet(redis_url, max_lane_backlog=4) as limited:
        with pytest.raises(FleetFullError, match=rf"lane {LANE} has 3 .* limit is 4; nothing was"):
            await limited.submit([*urls(50, OTHER), *urls(2)])
        assert before == await everything(redis)
        await limited.submit([*urls(1), *urls(4, OTHER)])

    assert (4, 4) == (await open_in(redis), await open_in(redis, OTHER))


async def test_a_list_of_many_chunks_is_measured_whole(redis_url: str, fleet: Fleet, redis: Redis) -> None:
    """The first chunk would fit, the last would not: none is sent."""
    await fleet.submit(urls(1))
    before = await everything(redis)
    async with Fleet(redis_url, max_backlog=3 * CHUNK) as limited:
        with pytest.raises(FleetFullError):
            await limited.submit(urls(3 * CHUNK))
        assert before == await everything(redis)
        await limited.submit(urls(3 * CHUNK - 1))

    assert 3 * CHUNK == await backlog(redis)


async def test_an_iterator_keeps_its_earlier_fetches(redis_url: str, redis: Redis) -> None:
    """The error names the batch and the enqueued number. The rest can be submitted later."""
    async with Fleet(redis_url, max_backlog=2 * CHUNK + 1) as limited:
        with pytest.raises(FleetFullError, match=f"the first {2 * CHUNK} fetches are enqueued") as caught:
            await limited.submit(iter(urls(4 * CHUNK)))
        counts = await limited.batch(caught.value.batch_id).counts()

    assert 2 * CHUNK == caught.value.enqueued == counts.total == await backlog(redis)
    assert not counts.sealed
    assert urls(2 * CHUNK) == [url(path) for path in paths(await waiting(redis))]


async def test_an_interrupted_iterator_continues_under_its_id(redis_url: str, redis: Redis) -> None:
    """The same fetches under the same ID, once there is room, are enqueued exactly once."""
    async with Fleet(redis_url, max_backlog=CHUNK) as limited:
        with pytest.raises(FleetFullError):
            await limited.submit(iter(urls(2 * CHUNK)), batch_id=BATCH_ID)
        hold = await settle(redis, CHUNK)
        batch = await limited.submit(iter(urls(2 * CHUNK)), batch_id=BATCH_ID)
        await settle(redis, CHUNK, hold)
        counts = await batch.counts()

    assert (2 * CHUNK, True) == (counts.stored, counts.ended)
    await hold.release()


@pytest.mark.parametrize("limits", [{"max_backlog": 2}, {"max_lane_backlog": 2}], ids=str)
async def test_a_list_above_the_limit_is_accepted_by_an_empty_fleet(
    redis_url: str, redis: Redis, limits: dict[str, Any]
) -> None:
    """It would be refused forever otherwise."""
    async with Fleet(redis_url, **limits) as limited:
        await limited.submit(urls(CHUNK))
        with pytest.raises(FleetFullError):
            await limited.submit(urls(CHUNK))

    assert CHUNK == await backlog(redis)


async def test_claimed_and_postponed_fetches_count(redis_url: str, fleet: Fleet, redis: Redis) -> None:
    """Every fetch without a result counts, in any place."""
    await fleet.submit(urls(3))
    hold = await LaneHold.begin(redis)
    _, two, three = (await hold.claim()).serialized
    await hold.settle(stored(two), retried(three, 3600))
    async with Fleet(redis_url, max_backlog=2) as limited:
        with pytest.raises(FleetFullError, match="has 2 "):
            await limited.submit(urls(1))

    assert 2 == await open_in(redis)


# Wait


async def waits(task: "asyncio.Task[object]", asked: list[int]) -> None:
    """Wait until the task has found no room several more times."""
    enough = len(asked) + 3
    await wait_until(lambda: len(asked) >= enough, "more tries")
    assert not task.done()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count the refusals during a wait."""
    pauses: list[int] = []
    sleep = asyncio.sleep

    async def pause(for_s: float) -> None:
        if for_s == submit_module.FULL_PAUSE_S:
            pauses.append(1)
        await sleep(for_s)

    monkeypatch.setattr(asyncio, "sleep", pause)
    return pauses


@pytest.mark.parametrize("limits", [{"max_backlog": 5}, {"max_lane_backlog": 5}], ids=str)
@pytest.mark.parametrize("kind", [list, iter])
async def test_a_waiting_submit_continues_as_fetches_are_settled(
    redis_url: str,
    redis: Redis,
    asked: list[int],
    limits: dict[str, Any],
    kind: Callable[[list[str]], list[str]],
) -> None:
    """Chunk after chunk, never above the limit, for lists and iterators."""
    async with Fleet(redis_url, **limits) as limited:
        submitting = asyncio.create_task(limited.submit(kind(urls(3 * CHUNK)), when_full="wait"))
        await waits(submitting, asked)
        assert CHUNK == await backlog(redis)
        hold = await settle(redis, 1)
        await wait_until(lambda: _has(redis, 2 * CHUNK - 1), "the second chunk")
        await waits(submitting, asked)
        await settle(redis, CHUNK, hold)
        batch = await submitting
        assert 3 * CHUNK == (await batch.counts()).total
        assert (await batch.counts()).sealed
    await hold.finish()


async def _has(redis: Redis, count: int) -> bool:
    return await backlog(redis) == count


@pytest.mark.parametrize("limits", [{"max_backlog": 2}, {"max_lane_backlog": 2}], ids=str)
async def test_a_chunk_larger_than_the_limit_waits_for_an_empty_fleet(
    redis_url: str, redis: Redis, asked: list[int], limits: dict[str, Any]
) -> None:
    """It does not wait forever."""
    async with Fleet(redis_url, **limits) as limited:
        await limited.submit(urls(2))
        submitting = asyncio.create_task(limited.submit(urls(CHUNK), when_full="wait"))
        await waits(submitting, asked)
        hold = await settle(redis, 1)
        await waits(submitting, asked)
        await settle(redis, 1, hold)
        await submitting

    assert CHUNK == await backlog(redis)
    await hold.finish()


async def test_a_waiting_submit_ends_when_its_batch_is_cancelled(
    redis_url: str, redis: Redis, asked: list[int]
) -> None:
    """The wait would have no end."""
    async with Fleet(redis_url, max_backlog=CHUNK) as limited:
        submitting = asyncio.create_task(limited.submit(urls(2 * CHUNK), batch_id=BATCH_ID, when_full="wait"))
        await waits(submitting, asked)
        await limited.batch(BATCH_ID).cancel()
        with pytest.raises(BatchCancelledError):
            await submitting

    assert CHUNK == await backlog(redis)


# A full Redis


Meanwhile = Callable[[], Awaitable[object]]


@pytest.fixture
def full(redis_url: str, redis: Redis) -> Iterator[Callable[..., Submitter]]:
    """Return a Submitter whose Redis is full after that many chunks; `meanwhile` runs before that."""

    def submitter(after: int, meanwhile: Meanwhile | None = None) -> Submitter:
        taken: list[int] = []

        async def notify(wakes: Iterable[LaneNotification]) -> None:
            taken.append(1)
            if len(taken) == after:
                if meanwhile:
                    await meanwhile()
                await redis.config_set("maxmemory", 1)

        return Submitter(redis, notify)

    yield submitter
    with asyncio.Runner() as runner:
        runner.run(_make_room(redis_url))


async def _make_room(redis_url: str) -> None:
    async with Redis.from_url(redis_url) as client:
        await client.config_set("maxmemory", 0)


async def with_room(redis: Redis) -> None:
    """Give Redis memory again."""
    await redis.config_set("maxmemory", 0)


def keyed(count: int) -> list[Fetch]:
    """Return fetches with keys, of two lanes."""
    return [Fetch(url=at, key=f"k{place}") for place, at in enumerate([*urls(count), *urls(count, OTHER)])]


@pytest.mark.parametrize("chunks", [1, 2, 5])
async def test_a_list_that_exceeds_the_memory_of_redis_is_taken_back(
    redis: Redis, full: Callable[..., Submitter], chunks: int
) -> None:
    """No batch, element, key or count remains. Submitted again later, it is complete."""
    submitter = full(after=chunks)
    with pytest.raises(RedisFullError, match="nothing was enqueued") as caught:
        await submitter.submit(keyed(3 * CHUNK), batch_id=BATCH_ID)
    left = {name for name in await redis.keys("*") if not name.startswith((b"ff:lane:", b"ff:attention"))}

    assert 0 == caught.value.enqueued
    assert {keys.SERIAL.encode(), keys.BACKLOG.encode()} == left
    assert (0, 0, 0) == (await backlog(redis), await open_in(redis), await open_in(redis, OTHER))

    await with_room(redis)
    receipt = await submitter.submit(keyed(3 * CHUNK), batch_id=BATCH_ID)
    assert 6 * CHUNK == await backlog(redis) == len(set(receipt.ids))
    assert urls(3 * CHUNK) == [url(path) for path in paths(await waiting(redis))]


async def test_an_undo_keeps_earlier_fetches(
    fleet: Fleet, redis: Redis, full: Callable[..., Submitter]
) -> None:
    """Only the refused list is taken back, not its neighbours in the same lists."""
    await fleet.submit(urls(2))
    with pytest.raises(RedisFullError):
        await full(after=2, meanwhile=lambda: fleet.submit(urls(1))).submit(keyed(3 * CHUNK))

    assert ["/0", "/1", "/0"] == paths(await waiting(redis))
    assert 3 == await backlog(redis) == await open_in(redis)


async def test_an_undo_keeps_started_fetches(redis: Redis, full: Callable[..., Submitter]) -> None:
    """The error has their number. They end as a complete batch, and the rest may be submitted again."""
    holds: list[LaneHold] = []

    async def begin() -> None:
        holds.append(await LaneHold.begin(redis))
        await holds[0].claim(2)

    submitter = full(after=2, meanwhile=begin)
    items = [*urls(3 * CHUNK), *urls(CHUNK, OTHER)]
    with pytest.raises(RedisFullError, match=f"2 fetches of batch {BATCH_ID} stay") as caught:
        await submitter.submit(items, batch_id=BATCH_ID)
    await with_room(redis)

    assert (BATCH_ID, 2) == (caught.value.batch_id, caught.value.enqueued)
    assert 2 == await backlog(redis) == await open_in(redis)
    assert [] == await waiting(redis)
    with pytest.raises(BatchExistsError):
        await submitter.submit(items, batch_id=BATCH_ID)
    assert len(items) == (await submitter.submit(items)).count
    await holds[0].release()
    assert ["/0", "/1", *(f"/{place}" for place in range(3 * CHUNK))] == await (
        await LaneHold.begin(redis)
    ).finish()


async def test_a_batch_without_its_rest_ends_with_its_started_fetches(
    fleet: Fleet, redis: Redis, full: Callable[..., Submitter]
) -> None:
    """A waiting producer does not wait forever."""
    holds: list[LaneHold] = []

    async def begin() -> None:
        holds.append(await LaneHold.begin(redis))
        await settle(redis, 1, holds[0])
        await holds[0].claim(1)

    with pytest.raises(RedisFullError) as caught:
        await full(after=1, meanwhile=begin).submit(urls(2 * CHUNK))
    await with_room(redis)
    await holds[0].release()
    assert ["/1"] == await (await LaneHold.begin(redis)).finish()

    counts = await fleet.batch(caught.value.batch_id).counts()
    assert (2, 2, True) == (counts.total, counts.stored, counts.ended)
    assert (0, "idle") == (await backlog(redis), await state(redis))


async def test_an_undo_keeps_fetches_that_other_batches_refer_to(
    fleet: Fleet, redis: Redis, full: Callable[..., Submitter]
) -> None:
    """Another producer has got its `key`: that fetch stays, the others are removed."""
    repeats: list[str] = []

    async def repeat() -> None:
        repeats.extend((await fleet.submit([Fetch(url=url("/again"), key="k1")])).ids)

    with pytest.raises(RedisFullError, match="1 fetches of batch"):
        await full(after=1, meanwhile=repeat).submit(keyed(2 * CHUNK), batch_id=BATCH_ID)
    await with_room(redis)

    assert [f"{BATCH_ID}-00000001"] == repeats
    assert ["/1"] == paths(await waiting(redis))
    assert await redis.exists(keys.key("k1"))
    assert 0 == await redis.exists(keys.key("k0"), keys.key("k2"))
    await (await LaneHold.begin(redis)).finish()
    assert repeats == [of.id async for of in fleet.batch(BATCH_ID).results()]


async def test_a_redis_with_little_room_accepts_all_or_nothing(fleet: Fleet, redis: Redis) -> None:
    """Twenty megabytes do not fit into eight: the enqueued part is removed again."""
    await fleet.submit(urls(1))
    heavy = [Fetch(url=at, method="POST", body="x" * 500_000) for at in urls(40)]
    before = await redis.dbsize()
    used = (await redis.info("memory"))["used_memory"]
    await redis.config_set("maxmemory", used + (8 << 20))
    try:
        with pytest.raises(RedisFullError, match="nothing was enqueued"):
            await fleet.submit(heavy)
    finally:
        await with_room(redis)

    assert ["/0"] == paths(await waiting(redis))
    assert (1, before) == (await backlog(redis), await redis.dbsize())


async def test_a_full_redis_is_distinguished_from_a_full_fleet(
    redis: Redis, full: Callable[..., Submitter]
) -> None:
    """A lack of memory is not waited for as a limit is."""
    submitter = full(after=1)
    submitter._limits = Limits(fleet=100)
    with pytest.raises(RedisFullError):
        await submitter.submit(urls(2 * CHUNK), when_full="wait")

    assert 0 == await backlog(redis)
