"""Oversized elements do not reach a worker, and the size of a claim is bounded."""

from typing import Any

import pytest
from redis.asyncio import Redis

from fetchfleet import Fetch, Fleet
from fetchfleet.jobs import keys
from fetchfleet.jobs.contract.entry import MAX_ENTRY_BYTES
from fetchfleet.jobs.scripts import runner, settlement
from fetchfleet.jobs.scripts.lanes import Early
from fetchfleet.jobs.scripts.runner import CLAIM_BYTES
from fetchfleet.worker.lanes.store import ALL, AcquiredLane, LaneStore
from tests.support.lanes import (
    LANE,
    LEASE_MS,
    LaneHold,
    ask,
    lapse,
    later,
    now_ms,
    paths,
    put,
    reclaim,
    retried,
    state,
    url,
    waiting,
)

LARGE = b"x" * (MAX_ENTRY_BYTES + 1)


async def letters(redis: Redis) -> list[tuple[bytes, bytes, int]]:
    """Return the lane, the note and the size of each dead letter."""
    rows = await ask(redis, "XRANGE", keys.DEAD, "-", "+")
    return [(row[b"lane"], row[b"note"], len(row[b"element"])) for _, row in rows]


async def test_an_oversized_element_becomes_a_short_dead_letter(fleet: Fleet, redis: Redis) -> None:
    """It holds at any place in the lane. The fetches around it keep their order."""
    await put(redis, LARGE)
    await fleet.submit([url("/1"), url("/2")])
    await put(redis, LARGE, where="returned")
    await redis.zadd(keys.later(LANE), {LARGE: 1})
    hold = await LaneHold.begin(redis)
    claim = await hold.claim(1)
    assert (paths(claim.serialized), claim.too_large, claim.waiting) == (["/1"], 3, 1)
    assert await later(redis) == {}

    await put(redis, LARGE)
    found = await hold.scan_queue(ALL)
    assert (paths(found.serialized), found.next_offset, found.too_large) == (["/2"], None, 1)

    await ask(redis, "HSET", keys.claimed(LANE), "large", LARGE)
    claims = await hold.store.claims(LANE, hold.held.token)
    assert (sorted(paths(claims.serialized)), claims.too_large) == (["/1", "/2"], 1)
    await ask(redis, "HSET", keys.claimed(LANE), "large", LARGE)
    await lapse(redis)
    await reclaim(redis)
    heir = await LaneHold.begin(redis, "heir")
    assert (sorted(paths(heir.held.orphans.serialized)), heir.held.orphans.too_large) == (["/1", "/2"], 1)
    found_letters = await letters(redis)
    assert len(found_letters) == 6
    assert {(lane, size) for lane, _, size in found_letters} == {(LANE.encode(), 1000)}
    assert f"{len(LARGE)} bytes".encode() in found_letters[0][1]


async def test_the_bytes_of_a_claim_are_bounded_and_the_rest_keeps_its_order(
    fleet: Fleet, redis: Redis
) -> None:
    """A claim has at least one fetch, of any size."""
    body = "x" * (1 << 20)
    count = CLAIM_BYTES // len(body) + 3
    await fleet.submit([Fetch(url=url(f"/{place}"), method="POST", body=body) for place in range(count)])
    hold = await LaneHold.begin(redis)
    before = paths(await waiting(redis))
    first = await hold.claim()
    assert sum(map(len, first.serialized)) <= CLAIM_BYTES
    assert first.waiting == count - len(first.serialized)
    assert [*paths(first.serialized), *paths(await waiting(redis))] == before
    rest = await hold.claim()
    assert paths([*first.serialized, *rest.serialized]) == before
    await hold.release()
    hold = await LaneHold.begin(redis)
    found, offset = list[bytes](), 0
    while offset is not None:
        taken = await hold.scan_queue(ALL, "returned", offset)
        assert sum(map(len, taken.serialized)) <= CLAIM_BYTES
        found += taken.serialized
        offset = taken.next_offset  # type: ignore[assignment]
    assert paths(found) == before
    assert await now_ms(redis)


async def large_fetches(fleet: Fleet, count: int) -> list[str]:
    """Submit a fetch with a request body of 1 MiB to each of some lanes; return their names."""
    lanes = [f"h{i}.example" for i in range(count)]
    await fleet.submit([Fetch(url=url("/", lane), method="POST", body="x" * (1 << 20)) for lane in lanes])
    return lanes


async def test_lanes_with_large_changes_are_settled_by_several_calls(
    fleet: Fleet, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One call would block Redis for long, and might have more bytes than Redis accepts from a client."""
    lanes = await large_fetches(fleet, 12)
    changes = []
    for lane in lanes:
        hold = await LaneHold.begin(redis, name=lane)
        (entry,) = (await hold.claim()).serialized
        changes.append(settlement.LaneChanges(lane, hold.held.token, None, [retried(entry, 60).change]))
    run_many, sizes = runner.run_many, list[int]()

    async def measured(redis: Redis, calls: list[runner.Call]) -> Any:
        sizes.extend(sum(len(arg) for arg in call.args if isinstance(arg, bytes)) for call in calls)
        return await run_many(redis, calls)

    monkeypatch.setattr(runner, "run_many", measured)
    replies = await settlement.settle_many(redis, changes, to_all_results=True)

    assert all(isinstance(reply, settlement.Settled) for reply in replies)
    assert [len(await later(redis, lane)) for lane in lanes] == [1] * len(lanes)
    assert max(sizes) < settlement.BYTES_A_CALL + (2 << 20)


async def test_the_bytes_of_orphans_that_one_call_returns_are_bounded(fleet: Fleet, redis: Redis) -> None:
    """The other lanes of dead workers stay due, for the next call."""
    lanes = await large_fetches(fleet, 12)
    for lane in lanes:
        await (await LaneHold.begin(redis, "dead", name=lane)).claim()
        await lapse(redis, lane)
    await reclaim(redis)
    store, found = LaneStore(redis, "heir", LEASE_MS), list[bytes]()
    while left := [lane for lane in lanes if await state(redis, lane) == "scheduled"]:
        acquired = await store.acquire_many(left, None)
        taken = [lane.orphans.serialized for lane in acquired if isinstance(lane, AcquiredLane)]
        assert CLAIM_BYTES >= sum(len(entry) for orphans in taken for entry in orphans[:-1])
        assert len(taken) * (1 << 20) <= CLAIM_BYTES + (1 << 20)
        assert [lane for lane in acquired if not isinstance(lane, AcquiredLane)] in (
            [],
            [Early(0)] * (len(left) - len(taken)),
        )
        found += [entry for orphans in taken for entry in orphans]
    assert len(found) == len(lanes)
