"""The `key` of a fetch: a repeated request gets the existing fetch."""

import asyncio
import random
from contextlib import AsyncExitStack

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from fetchfleet import Fetch, Fleet, Submitted
from fetchfleet.jobs import keys
from fetchfleet.jobs.client.submit import CHUNK_FETCHES
from fetchfleet.jobs.contract.entry import parse_entry
from fetchfleet.jobs.contract.ids import batch_of
from tests.support.lanes import BATCH_ID, LANE, LaneHold, ask, backlog, everything, url, waiting
from tests.support.redis import flush
from tests.support.waiting import wait_until

DAY_S = 24 * 3600
ODD = [
    "a",
    " ",
    ":",
    "ff:batch:0",
    "*",
    "{x}",
    "é",
    "鍵",
    "👩‍💻",
    "'\"\\",
    "k" * 200,
    "+",
    "\u00a0",
    "\u202e",
]


def keyed(key: str | None, path: str = "/x", deadline_s: float | None = None) -> Fetch:
    """Return a fetch with that key."""
    return Fetch(url=url(path), key=key, deadline_s=deadline_s)


async def ids_waiting(redis: Redis) -> list[str]:
    """Return the IDs of the fetches that wait in the lane."""
    return [parse_entry(element).id for element in await waiting(redis)]


async def test_the_same_key_is_the_same_fetch(fleet: Fleet, redis: Redis) -> None:
    """A second batch without new fetches is the first batch, with its IDs."""
    first = await fleet.submit([keyed("k")])
    second = await fleet.submit([keyed("k", "/elsewhere")])

    assert [f"{first.id}-00000000"] == first.ids == second.ids == await ids_waiting(redis)
    assert first.id == second.id
    assert 1 == (await second.counts()).total == await backlog(redis)


async def test_a_repeated_key_yields_the_result_of_the_first_fetch(fleet: Fleet, redis: Redis) -> None:
    """It does so while the key exists, even after the result has arrived."""
    await fleet.submit([keyed("k", "/first")])
    await (await LaneHold.begin(redis)).finish()
    again = await fleet.submit([keyed("k", "/second")])

    assert [(again.ids[0], url("/first"))] == [(of.id, of.url) async for of in again.results()]


async def test_a_key_twice_in_a_list_is_one_fetch(fleet: Fleet, redis: Redis) -> None:
    """Each item has its ID, the repeated ones the same, and only enqueued ones are counted."""
    batch = await fleet.submit([keyed("a"), keyed(None), keyed("a"), keyed("b"), keyed("a")])
    one, two, three, four, five = batch.ids

    assert one == three == five
    assert [one, two, four] == await ids_waiting(redis)
    assert 3 == (await batch.counts()).total == await backlog(redis)
    await (await LaneHold.begin(redis)).finish()
    assert (await batch.counts()).ended


async def test_a_key_in_two_chunks_of_a_list_is_one_fetch(fleet: Fleet, redis: Redis) -> None:
    """Chunks find each other's keys."""
    items = [keyed("k"), *[keyed(None)] * (CHUNK_FETCHES - 1), keyed("k"), keyed("last")]
    batch = await fleet.submit(items)

    assert batch.ids[0] == batch.ids[CHUNK_FETCHES]
    assert len(items) - 1 == len(await ids_waiting(redis)) == (await batch.counts()).total


async def test_a_batch_of_old_and_new_has_ids_of_both(fleet: Fleet, redis: Redis) -> None:
    """It is a separate batch, which ends with its own fetches."""
    first, second = await fleet.submit([keyed("a")]), await fleet.submit([keyed("b")])
    mixed = await fleet.submit([keyed("a"), keyed("c"), keyed("b"), keyed(None)])

    assert [first.id, mixed.id, second.id, mixed.id] == [of[:16] for of in mixed.ids]
    assert 2 == (await mixed.counts()).total
    await (await LaneHold.begin(redis)).finish()
    assert {mixed.ids[1], mixed.ids[3]} == {of.id async for of in mixed.results()}


async def test_a_batch_with_nothing_new_of_two_others_has_ended(fleet: Fleet) -> None:
    """No single batch has all of them: the IDs name the batches of the results."""
    first, second = await fleet.submit([keyed("a")]), await fleet.submit([keyed("b")])
    both = await fleet.submit([keyed("a"), keyed("b")])

    assert [*first.ids, *second.ids] == both.ids
    assert both.id not in {first.id, second.id}
    assert (await both.counts()).ended


async def test_i29_racing_producers_make_one_fetch_of_a_key(redis_url: str, redis: Redis) -> None:
    """Many at once, each with all keys in another order: all get the same IDs."""
    names = [f"k{number}" for number in range(60)]
    async with AsyncExitStack() as doors:
        fleets = [await doors.enter_async_context(Fleet(redis_url)) for _ in range(8)]
        orders = [random.Random(seed).sample(names, len(names)) for seed in range(len(fleets))]
        made = await asyncio.gather(
            *(fleet.submit([keyed(k) for k in order]) for fleet, order in zip(fleets, orders, strict=True))
        )

    assigned = [dict(zip(order, batch.ids, strict=True)) for order, batch in zip(orders, made, strict=True)]
    assert [assigned[0]] * len(fleets) == assigned
    assert sorted(assigned[0].values()) == sorted(await ids_waiting(redis))
    assert len(names) == await backlog(redis)


async def test_i29_fifty_racing_producers_of_a_key_have_one_fetch_and_its_batch(
    redis_url: str, redis: Redis
) -> None:
    """All get its ID and a handle on the batch with its result."""
    async with AsyncExitStack() as doors:
        fleets = [await doors.enter_async_context(Fleet(redis_url)) for _ in range(50)]
        made = await asyncio.gather(*(fleet.submit([keyed("k")]) for fleet in fleets))
        (fetch,) = await ids_waiting(redis)
        assert {(fetch,)} == {tuple(batch.ids) for batch in made}
        assert {batch_of(fetch)} == {batch.id for batch in made}
        assert [1] * len(made) == [(await batch.counts()).total for batch in made]


async def test_racing_iterators_make_one_fetch_of_a_key(redis_url: str, redis: Redis) -> None:
    """Their many chunks are interleaved."""
    count = 2 * CHUNK_FETCHES + 7
    async with Fleet(redis_url) as one, Fleet(redis_url) as two:
        first, second = await asyncio.gather(
            one.submit(keyed(f"k{number}") for number in range(count)),
            two.submit(keyed(f"k{number}") for number in range(count)),
        )

    assert first.ids == second.ids
    assert sorted(first.ids) == sorted(await ids_waiting(redis))


async def test_a_repeated_list_has_the_same_ids(fleet: Fleet, redis: Redis) -> None:
    """After a lost reply, a producer repeats the submit under its batch ID, and nothing changes."""
    await fleet.submit([keyed("old")])
    items = [keyed("old"), keyed("a"), keyed(None), keyed("a")]
    first = await fleet.submit(items, batch_id=BATCH_ID)
    before = await everything(redis)
    second = await fleet.submit(items, batch_id=BATCH_ID)

    assert first.ids == second.ids
    assert (first.id, BATCH_ID) == (second.id, first.id)
    assert before == await everything(redis)


@pytest.mark.parametrize(
    ("deadline_s", "stands_s"), [(None, DAY_S), (60, DAY_S), (DAY_S, DAY_S), (3 * DAY_S, 3 * DAY_S)]
)
async def test_a_key_expires_after_a_day_or_the_deadline(
    fleet: Fleet, redis: Redis, deadline_s: float | None, stands_s: float
) -> None:
    """The later of the two, from the first submit. A repeat does not prolong it."""
    await fleet.submit([keyed("k", deadline_s=deadline_s)])
    await redis.pexpire(keys.key("k"), int(stands_s * 1000) - 60_000)
    await fleet.submit([keyed("k", deadline_s=deadline_s)])
    left_s = await redis.pttl(keys.key("k")) / 1000

    assert stands_s - 120 < left_s <= stands_s - 60


async def test_a_new_key_has_its_whole_time(fleet: Fleet, redis: Redis) -> None:
    """It is set in one step with the fetch."""
    await fleet.submit([keyed("short"), keyed("long", deadline_s=3 * DAY_S)])
    short, long = await redis.pttl(keys.key("short")), await redis.pttl(keys.key("long"))

    assert (DAY_S, 3 * DAY_S) == (round(short / 1000, -2), round(long / 1000, -2))


async def test_i29_an_expired_key_is_free(fleet: Fleet, redis: Redis) -> None:
    """The next fetch with it is a new one."""
    first = await fleet.submit([keyed("k")])
    await redis.pexpire(keys.key("k"), 1)
    await wait_until(lambda: _is_gone(redis, keys.key("k")), "the key to expire")
    second = await fleet.submit([keyed("k")])

    assert first.id != second.id
    assert [*first.ids, *second.ids] == await ids_waiting(redis)


async def _is_gone(redis: Redis, name: str) -> bool:
    return not await redis.exists(name)


@pytest.mark.parametrize("key", ODD)
async def test_a_key_may_be_any_text(fleet: Fleet, redis: Redis, key: str) -> None:
    """Its content has no meaning for Redis, and similar keys are different."""
    first = await fleet.submit([keyed(key), keyed("neighbour")])
    second = await fleet.submit([keyed(key)])

    assert first.ids[:1] == second.ids
    assert 2 == await ask(redis, "LLEN", keys.waiting_at(LANE, "normal"))


def test_every_submit_gets_the_fetches_of_its_keys(redis_url: str) -> None:
    """It holds for any lists with any keys: a dictionary gives the same."""

    @settings(max_examples=40, suppress_health_check=list(HealthCheck))
    @given(st.lists(st.lists(st.none() | st.sampled_from("abc"), max_size=5), max_size=4))
    def assigned(lists: list[list[str | None]]) -> None:
        flush(redis_url)
        batches = asyncio.run(_submitted(redis_url, lists))
        holders: dict[str, str] = {}
        for names, batch in zip(lists, batches, strict=True):
            own = [f"{batch._receipt.batch_id}-{place:08x}" for place in range(len(names))]
            want = [holders.setdefault(key, of) if key else of for key, of in zip(names, own, strict=True)]
            assert want == batch.ids

    assigned()


async def _submitted(redis_url: str, lists: list[list[str | None]]) -> list[Submitted]:
    async with Fleet(redis_url) as fleet:
        batches = [await fleet.submit([keyed(key) for key in names]) for names in lists]
        distinct = {of for batch in batches for of in batch.ids}
        assert sorted(distinct) == sorted(await ids_waiting(fleet._redis))
    return batches
