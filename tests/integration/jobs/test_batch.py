"""A batch as its producer sees it: its progress, and each result once."""

import asyncio

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import Redis

from fetchfleet import Batch, Counts, Fleet, InvalidFetchError, RedisSetupError, UnknownBatchError
from fetchfleet.jobs import keys
from fetchfleet.jobs.client import batch as batch_module
from fetchfleet.jobs.client.batch import ReadPlaces
from fetchfleet.jobs.contract.result import decode_result
from tests.support.lanes import BATCH_ID, LaneHold, ask, results, stored, url
from tests.support.waiting import wait_until


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Poll for results often."""
    monkeypatch.setattr(batch_module, "READ_BLOCK_MS", 20)


@pytest.fixture
def short_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Return few results a read, so that there are many reads."""
    monkeypatch.setattr(batch_module, "READ_COUNT", 3)


async def finished(fleet: Fleet, redis: Redis, count: int) -> Batch:
    """Return a batch with all its results."""
    batch = await fleet.submit([url(f"/{i}") for i in range(count)])
    await (await LaneHold.begin(redis)).finish()
    return batch


async def read(batch: Batch, *, trim: bool = False) -> list[str]:
    return [result.url async for result in batch.results(trim=trim)]


def urls(count: int) -> list[str]:
    return [url(f"/{i}") for i in range(count)]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 6, 7])
async def test_each_result_is_read_once_in_order(
    fleet: Fleet, redis: Redis, short_reads: None, count: int
) -> None:
    """It holds with any number of results a read."""
    assert await read(await finished(fleet, redis, count)) == urls(count)


@pytest.mark.parametrize("count", [1, 3, 4, 7])
async def test_pages_hold_each_result_once_and_trim_what_was_returned(
    fleet: Fleet, redis: Redis, short_reads: None, count: int
) -> None:
    """Foreign entries of the stream are in no page."""
    batch = await finished(fleet, redis, count)
    rows = await redis.xrange(keys.results(batch.id))
    await redis.xadd(keys.results(batch.id), {"q": "x"})
    await redis.xadd(keys.results(batch.id), rows[0][1])

    reader = batch.results(trim=True)
    read: list[str] = []
    while page := await reader.page():
        assert await redis.xlen(keys.results(batch.id)) == count + 2 - len(read)
        read += [item.result.url for item in page]
        assert page[-1].position == rows[len(read) - 1][0].decode()
    assert read == urls(count)
    assert await reader.page() == []
    assert await redis.xlen(keys.results(batch.id)) == 0


async def test_a_page_has_the_json_of_valid_results_one_a_line(fleet: Fleet, redis: Redis) -> None:
    """A field of a newer worker stays. White space that another program has added goes."""
    batch = await finished(fleet, redis, 3)
    first, second, third = [fields[b"r"] for _, fields in await redis.xrange(keys.results(batch.id))]
    await redis.xtrim(keys.results(batch.id), maxlen=0, approximate=False)
    newer = first[:-1] + b',"newer":[1]}'
    spread = msgspec.json.format(second, indent=1)
    wrong = third.replace(b'"stored"', b'"lost"')
    for text in (newer, spread, wrong, third[:-1], third):
        await redis.xadd(keys.results(batch.id), {"r": text})

    page = await batch.results().page()

    assert b"\n" in spread
    assert [item.text for item in page] == [newer, second, third]
    assert [item.result for item in page] == [decode_result(text) for text in (first, second, third)]


async def test_a_reader_asks_for_the_counts_only_when_the_end_may_be_near(
    fleet: Fleet, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A short page does not mean the end while more results are due."""
    asked: list[int] = []
    counts = Batch.counts

    async def counted(batch: Batch) -> Counts:
        asked.append(1)
        return await counts(batch)

    batch = await fleet.submit(urls(9))
    monkeypatch.setattr(Batch, "counts", counted)
    reader = batch.results()
    for _ in range(3):
        await (await LaneHold.begin(redis)).finish(2)
        assert len(await reader.page()) == 2

    assert len(asked) == 1
    assert 0 < reader.due <= 3


async def test_a_repeated_result_is_left_out(fleet: Fleet, redis: Redis, short_reads: None) -> None:
    """A Redis that lost its last writes gets the results of these fetches a second time."""
    batch = await finished(fleet, redis, 7)
    rows = await redis.xrange(keys.results(batch.id))
    for _, fields in [*rows[:4], *rows[6:]]:
        await redis.xadd(keys.results(batch.id), fields)

    reader = batch.results()
    assert [result.url async for result in reader] == urls(7)
    last, _ = (await redis.xrevrange(keys.results(batch.id), count=1))[0]
    assert reader.position == last.decode()


async def test_rows_without_a_result_of_the_batch_are_left_out(
    fleet: Fleet, redis: Redis, short_reads: None
) -> None:
    """Another program has written them, among them the result of another batch."""
    other = await finished(fleet, redis, 1)
    [(_, foreign)] = await redis.xrange(keys.results(other.id))
    batch = await finished(fleet, redis, 5)
    first, *more = await redis.xrange(keys.results(batch.id))
    await redis.delete(keys.results(batch.id))
    no_results = ({"q": "x"}, {"r": ""}, {"r": "{}"}, {"r": b"\xff"}, {"r": "[" * 5000}, foreign)
    for fields in (first[1], *no_results, *(fields for _, fields in more)):
        await redis.xadd(keys.results(batch.id), fields)
    await redis.pexpire(keys.results(batch.id), keys.RESULTS_TTL_MS)

    assert [result.url async for result in batch.results()] == urls(5)


@given(st.lists(st.integers(0, 16**8 - 1) | st.integers(0, 70_000)))
def test_a_place_is_new_once(places: list[int]) -> None:
    """It holds in any order."""
    read_places = ReadPlaces()
    assert [read_places.add(place) for place in places] == [
        place not in places[:at] for at, place in enumerate(places)
    ]


async def test_results_can_be_read_again(fleet: Fleet, redis: Redis) -> None:
    """A read deletes nothing."""
    batch = await finished(fleet, redis, 3)
    assert await read(batch) == await read(batch) == urls(3)


async def test_another_process_reads_the_results(fleet: Fleet, redis: Redis, redis_url: str) -> None:
    """It needs the ID only."""
    batch = await finished(fleet, redis, 3)
    async with Fleet(redis_url) as other:
        assert await read(other.batch(batch.id)) == urls(3)


@pytest.mark.parametrize("count", [1, 3, 7])
async def test_trimmed_results_are_gone(fleet: Fleet, redis: Redis, short_reads: None, count: int) -> None:
    """Each is yielded once, and the stream is empty afterwards."""
    batch = await finished(fleet, redis, count)
    assert await read(batch, trim=True) == urls(count)
    assert await results(redis, batch) == []
    assert (await batch.counts()).stored == count


async def test_a_reader_that_stops_early_loses_nothing(fleet: Fleet, redis: Redis, short_reads: None) -> None:
    """Only results of completely consumed reads are trimmed."""
    batch = await finished(fleet, redis, 7)
    reader = batch.results(trim=True)
    seen = [await anext(reader) for _ in range(4)]
    assert [result.url for result in seen] == urls(7)[:4]
    assert [result.url for result in await results(redis, batch)] == urls(7)[3:]


async def test_results_are_read_as_they_arrive(fleet: Fleet, redis: Redis) -> None:
    """A reader that began before the first result ends after the last."""
    batch = await fleet.submit(urls(3))
    seen: list[str] = []

    async def reading() -> None:
        async for result in batch.results():
            seen.append(result.url)  # noqa: PERF401 - seen while it grows

    reader = asyncio.create_task(reading())
    hold = await LaneHold.begin(redis)
    for element in (await hold.claim()).serialized:
        so_far = len(seen)
        await hold.settle(stored(element))
        await wait_until(lambda: len(seen) == so_far + 1, "the result")  # noqa: B023 - awaited here
    await reader
    await hold.release()
    assert seen == urls(3)


@pytest.mark.parametrize("count", [1, 3, 7])
async def test_a_reader_continues_from_the_position_of_another(
    fleet: Fleet, redis: Redis, redis_url: str, short_reads: None, count: int
) -> None:
    """A new reader in any process yields each later result once, from every position."""
    batch = await finished(fleet, redis, count)
    async with Fleet(redis_url) as elsewhere:
        for taken in range(count + 1):
            reader = batch.results()
            before = [(await anext(reader)).url for _ in range(taken)]
            after = elsewhere.batch(batch.id).results(after=reader.position)
            assert urls(count) == before + [of.url async for of in after]


async def test_a_position_outlives_trimmed_results(fleet: Fleet, redis: Redis, short_reads: None) -> None:
    """A reader that trims may stop anywhere, and another may continue from its position."""
    batch = await finished(fleet, redis, 7)
    reader = batch.results(trim=True)
    before = [(await anext(reader)).url for _ in range(5)]
    after = batch.results(after=reader.position, trim=True)

    assert urls(7) == before + [of.url async for of in after]
    assert [] == await results(redis, batch)
    assert [] == [of async for of in batch.results(after=after.position)]
    assert [] == [of async for of in batch.results(after=reader.position)]


async def test_a_reader_at_the_end_waits_for_more(fleet: Fleet, redis: Redis) -> None:
    """Its position is that of the last result, not of the last read."""
    batch = await fleet.submit(urls(2))
    hold = await LaneHold.begin(redis)
    one, two = (await hold.claim()).serialized
    await hold.settle(stored(one))
    first = batch.results()
    assert url("/0") == (await anext(first)).url
    following = asyncio.create_task(read_after(batch, first.position))
    await hold.settle(stored(two))
    await hold.release()

    assert [url("/1")] == await following


async def read_after(batch: Batch, position: str) -> list[str]:
    return [of.url async for of in batch.results(after=position)]


async def test_a_reader_without_follow_stops_at_the_present_end(
    fleet: Fleet, redis: Redis, short_reads: None
) -> None:
    """It holds even if the batch has not ended, or there is no result yet."""
    batch = await fleet.submit(urls(9))
    assert [] == [of async for of in batch.results(follow=False)]
    hold = await LaneHold.begin(redis)
    await hold.settle(*(stored(element) for element in (await hold.claim(4)).serialized))
    reader = batch.results(follow=False)
    assert urls(9)[:4] == [of.url async for of in reader]
    await hold.settle(*(stored(element) for element in (await hold.claim()).serialized))
    await hold.release()

    later = batch.results(after=reader.position, follow=False)
    assert urls(9)[4:] == [of.url async for of in later]


async def test_wait_returns_the_counts_of_an_ended_batch(fleet: Fleet, redis: Redis) -> None:
    """`wait` returns once every fetch has its result."""
    batch = await fleet.submit(urls(2))
    waiter = asyncio.create_task(batch.wait())
    hold = await LaneHold.begin(redis)
    one, two = (await hold.claim()).serialized
    await hold.settle(stored(one))
    assert not waiter.done()
    await hold.settle(stored(two))
    counts = await waiter
    await hold.release()
    assert (counts.total, counts.stored, counts.done, counts.bytes) == (2, 2, 2, 6)


async def test_an_empty_batch_has_no_results(fleet: Fleet) -> None:
    """Reading it ends at once."""
    assert await read(await fleet.submit([])) == []


async def test_an_unknown_batch_raises(fleet: Fleet) -> None:
    """Never created, or expired: the message names both causes."""
    batch = fleet.batch(BATCH_ID)
    with pytest.raises(UnknownBatchError, match="it expired 24 h after"):
        await batch.counts()
    with pytest.raises(UnknownBatchError):
        await batch.wait()
    with pytest.raises(UnknownBatchError):
        await read(batch)
    with pytest.raises(UnknownBatchError):
        await anext(batch.results(follow=False))
    with pytest.raises(UnknownBatchError):
        await anext(batch.results(after="1-1"))


@pytest.mark.parametrize("batch_id", ["", "x", "0" * 15, "0" * 17, "G" * 16, "A" * 16, "0" * 16 + "\n"])
async def test_an_invalid_batch_id_is_refused(fleet: Fleet, batch_id: str) -> None:
    """A mistyped ID differs from an expired one."""
    with pytest.raises(ValueError, match="is not a batch ID"):
        fleet.batch(batch_id)


async def test_a_url_in_place_of_a_list_is_refused(fleet: Fleet, redis: Redis) -> None:
    """A string is not a list of fetches."""
    with pytest.raises(InvalidFetchError):
        await fleet.submit("http://a.example/")
    assert await ask(redis, "DBSIZE") == 0


async def test_batches_are_listed_the_newest_first(fleet: Fleet, redis: Redis) -> None:
    """Those with fetches, with their progress and the time of cancellation."""
    one = await fleet.submit(urls(2))
    await fleet.submit([])
    await redis.zadd(keys.BATCHES, {one.id: 1})
    two = await fleet.submit(urls(1))
    await one.cancel()
    newest, oldest = await fleet.batches()

    assert (two.id, None, 1) == (newest.id, newest.cancel_ms, newest.counts.total)
    assert (one.id, 2, True) == (oldest.id, oldest.counts.total, oldest.counts.sealed)
    assert oldest.cancel_ms
    assert oldest.cancel_ms >= oldest.created_ms
    assert [newest] == await fleet.batches(limit=1)


async def test_only_ids_are_named_as_retries_of_a_batch(fleet: Fleet, redis: Redis) -> None:
    """Another program may have written other text there."""
    batch = await fleet.submit([url("/a")])
    text = b"0123456789abcdef \xff x" + b"y" * 5000
    await redis.hset(keys.batch(batch.id), "retried_as", text)  # type: ignore[misc, arg-type]
    assert [again.id for again in await batch.retried_as()] == ["0123456789abcdef"]
    assert [of.retried_as for of in await fleet.batches()] == [["0123456789abcdef"]]


async def test_an_invalid_redis_url_is_refused() -> None:
    """The message names the valid forms."""
    with pytest.raises(RedisSetupError, match="redis://HOST:PORT"):
        Fleet("http://localhost")


async def test_a_fleet_may_be_closed_twice(redis_url: str) -> None:
    """Closing is always safe."""
    door = Fleet(redis_url)
    await door.submit([])
    await door.aclose()
    await door.aclose()
