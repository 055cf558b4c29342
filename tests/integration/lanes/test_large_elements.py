"""Oversized elements do not reach a worker, and the size of a claim is bounded."""

from redis.asyncio import Redis

from fetchfleet import Fetch, Fleet
from fetchfleet.jobs import keys
from fetchfleet.jobs.contract.entry import MAX_ENTRY_BYTES
from fetchfleet.jobs.scripts.runner import CLAIM_BYTES
from fetchfleet.worker.lanes.store import ALL
from tests.support.lanes import LANE, LaneHold, ask, lapse, later, now_ms, paths, put, reclaim, url, waiting

LARGE = b"x" * (MAX_ENTRY_BYTES + 1)


async def letters(redis: Redis) -> list[tuple[bytes, bytes, int]]:
    """Return the lane, the note and the size of each dead letter."""
    rows = await ask(redis, "XRANGE", keys.DEAD, "-", "+")
    return [(row[b"lane"], row[b"note"], len(row[b"element"])) for _, row in rows]


async def test_an_oversized_element_becomes_a_short_dead_letter(fleet: Fleet, redis: Redis) -> None:
    """At any place in the lane. The fetches around it keep their order."""
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
