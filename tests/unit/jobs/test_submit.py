"""A submit without Redis: the data it sends, the data it takes back, and its errors."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from itertools import pairwise
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import Redis

from fetchfleet import DeadLetter, DeadLetterFilter, Fetch
from fetchfleet.jobs.client import fleet as fleet_module
from fetchfleet.jobs.client import submit as chunk_module
from fetchfleet.jobs.client.fleet import dest_check
from fetchfleet.jobs.client.submit import Chunk, Fetchable, Receipt, chunks
from fetchfleet.jobs.contract.entry import parse_entry, serialize_new_entry, with_deadline
from fetchfleet.jobs.contract.fetch import Priority
from fetchfleet.jobs.contract.ids import fetch_id
from fetchfleet.jobs.contract.urls import lane_of_url
from fetchfleet.jobs.errors import InvalidFetchError
from fetchfleet.jobs.scripts import runner, submission
from fetchfleet.jobs.scripts.submission import BacklogCheck

BATCH = "0123456789abcdef"
EARLIER = ["a" * 16, "b" * 16]

MOST = 5
MOST_BYTES = 3000
LARGE_BYTES = 1000

HOSTS = st.sampled_from(["a.example", "b.example", "c.example"])
KEYS = st.none() | st.sampled_from("xyz")
FETCHES = st.lists(
    st.builds(
        lambda host, key, priority, size: Fetch(
            url=f"http://{host}/", key=key, priority=priority, method="POST", body="x" * size
        ),
        HOSTS,
        KEYS,
        st.sampled_from(list(Priority)),
        st.sampled_from([0, 1, LARGE_BYTES]),
    ),
    max_size=30,
)


def cut(fetches: list[Fetch]) -> list[Chunk]:
    """Return the chunks of a list, at sizes at which few fetches make many."""

    async def cutting() -> list[Chunk]:
        return [chunk async for chunk in chunks(BATCH, fetches)]

    with patch.multiple(chunk_module, CHUNK_FETCHES=MOST, CHUNK_BYTES=MOST_BYTES):
        return asyncio.run(cutting())


def sent(script: Callable[[Redis], Coroutine[Any, Any, Any]], reply: Any) -> tuple[list[str], list[Any]]:
    """Return the keys and arguments with which a script is called."""
    calls: list[tuple[list[str], list[Any]]] = []

    async def run(_: Redis, name: str, names: list[str], args: list[Any]) -> Any:
        calls.append((names, args))
        return reply

    with patch.object(runner, "run", run):
        asyncio.run(script(Redis()))
    return calls[0]


def submitted(chunk: Chunk) -> tuple[list[str], list[Any]]:
    """Return the keys and arguments of the groups and of the fetches with a key, as submit.lua reads them."""
    names, args = sent(
        lambda redis: submission.submit(
            redis,
            batch_id=BATCH,
            number=1,
            count=chunk.count,
            groups=chunk.groups,
            fingerprints=chunk.fingerprints,
            keyed=chunk.keyed,
            backlog=BacklogCheck(0, 0, 0, {}),
        ),
        [b"taken", 0, [], []],
    )
    return names[7:], args[12:]


def undone(chunk: Chunk, taken_ms: int) -> tuple[list[str], list[Any]]:
    """Return the same as undo.lua reads them."""
    names, args = sent(
        lambda redis: submission.undo(
            redis, batch_id=BATCH, groups=chunk.groups, keyed=chunk.keyed, taken_ms=taken_ms
        ),
        0,
    )
    return names[5:], args[1:]


def elements_of(chunk: Chunk) -> list[tuple[str, list[bytes]]]:
    """Return each group's lane and elements, read from the arguments as submit.lua does."""
    _, (groups, *rest) = submitted(chunk)
    found = []
    for _ in range(int(groups)):
        lane, count = str(rest[0]), int(rest[1])
        found.append((lane, [bytes(of) for of in rest[2 : 2 + count]]))
        rest = rest[2 + count :]
    assert int(rest[0]) * 2 == len(rest) - 1 - len(found)
    return found


@given(FETCHES)
def test_every_fetch_is_in_one_chunk_under_its_lane(fetches: list[Fetch]) -> None:
    """Each lane and priority keeps the order of the list, and each chunk has its counts per lane."""
    made = cut(fetches)
    sent = [
        (lane, parse_entry(with_deadline(of, 0)))
        for chunk in made
        for lane, group in elements_of(chunk)
        for of in group
    ]

    assert len(fetches) == sum(chunk.count for chunk in made)
    assert {fetch_id(BATCH, place): fetch for place, fetch in enumerate(fetches)} == {
        entry.id: entry.fetch for _, entry in sent
    }
    assert all(lane == lane_of_url(entry.fetch.url) for lane, entry in sent)
    assert Counter(lane for lane, _ in sent) == sum((chunk.lanes for chunk in made), Counter())
    for chunk in made:
        for _, group in elements_of(chunk):
            assert all(one < two for one, two in pairwise(group))


@given(FETCHES)
def test_no_chunk_is_too_large(fetches: list[Fetch]) -> None:
    """All chunks but the last are full, and none exceeds its size by more than one fetch."""
    made = cut(fetches)

    assert all(chunk.count == MOST or chunk.size_bytes >= MOST_BYTES for chunk in made[:-1])
    assert all(1 <= chunk.count <= MOST for chunk in made)
    assert all(chunk.size_bytes < MOST_BYTES + 2 * LARGE_BYTES for chunk in made)


@given(FETCHES, st.integers(0, 10**12))
def test_an_undo_takes_back_the_sent_elements(fetches: list[Fetch], now_ms: int) -> None:
    """Element for element, as Redis has completed it, and the IDs of those with a key."""
    for chunk in cut(fetches):
        names, (groups, *rest) = undone(chunk, now_ms)
        for _, group in elements_of(chunk):
            assert [len(group), *(with_deadline(of, now_ms) for of in group)] == rest[: 1 + len(group)]
            rest = rest[1 + len(group) :]
        assert int(groups) == len(elements_of(chunk))
        assert len(names) == 2 * int(groups) + len(rest)
        assert names == submitted(chunk)[0]


@given(st.integers(0, 10**12), st.none() | st.floats(0.001, 604800))
def test_a_placed_element_has_its_deadline(now_ms: int, deadline_s: float | None) -> None:
    """The allowed time, from the time of its arrival in Redis."""
    fetch = Fetch(url="http://a.example/", deadline_s=deadline_s)
    entry = parse_entry(with_deadline(serialize_new_entry(fetch_id(BATCH, 7), fetch), now_ms))

    assert (now_ms, now_ms + fetch.lifetime_ms) == (entry.submitted_ms, entry.deadline_ms)
    assert fetch == entry.fetch


@given(FETCHES, FETCHES)
def test_chunks_of_other_fetches_have_other_digests(one: list[Fetch], two: list[Fetch]) -> None:
    """Equal chunks have equal digests."""
    digests = [[chunk.digest() for chunk in cut(fetches)] for fetches in (one, two)]

    assert (one == two) == (digests[0] == digests[1])


@given(st.integers(0, 6), st.dictionaries(st.integers(0, 5), st.sampled_from([*EARLIER, BATCH])))
def test_a_receipt_has_an_id_for_every_item(count: int, repeated: dict[int, str]) -> None:
    """Its own, or that of the fetch with its key, and the batch that has all of them."""
    repeats = {
        fetch_id(BATCH, place): fetch_id(batch, 0) for place, batch in repeated.items() if place < count
    }
    receipt = Receipt(BATCH, count, repeats)
    batches = {of[:16] for of in receipt.ids}

    assert count == len(receipt.ids)
    assert all(
        repeats.get(fetch_id(BATCH, place), fetch_id(BATCH, place)) == of
        for place, of in enumerate(receipt.ids)
    )
    assert receipt.batch_to_follow == (batches.pop() if len(batches) == 1 else BATCH)


def letter(batch: str | None, host: str | None, reason: str, position: str) -> DeadLetter:
    """Return a dead letter with these fields."""
    of = fetch_id(batch, 0) if batch else None
    return DeadLetter(
        position=position, door="lane", reason=reason, note="", lane=host, id=of, fetch=None, text=""
    )


@given(
    st.none() | st.sampled_from(EARLIER),
    st.none() | st.sampled_from(["a", "b"]),
    st.none() | st.sampled_from(["tls", "dns"]),
    st.none() | st.sampled_from(["1-0", "2-0"]),
)
def test_a_letter_must_match_every_given_filter(
    batch: str | None, host: str | None, reason: str | None, position: str | None
) -> None:
    """Filters that are not given have no effect. A letter without the field does not match."""
    which = DeadLetterFilter(batch, host, reason, position)

    assert DeadLetterFilter().matches(letter(batch, host, reason or "tls", position or "1-0"))
    assert which.matches(letter(batch, host, reason or "tls", position or "1-0"))
    assert (batch is None) == which.matches(letter("c" * 16, host, reason or "tls", position or "1-0"))
    assert (batch is None and host is None) == which.matches(
        letter(None, None, reason or "tls", position or "1-0")
    )
    assert (reason is None) == which.matches(letter(batch, host, "read", position or "1-0"))
    assert (position is None) == which.matches(letter(batch, host, reason or "tls", "3-0"))


async def streamed(items: list[Fetchable]) -> AsyncIterator[Fetchable]:
    """Yield the items from an asynchronous iterator."""
    for item in items:
        yield item


CLASHING: list[Fetchable] = [
    "http://a.example/",
    Fetch(url="http://a.example/", dest="x"),
    {"url": "http://b.example/", "dest": "x"},
]


@pytest.mark.parametrize("given_as", [list, tuple, iter, streamed])
def test_the_second_fetch_of_one_dest_is_refused_in_every_container(given_as: Callable[[Any], Any]) -> None:
    """The check reads a list before any enqueueing, and an iterator as its fetches arrive."""

    async def consumed() -> list[Chunk]:
        items = given_as(CLASHING)
        return [chunk async for chunk in chunks(BATCH, items, dest_check(items))]

    with pytest.raises(InvalidFetchError, match="item 2: dest: 'x' is also the dest of item 1"):
        asyncio.run(consumed())


def test_fetches_that_may_share_a_dest_are_passed_on() -> None:
    """Invalid fetches are passed on too: the checks of their fields give a better message."""
    items: list[Any] = [
        "http://a.example/",
        "http://a.example/",
        {"url": "http://a.example/", "dest": "x", "if_exists": "skip"},
        Fetch(url="http://a.example/", dest="x", if_exists="fail"),
        {"url": "http://a.example/", "dest": 7, "key": []},
        {"url": "http://a.example/", "dest": "y", "key": []},
        7,
    ]

    check = dest_check(items)
    for place, item in enumerate(items):
        check(place, item)


def test_an_iterator_is_compared_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be endless. Later dests are still compared with the first ones."""
    monkeypatch.setattr(fleet_module, "MAX_COMPARED_DESTS", 2)
    items = [Fetch(url="http://a.example/", dest=dest) for dest in ("a", "b", "c", "c")]

    check = dest_check(iter(items))
    for place, item in enumerate(items):
        check(place, item)
    with pytest.raises(InvalidFetchError, match="also the dest of item 0"):
        check(4, items[0])
