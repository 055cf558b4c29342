"""A connection that breaks at any moment costs a call nothing: it has its effect exactly once."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import pytest
from redis.asyncio import Redis
from redis.exceptions import OutOfMemoryError

from fetchfleet import BatchLostError, DeadLetterFilter, Fetch, Fleet, RedisFullError
from fetchfleet.jobs import keys, patience
from fetchfleet.jobs.client import batch as batch_module
from fetchfleet.jobs.client import submit as submit_module
from fetchfleet.jobs.client.submit import Submitter
from fetchfleet.jobs.contract.ids import fetch_id
from fetchfleet.jobs.scripts import submission
from tests.support.cut_proxy import Lost, cut_proxy
from tests.support.lanes import BATCH_ID, LaneHold, ask, paths, results, stored, url, waiting

MOST_MESSAGES = 40
"""More than any call here exchanges with Redis."""


class DyingProducerError(Exception):
    """The death of a producer."""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use short pauses, and few fetches a chunk and a read."""
    monkeypatch.setattr(patience, "FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(submit_module, "CHUNK_FETCHES", 3)
    monkeypatch.setattr(batch_module, "READ_COUNT", 3)
    monkeypatch.setattr(batch_module, "READ_BLOCK_MS", 5)


async def at_every_message(
    redis: Redis, redis_url: str, lost: Lost, scene: Callable[[Fleet], Awaitable[None]]
) -> None:
    """Repeat the scene, each time with the next message lost, until none is."""
    for at in range(1, MOST_MESSAGES):
        await redis.flushall()
        warnings: list[str] = []
        async with cut_proxy(redis_url, lost, at) as line, Fleet(line.url, warn=warnings.append) as fleet:
            await scene(fleet)
            was_cut = line.was_cut
        assert len(warnings) <= 2
        if not was_cut:
            assert at > 2
            return
    raise AssertionError("the scene exchanges too many messages")


@pytest.fixture(params=list(Lost))
def lost(request: pytest.FixtureRequest) -> Lost:
    """Return the number of the lost message."""
    return Lost(request.param)


def urls(count: int) -> list[str]:
    return [url(f"/{i}") for i in range(count)]


@pytest.mark.parametrize("named", [True, False], ids=["named", "unnamed"])
@pytest.mark.parametrize("streamed", [True, False], ids=["iterator", "list"])
async def test_a_submit_enqueues_each_fetch_once(
    redis: Redis, redis_url: str, lost: Lost, *, named: bool, streamed: bool
) -> None:
    """Chunks are repeated internally: an iterator is consumed once."""

    async def scene(fleet: Fleet) -> None:
        fetches: list[str] | Iterator[str] = iter(urls(8)) if streamed else urls(8)
        batch = await fleet.submit(fetches, batch_id=BATCH_ID if named else None)
        assert [f"/{i}" for i in range(8)] == paths(await waiting(redis))
        counts = await batch.counts()
        assert (8, True) == (counts.total, counts.sealed)
        assert 8 == len(set(batch.ids))
        assert 8 == int(await ask(redis, "GET", keys.BACKLOG))

    await at_every_message(redis, redis_url, lost, scene)


async def test_a_fetch_with_a_key_is_enqueued_once(redis: Redis, redis_url: str, lost: Lost) -> None:
    """A repeated chunk finds its own keys and gets its own IDs."""

    async def scene(fleet: Fleet) -> None:
        batch = await fleet.submit([Fetch(url=url(f"/{i}"), key=f"k{i}") for i in range(4)])
        assert [fetch_id(batch.id, place) for place in range(4)] == batch.ids
        assert 4 == len(await waiting(redis))

    await at_every_message(redis, redis_url, lost, scene)


@pytest.mark.parametrize("trim", [True, False], ids=["trimmed", "kept"])
async def test_each_result_is_read_once(redis: Redis, redis_url: str, lost: Lost, *, trim: bool) -> None:
    """The reader continues at its position, and trims only yielded results."""

    async def scene(fleet: Fleet) -> None:
        async with Fleet(redis_url) as direct:
            batch = await direct.submit(urls(7))
        await (await LaneHold.begin(redis)).finish()
        seen = [result.url async for result in fleet.batch(batch.id).results(trim=trim)]
        assert urls(7) == seen
        assert (0 if trim else 7) == len(await results(redis, batch))

    await at_every_message(redis, redis_url, lost, scene)


async def test_a_cancel_cancels_once(redis: Redis, redis_url: str, lost: Lost) -> None:
    """All lanes receive it, and the counts arrive."""

    async def scene(fleet: Fleet) -> None:
        async with Fleet(redis_url) as direct:
            batch = await direct.submit([url("/1"), url("/2", "b.example")])
        counts = await fleet.batch(batch.id).cancel()
        assert (2, True) == (counts.total, counts.sealed)
        for lane in ("a.example", "b.example"):
            assert [batch.id.encode()] == list(await ask(redis, "SMEMBERS", keys.cancelled(lane)))

    await at_every_message(redis, redis_url, lost, scene)


async def test_dead_letters_are_retried_and_purged_once(redis: Redis, redis_url: str, lost: Lost) -> None:
    """Each letter becomes one fetch. A purge counts its deletions."""

    async def scene(fleet: Fleet) -> None:
        async with Fleet(redis_url) as direct:
            await direct.submit(urls(2))
        hold = await LaneHold.begin(redis)
        one, two = (await hold.claim()).serialized
        for number, element in enumerate((one, two)):
            fields = ("door", "lane", "reason", "http_status", "lane", "a.example", "id", element[:25])
            await ask(redis, "XADD", keys.DEAD, "*", *fields, "note", number, "element", element)
        await hold.settle(stored(one), stored(two))
        await hold.release()
        [first, _] = [letter async for letter in fleet.dead.iter()]
        retried = await fleet.dead.retry(DeadLetterFilter(position=first.position))
        assert (1, 1) == (retried.fetches, len(retried.batches))
        assert ["/0"] == paths(await waiting(redis))
        assert 1 == await fleet.dead.purge()
        assert 0 == await ask(redis, "XLEN", keys.DEAD)

    await at_every_message(redis, redis_url, lost, scene)


async def test_a_list_is_taken_back_whole(
    redis: Redis, redis_url: str, lost: Lost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis runs out of memory at the last chunk: the others are removed, even if a reply was lost."""
    really = submission.submit

    async def until_the_last(redis: Redis, **chunk: object) -> object:
        if chunk["last"]:
            raise OutOfMemoryError
        return await really(redis, **chunk)  # type: ignore[arg-type]

    monkeypatch.setattr(submission, "submit", until_the_last)

    async def scene(fleet: Fleet) -> None:
        with pytest.raises(RedisFullError, match="nothing was enqueued"):
            await fleet.submit(urls(8))
        assert [] == await waiting(redis)
        assert 0 == int(await ask(redis, "GET", keys.BACKLOG))
        assert [] == await fleet.batches()

    await at_every_message(redis, redis_url, lost, scene)


async def test_an_iterator_is_consumed_once(redis: Redis, redis_url: str) -> None:
    """Its items are not requested again when a chunk is repeated."""
    made = 0

    async def items() -> AsyncIterator[str]:
        nonlocal made
        for one in urls(7):
            made += 1
            yield one
            await asyncio.sleep(0)

    async with cut_proxy(redis_url, Lost.REPLY, 4) as line, Fleet(line.url, warn=print) as fleet:
        batch = await fleet.submit(items())
        assert line.was_cut
        assert 7 == made == (await batch.counts()).total


async def test_an_unnamed_submit_can_be_completed(redis: Redis, fleet: Fleet) -> None:
    """Under the ID of its batch, the same fetches add the missing ones."""

    def dying() -> Iterator[str]:
        yield from urls(7)
        raise DyingProducerError

    with pytest.raises(DyingProducerError):
        await fleet.submit(dying())
    [batch] = await fleet.batches()
    assert 6 == batch.counts.total
    done = await fleet.submit(urls(8), batch_id=batch.id)
    assert [f"/{i}" for i in range(8)] == paths(await waiting(redis))
    assert 8 == (await done.counts()).total


async def test_fetches_that_redis_has_lost_are_sent_again(redis: Redis) -> None:
    """After a failover that lost chunks, the client repeats a list, and the producer an iterator."""
    notified = 0

    async def notify(_: object) -> None:
        nonlocal notified
        notified += 1
        if notified == 2:
            await redis.flushall()

    await Submitter(redis, notify).submit(urls(8), batch_id=BATCH_ID)
    assert [f"/{i}" for i in range(8)] == paths(await waiting(redis))

    await redis.flushall()
    notified = 0
    with pytest.raises(BatchLostError, match="adds them"):
        await Submitter(redis, notify).submit(iter(urls(8)), batch_id=BATCH_ID)
    await Submitter(redis, notify).submit(iter(urls(8)), batch_id=BATCH_ID)
    assert [f"/{i}" for i in range(8)] == paths(await waiting(redis))
