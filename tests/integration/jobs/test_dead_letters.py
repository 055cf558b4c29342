"""Dead letters: permanent failures with their reason, which can be retried or purged."""

from typing import Any

import pytest
from redis.asyncio import Redis

from fetchfleet import (
    DeadLetter,
    DeadLetterFilter,
    Fetch,
    Fleet,
    FleetFullError,
    Outcome,
    Priority,
    Reason,
    Result,
    UnknownBatchError,
)
from fetchfleet.jobs import keys
from fetchfleet.jobs.client import dead_letters as dead_module
from fetchfleet.jobs.contract.entry import parse_entry
from fetchfleet.jobs.scripts.batches import link_retry
from fetchfleet.worker.lanes import settler
from tests.support.lanes import LANE, LaneHold, ask, backlog, paths, stored, url, waiting

OTHER = "b.example"


async def fail(
    fleet: Fleet,
    redis: Redis,
    fetches: list[Fetch | str],
    reason: Reason = Reason.HTTP_STATUS,
    lane: str = LANE,
) -> str:
    """Fail the fetches of a batch permanently, as a worker does; return the batch."""
    batch = await fleet.submit(fetches)
    await fail_all(redis, reason, lane)
    return batch.id


async def fail_all(redis: Redis, reason: Reason = Reason.HTTP_STATUS, lane: str = LANE) -> None:
    """Fail everything that waits in the lane."""
    hold = await LaneHold.begin(redis, name=lane)
    for element in (await hold.claim(10_000)).serialized:
        of = parse_entry(element)
        result = Result(
            id=of.id,
            url=of.fetch.url,
            outcome=Outcome.FAILED,
            reason=reason,
            worker="test",
            note=f"note of {of.fetch.url}",
        )
        await hold.settle(settler.failed(result), settler.finished(result, lambda: None))
    await hold.release()


async def letters(fleet: Fleet, **which: Any) -> list[DeadLetter]:
    """Return these letters."""
    return [letter async for letter in fleet.dead.iter(DeadLetterFilter(**which))]


async def no_fetch(redis: Redis, text: str = "not JSON") -> None:
    """Return a letter of another door, without a fetch."""
    await redis.xadd(keys.DEAD, {"door": "inbox", "reason": "invalid", "note": "no fetch", "element": text})


async def test_a_failed_fetch_is_a_letter(fleet: Fleet, redis: Redis) -> None:
    """The letter has the reason, the exact error, the place, and the submitted fetch."""
    fetch = Fetch(url=url("/x"), method="POST", body="b", meta={"any": [1]}, priority=Priority.LOW)
    batch = await fail(fleet, redis, [fetch], Reason.POISON)
    (letter,) = await letters(fleet)

    assert ("lane", "poison", f"note of {url('/x')}") == (letter.door, letter.reason, letter.note)
    assert (LANE, f"{batch}-00000000", batch) == (letter.lane, letter.id, letter.batch)
    assert fetch == letter.fetch


async def test_a_stored_fetch_is_not_a_dead_letter(fleet: Fleet, redis: Redis) -> None:
    """A cancelled fetch is not one either, because only failures become dead letters."""
    await fleet.submit([url("/x")])
    await (await LaneHold.begin(redis)).finish()
    batch = await fleet.submit([url("/y")])
    await batch.cancel()
    hold = await LaneHold.begin(redis)
    await hold.withdraw(batch)
    await hold.release()

    assert [] == await letters(fleet)


async def test_invalid_input_is_a_letter_too(fleet: Fleet, redis: Redis) -> None:
    """Shown as far as possible."""
    await no_fetch(redis, "é" * 5000)
    await ask(redis, "XADD", keys.DEAD, "*", "element", b"\xff\x80\x04")
    long, binary = await letters(fleet)

    assert ("inbox", "invalid", None, None) == (long.door, long.reason, long.fetch, long.batch)
    assert "é" * 2000 == long.text
    assert ("\ufffd\ufffd\x04", None) == (binary.text, binary.id)


async def test_letters_are_selected_by_batch_host_reason_and_position(fleet: Fleet, redis: Redis) -> None:
    """Each filter works alone and with others. Omitted filters have no effect."""
    one = await fail(fleet, redis, [url("/1"), url("/2")])
    two = await fail(fleet, redis, [url("/3", OTHER)], Reason.TLS, OTHER)
    await fail(fleet, redis, [url("/4")], Reason.TLS)
    await no_fetch(redis)
    every = await letters(fleet)
    first, second, third, fourth, invalid = every

    assert [first, second] == await letters(fleet, batch=one)
    assert [third] == await letters(fleet, host=OTHER)
    assert [third, fourth] == await letters(fleet, reason="tls")
    assert [invalid] == await letters(fleet, reason="invalid")
    assert [second] == await letters(fleet, position=second.position)
    assert [third] == await letters(fleet, batch=two, host=OTHER, reason="tls", position=third.position)
    assert [] == await letters(fleet, batch=one, reason="tls")
    assert [] == await letters(fleet, position="0-1")


async def test_a_retry_is_a_new_fetch(fleet: Fleet, redis: Redis) -> None:
    """The same request in a new batch, with its full time. Its letter is deleted."""
    old = await fail(
        fleet, redis, [Fetch(url=url("/1"), meta=1, priority=Priority.HIGH), Fetch(url=url("/2"))]
    )
    done = await fleet.dead.retry()
    (batch_id,) = done.batches

    assert (2, 0, []) == (done.fetches, done.left, await letters(fleet))
    assert batch_id != old
    assert ["/1"] == paths(await waiting(redis, "high"))
    assert ["/2"] == paths(await waiting(redis))
    (element,) = await waiting(redis, "high")
    assert (0, 1) == (parse_entry(element).attempts, parse_entry(element).fetch.meta)
    await (await LaneHold.begin(redis)).finish()
    assert (2, True) == (
        (await fleet.batch(batch_id).counts()).stored,
        (await fleet.batch(batch_id).counts()).ended,
    )
    assert 2 == (await fleet.batch(old).counts()).failed


async def test_only_selected_letters_are_retried(fleet: Fleet, redis: Redis) -> None:
    """The other letters stay."""
    await fail(fleet, redis, [url("/1")], Reason.TLS)
    await fail(fleet, redis, [url("/2")], Reason.DNS)
    done = await fleet.dead.retry(DeadLetterFilter(reason="dns"))

    assert 1 == done.fetches
    assert ["tls"] == [letter.reason for letter in await letters(fleet)]
    assert ["/2"] == paths(await waiting(redis))


async def test_a_letter_without_a_fetch_is_left(fleet: Fleet, redis: Redis) -> None:
    """It cannot be retried, and is counted."""
    await no_fetch(redis)
    await fail(fleet, redis, [url("/1")])
    await no_fetch(redis)
    done = await fleet.dead.retry()

    assert (1, 2) == (done.fetches, done.left)
    assert ["invalid", "invalid"] == [letter.reason for letter in await letters(fleet)]


async def test_a_retry_of_no_letter_makes_no_batch(fleet: Fleet, redis: Redis) -> None:
    """It does not even make an empty batch."""
    await no_fetch(redis)
    done = await fleet.dead.retry()

    assert (0, [], 1) == (done.fetches, done.batches, done.left)
    assert [keys.DEAD.encode()] == await redis.keys("*")


async def test_a_retry_ignores_the_old_key(fleet: Fleet, redis: Redis) -> None:
    """The failed fetch still has the key. The retry is a new fetch, and shows the key."""
    failed = await fail(fleet, redis, [Fetch(url=url("/x"), key="k")])
    await fleet.dead.retry()
    repeated = await fleet.submit([Fetch(url=url("/x"), key="k")])

    assert ["/x"] == paths(await waiting(redis))
    assert [f"{failed}-00000000"] == repeated.ids
    assert ["k"] == [parse_entry(element).fetch.key for element in await waiting(redis)]


async def test_a_batch_names_the_batches_of_its_retries_and_they_name_its_fetches(
    fleet: Fleet, redis: Redis
) -> None:
    """Each new batch belongs to one old batch, whose counts stay. A retry may be retried."""
    one = await fail(fleet, redis, [url("/1"), url("/2")])
    two = await fail(fleet, redis, [url("/3", OTHER)], Reason.TLS, OTHER)
    before = await fleet.batch(one).counts()
    first = await fleet.dead.retry()
    of_one, of_two = [await fleet.batch(old).retried_as() for old in (one, two)]
    elements = [*await waiting(redis), *await waiting(redis, lane=OTHER)]
    await fail_all(redis)
    again = await fleet.dead.retry(DeadLetterFilter(host=LANE))
    listed = {batch.id: batch.retried_as for batch in await fleet.batches()}

    assert first.batches == [of_one[0].id, of_two[0].id]
    assert [1, 1] == [len(of_one), len(of_two)]
    assert [f"{one}-00000000", f"{one}-00000001", f"{two}-00000000"] == [
        parse_entry(element).retry_of for element in elements
    ]
    assert [of_one[0].id, of_one[0].id, of_two[0].id] == [
        parse_entry(element).batch_id for element in elements
    ]
    assert before == await fleet.batch(one).counts()
    assert again.batches == [batch.id for batch in await of_one[0].retried_as()]
    assert listed == {
        one: [of_one[0].id],
        two: [of_two[0].id],
        of_one[0].id: again.batches,
        of_two[0].id: [],
        again.batches[0]: [],
    }


async def test_a_batch_that_is_retried_in_parts_names_each_once(fleet: Fleet, redis: Redis) -> None:
    """The batches are in the order of the retries, and a repeated link changes nothing."""
    old = await fail(fleet, redis, [url("/1"), url("/2")])
    first, second = await letters(fleet)
    new = [
        batch
        for letter in (first, second)
        for batch in (await fleet.dead.retry(DeadLetterFilter(position=letter.position))).batches
    ]
    ttl_ms = await redis.pttl(keys.batch(old))
    linked = await link_retry(redis, batch_id=old, retried_as=new)

    assert linked
    assert new == [batch.id for batch in await fleet.batch(old).retried_as()]
    assert 2 == len(set(new))
    assert 0 < await redis.pttl(keys.batch(old)) <= ttl_ms


async def test_a_retry_of_an_expired_batch_leaves_nothing_behind(fleet: Fleet, redis: Redis) -> None:
    """No key of the old batch is created."""
    old = await fail(fleet, redis, [url("/1")])
    await redis.delete(keys.batch(old))
    done = await fleet.dead.retry()

    assert 1 == done.fetches
    assert not await redis.exists(keys.batch(old))
    with pytest.raises(UnknownBatchError):
        await fleet.batch(old).retried_as()


class CrashError(Exception):
    """The crash of the process."""


@pytest.fixture
def crashing(monkeypatch: pytest.MonkeyPatch, redis: Redis) -> pytest.MonkeyPatch:
    """Crash before letters are deleted."""

    async def crash(*_: object) -> None:
        raise CrashError

    monkeypatch.setattr(Redis, "xdel", crash)
    return monkeypatch


@pytest.mark.parametrize("pieces", [500, 3, 1])
@pytest.mark.parametrize("meanwhile", ["nothing", "a new letter", "the oldest gone", "a new one in front"])
async def test_a_retry_that_crashed_may_be_repeated(
    fleet: Fleet, redis: Redis, crashing: pytest.MonkeyPatch, pieces: int, meanwhile: str
) -> None:
    """The crash precedes the deletion. Each letter is still one fetch, with any changes since."""
    crashing.setattr(dead_module, "READ_COUNT", pieces)
    await no_fetch(redis)
    await fail(fleet, redis, [url(f"/{place}") for place in range(7)])
    with pytest.raises(CrashError):
        await fleet.dead.retry()
    crashing.undo()
    crashing.setattr(dead_module, "READ_COUNT", 4)
    if meanwhile == "a new letter":
        await ask(redis, "XADD", keys.DEAD, "*", "element", (await waiting(redis))[0].replace(b"/0", b"/7"))
    if meanwhile == "the oldest gone":
        await redis.xtrim(keys.DEAD, maxlen=7, approximate=False)
    if meanwhile == "a new one in front":
        await ask(redis, "XADD", keys.DEAD, "*", "element", b"no fetch")
    done = await fleet.dead.retry()

    expected = [f"/{place}" for place in range(8 if meanwhile == "a new letter" else 7)]
    assert expected == sorted(paths(await waiting(redis)))
    assert len(expected) == done.fetches
    assert set(done.batches) == {parse_entry(element).batch_id for element in await waiting(redis)}
    assert all(letter.fetch is None for letter in await letters(fleet))


async def test_a_fetch_that_fails_again_is_not_retried_endlessly(
    fleet: Fleet, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A retry takes the letters that existed at its start."""
    monkeypatch.setattr(dead_module, "READ_COUNT", 2)
    await fail(fleet, redis, [url(f"/{place}") for place in range(6)])
    xdel = Redis.xdel

    async def fails_at_once(*args: Any) -> Any:
        await fail_all(redis)
        return await xdel(*args)

    monkeypatch.setattr(Redis, "xdel", fails_at_once)
    done = await fleet.dead.retry()

    assert 6 == done.fetches
    assert [f"/{place}" for place in range(6)] == [
        letter.fetch.url.removeprefix(url("")) for letter in await letters(fleet) if letter.fetch
    ]
    monkeypatch.undo()
    assert 6 == (await fleet.dead.retry()).fetches
    assert 6 == await backlog(redis)


async def test_a_retry_without_room_loses_nothing(redis_url: str, fleet: Fleet, redis: Redis) -> None:
    """The letters stay until their fetches are enqueued."""
    await fail(fleet, redis, [url("/1"), url("/2")])
    await fleet.submit([url("/waits")])
    async with Fleet(redis_url, max_backlog=2) as limited:
        with pytest.raises(FleetFullError):
            await limited.dead.retry()

    assert 2 == len(await letters(fleet))
    assert ["/waits"] == paths(await waiting(redis))


async def test_purged_letters_are_deleted(fleet: Fleet, redis: Redis) -> None:
    """The selected ones, or all. No fetch is enqueued."""
    await fail(fleet, redis, [url("/1"), url("/2")], Reason.TLS)
    await fail(fleet, redis, [url("/3")])
    await no_fetch(redis)

    assert 0 == await fleet.dead.purge(DeadLetterFilter(host=OTHER))
    assert 2 == await fleet.dead.purge(DeadLetterFilter(reason="tls"))
    assert ["http_status", "invalid"] == [letter.reason for letter in await letters(fleet)]
    assert 2 == await fleet.dead.purge()
    assert ([], 0) == (await letters(fleet), await backlog(redis))
    assert 0 == await fleet.dead.purge()


async def test_more_letters_than_one_read_are_processed(fleet: Fleet, redis: Redis) -> None:
    """Read, retried and deleted in pieces."""
    count = 1203
    batch = await fail(fleet, redis, [url(f"/{place}") for place in range(count)])
    assert [f"{batch}-{place:08x}" for place in range(count)] == [
        letter.id for letter in await letters(fleet)
    ]
    done = await fleet.dead.retry(DeadLetterFilter(host=LANE))

    assert (count, 3, count) == (done.fetches, len(done.batches), await backlog(redis))
    assert [f"/{place}" for place in range(count)] == paths(await waiting(redis))
    await fail_all(redis)
    assert count == await fleet.dead.purge()


async def test_the_number_of_letters_is_bounded(
    fleet: Fleet, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newest are kept. Redis trims in blocks of a hundred."""
    monkeypatch.setattr(keys, "DEAD_LENGTH", 300)
    batch = await fail(fleet, redis, [url(f"/{place}") for place in range(700)])
    left = [letter.id for letter in await letters(fleet)]

    assert 300 <= len(left) < 500
    assert [f"{batch}-{place:08x}" for place in range(700)][-len(left) :] == left


async def test_a_failure_settled_twice_is_one_letter(fleet: Fleet, redis: Redis) -> None:
    """A settlement whose reply was lost has no effect the second time, and its letter neither."""
    await fleet.submit([url("/x"), url("/y")])
    hold = await LaneHold.begin(redis)
    one, two = (await hold.claim()).serialized
    of = parse_entry(one)
    result = Result(id=of.id, url=of.fetch.url, outcome=Outcome.FAILED, reason=Reason.TLS, worker="test")
    for _ in range(2):
        await hold.settle(settler.failed(result), settler.finished(result, lambda: None), stored(two))
    await hold.release()

    assert [of.id] == [letter.id for letter in await letters(fleet)]
