"""The life of a lane: acquisition, order of service, refusals, and release."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from fetchfleet import Fetch, Fleet, Priority
from fetchfleet.jobs import keys
from fetchfleet.jobs.contract.entry import parse_entry, serialize_entry
from fetchfleet.jobs.notifications import GRACE_MS
from fetchfleet.jobs.scripts.lanes import Early, Enough
from fetchfleet.worker.gate.state import GateState
from fetchfleet.worker.lanes.store import ALL, EXPIRED, AcquiredLane, LaneLostError, LaneStore
from fetchfleet.worker.local.run import announce
from tests.support.lanes import (
    BATCH_ID,
    HOUR_MS,
    LANE,
    LEASE_MS,
    NEVER_MS,
    LaneHold,
    ask,
    attention_ms,
    claimed,
    entry,
    everything,
    fields,
    interrupted,
    lapse,
    later,
    now_ms,
    paths,
    put,
    reclaim,
    retried,
    run_lane_lifecycle,
    state,
    stored,
    url,
    waiting,
)

OTHER = "b.example"
GATE = GateState(failures=3, paced_ms=1.5)


@pytest.fixture
def store(redis: Redis) -> LaneStore:
    """Return the store of one worker."""
    return LaneStore(redis, "owner", LEASE_MS)


async def generation(redis: Redis, lane: str = LANE) -> int:
    return int((await fields(redis, lane))["generation"])


async def with_claimed(fleet: Fleet, redis: Redis, count: int = 1) -> tuple[LaneHold, list[bytes]]:
    """Return a held lane with that many claimed fetches."""
    await fleet.submit([url(f"/{i}") for i in range(count)])
    hold = await LaneHold.begin(redis)
    return hold, (await hold.claim(count)).serialized


async def test_a_lane_passes_through_all_its_states(redis_url: str, redis: Redis) -> None:
    """Submit, acquire, claim, retry, crash, rescue and finish."""
    await run_lane_lifecycle(redis_url, redis)


# Acquiring


async def test_an_acquisition_gives_a_lease(fleet: Fleet, redis: Redis, store: LaneStore) -> None:
    """The lane has an owner, and needs attention when the lease ends."""
    await fleet.submit([url("/x")])
    held = await store.acquire(LANE, await generation(redis))
    assert isinstance(held, AcquiredLane)
    assert held.orphans.serialized == []
    assert held.gate == GateState()
    assert (await fields(redis))["owner"] == "owner"
    assert await attention_ms(redis) == held.now_ms + LEASE_MS


async def test_tokens_grow(fleet: Fleet, redis: Redis) -> None:
    """A later acquisition has the larger token, in any lane."""
    tokens = []
    for lane in (LANE, OTHER, LANE):
        await fleet.submit([url("/x", lane)])
        hold = await LaneHold.begin(redis, name=lane)
        tokens.append(hold.held.token)
        await hold.finish()
    assert tokens == sorted(set(tokens))


async def test_i11_a_redis_that_lost_its_last_second_gives_no_token_twice(fleet: Fleet, redis: Redis) -> None:
    """A holder of a token of that second is refused."""
    await fleet.submit([url("/1")])
    hash_, serial = await fields(redis), await redis.get(keys.SERIAL)
    forgotten = await LaneHold.begin(redis, "forgotten")

    await redis.hdel(keys.lane(LANE), "owner", "token")  # type: ignore[misc]
    await redis.hset(keys.lane(LANE), mapping=hash_)  # type: ignore[misc]
    await redis.set(keys.SERIAL, serial)
    now = await LaneHold.begin(redis, "now")

    assert now.held.token > forgotten.held.token
    with pytest.raises(LaneLostError):
        await forgotten.claim()
    assert ["/1"] == paths((await now.claim()).serialized)


@pytest.mark.parametrize("off_by", [-1, 1])
async def test_a_notification_of_another_generation_is_ignored(
    fleet: Fleet, redis: Redis, store: LaneStore, off_by: int
) -> None:
    """Only the one that the lane waits for acquires it."""
    await fleet.submit([url("/x")])
    before = await everything(redis)
    assert await store.acquire(LANE, await generation(redis) + off_by) is None
    assert await everything(redis) == before


async def test_an_overtaken_notification_is_ignored(fleet: Fleet, redis: Redis, store: LaneStore) -> None:
    """A rescued lane is acquired by its new notification only."""
    await fleet.submit([url("/x")])
    old = await generation(redis)
    await lapse(redis)
    await reclaim(redis)
    assert await store.acquire(LANE, old) is None
    assert isinstance(await store.acquire(LANE, await generation(redis)), AcquiredLane)


async def test_a_notification_delivered_twice_acquires_once(
    fleet: Fleet, redis: Redis, store: LaneStore
) -> None:
    """A held lane has one owner."""
    await fleet.submit([url("/x")])
    number = await generation(redis)
    assert isinstance(await store.acquire(LANE, number), AcquiredLane)
    assert await store.acquire(LANE, number) is None


async def test_an_unknown_lane_is_not_acquired(redis: Redis, store: LaneStore) -> None:
    """A notification of it creates no key."""
    assert await store.acquire(LANE, 1) is None
    assert await redis.keys("*") == []


async def test_an_idle_lane_is_not_acquired(fleet: Fleet, redis: Redis, store: LaneStore) -> None:
    """Its last notification has no effect after the release."""
    await fleet.submit([url("/x")])
    number = await generation(redis)
    await (await LaneHold.begin(redis)).finish()
    assert await store.acquire(LANE, number) is None


async def test_an_early_notification_returns_the_remaining_wait(
    fleet: Fleet, redis: Redis, store: LaneStore
) -> None:
    """A fast clock brings the notification back later, and changes nothing."""
    await fleet.submit([url("/x")])
    await (await LaneHold.begin(redis)).release(shut_until_ms=await now_ms(redis) + HOUR_MS)
    before = await everything(redis)
    early = await store.acquire(LANE, await generation(redis))
    assert isinstance(early, Early)
    assert HOUR_MS - 60_000 < early.due_in_ms <= HOUR_MS
    assert await everything(redis) == before


@pytest.mark.parametrize(("held", "taken"), [(0, True), (1, True), (2, False), (3, False), (None, True)])
async def test_a_worker_acquires_its_share_of_the_lanes(
    fleet: Fleet, redis: Redis, store: LaneStore, held: int, *, taken: bool
) -> None:
    """Two of three lanes beside another live worker. Dead workers and closed lanes do not count."""
    lanes = [LANE, OTHER, "c.example"]
    await fleet.submit([url("/x", lane) for lane in lanes])
    alive_ms = await now_ms(redis)
    for cooling in ("d.example", "e.example"):
        await fleet.submit([url("/x", cooling)])
        await (await LaneHold.begin(redis, name=cooling)).release(shut_until_ms=alive_ms + HOUR_MS)
    await redis.zadd(keys.WORKERS, {"owner": alive_ms, "rival": alive_ms, "dead": 1})
    before = await everything(redis)
    found = await store.acquire(LANE, await generation(redis), held)
    assert isinstance(found, AcquiredLane if taken else Enough)
    assert (await everything(redis) != before) is taken


async def test_a_look_finds_the_due_lanes(fleet: Fleet, redis: Redis, store: LaneStore) -> None:
    """The look omits held and closed lanes and begins with the one that has waited longest."""
    await fleet.submit([url("/x")])
    for name in ("held.example", "cooling.example"):
        await fleet.submit([url("/x", name)])
        hold = await LaneHold.begin(redis, name=name)
        if name == "cooling.example":
            await hold.release(shut_until_ms=await now_ms(redis) + HOUR_MS)
    await fleet.submit([url("/x", OTHER)])
    await redis.zadd(keys.ATTENTION, {LANE: 1, OTHER: 2})  # they may have come in the same millisecond

    assert await store.due(await now_ms(redis), 10) == [LANE, OTHER]
    assert await store.due(await now_ms(redis), 1) == [LANE]


async def test_many_lanes_are_acquired_at_once_up_to_the_share(
    fleet: Fleet, redis: Redis, store: LaneStore
) -> None:
    """Two of four beside another live worker. A lane that is not due is left, and counts like the others."""
    lanes = [f"{name}.example" for name in "abcd"]
    await fleet.submit([url("/x", lane) for lane in lanes])
    await redis.zadd(keys.WORKERS, dict.fromkeys(("owner", "rival"), await now_ms(redis)))

    taken = await store.acquire_many(["nobody.example", *lanes], 0)

    assert [type(found) for found in taken] == [type(None), AcquiredLane, Enough, Enough, Enough]
    assert ["held", *["scheduled"] * 3] == [await state(redis, lane) for lane in lanes]


async def test_a_failed_acquisition_does_not_affect_others(
    fleet: Fleet, redis: Redis, store: LaneStore
) -> None:
    """The error of Redis is at its position."""
    await fleet.submit([url("/x"), url("/x", OTHER)])
    await redis.delete(keys.lane(LANE))
    await redis.set(keys.lane(LANE), "foreign")

    refused, held = await store.acquire_many([LANE, OTHER], 0)

    assert isinstance(refused, ResponseError)
    assert isinstance(held, AcquiredLane)
    await redis.flushdb()


async def test_workers_that_are_expected_have_their_share(
    fleet: Fleet, redis: Redis, store: LaneStore
) -> None:
    """The first of two to start leaves one of two lanes to the other."""
    await fleet.submit([url("/x"), url("/x", OTHER)])
    await announce(redis, ["owner", "late"])

    held, enough = await store.acquire_many([LANE, OTHER], 0)

    assert (type(held), type(enough)) == (AcquiredLane, Enough)


async def test_the_gate_outlives_its_owner(fleet: Fleet, redis: Redis) -> None:
    """The learned state of the host is returned with the next acquisition, also after idle time."""
    hold, (element,) = await with_claimed(fleet, redis)
    await hold.settle(stored(element))
    assert await hold.release(gate=GATE) is None
    await fleet.submit([url("/2")])
    assert (await LaneHold.begin(redis)).held.gate == GATE


# Claiming


async def test_claims_are_served_in_order(fleet: Fleet, redis: Redis) -> None:
    """Due retries, then returned fetches, then by priority, each first in, first out."""
    await fleet.submit([url("/retry"), url("/back1"), url("/back2")])
    hold = await LaneHold.begin(redis)
    retry, *_ = (await hold.claim(3)).serialized
    await hold.settle(retried(retry, 0))
    await hold.release()
    for priority in (Priority.LOW, Priority.NORMAL, Priority.HIGH):
        await fleet.submit([Fetch(url=url(f"/{priority}{i}"), priority=priority) for i in (1, 2)])
    hold = await LaneHold.begin(redis)
    order = [path for _ in range(9) for path in paths((await hold.claim(1)).serialized)]
    waiting_order = ["/high1", "/high2", "/normal1", "/normal2", "/low1", "/low2"]
    assert order == ["/retry", "/back1", "/back2", *waiting_order]


async def test_one_claim_crosses_all_queues(fleet: Fleet, redis: Redis) -> None:
    """A claim returns as many as requested, in the order of many small ones."""
    for priority in (Priority.LOW, Priority.NORMAL, Priority.HIGH):
        await fleet.submit([Fetch(url=url(f"/{priority}"), priority=priority)])
    hold = await LaneHold.begin(redis)
    claim = await hold.claim(2)
    assert paths(claim.serialized) == ["/high", "/normal"]
    assert (claim.waiting, claim.next_retry_ms) == (1, None)
    assert await claimed(redis) == sorted(claim.serialized)


async def test_a_claim_from_an_empty_lane_is_empty(fleet: Fleet, redis: Redis) -> None:
    """It is not a refusal."""
    hold, _ = await with_claimed(fleet, redis)
    claim = await hold.claim()
    assert (claim.serialized, claim.waiting, claim.next_retry_ms) == ([], 0, None)


async def test_a_claim_returns_the_time_of_the_next_retry(fleet: Fleet, redis: Redis) -> None:
    """A retry that is not due stays."""
    hold, (element,) = await with_claimed(fleet, redis)
    await hold.settle(retried(element, 3600))
    claim = await hold.claim()
    assert claim.serialized == []
    assert claim.next_retry_ms is not None
    assert HOUR_MS - 60_000 < claim.next_retry_ms <= HOUR_MS


async def test_a_claim_may_have_the_largest_concurrency(fleet: Fleet, redis: Redis) -> None:
    """Lua's stack does not overflow."""
    _, elements = await with_claimed(fleet, redis, 1000)
    assert len(elements) == 1000
    assert await claimed(redis) == sorted(elements)


async def test_expired_fetches_are_found_anywhere(redis: Redis, fleet: Fleet) -> None:
    """The scan keeps fetches with time left in order and returns their next deadline."""
    await fleet.submit([Fetch(url=url("/live"), priority=Priority.LOW)])
    late = [serialize_entry(entry(place, deadline_ms=1)) for place in range(3)]
    live = [serialize_entry(entry(place, deadline_ms=NEVER_MS - place)) for place in (7, 8, 9)]
    await put(redis, live[0], late[0], live[1], late[1], where="normal")
    await redis.zadd(keys.later(LANE), {live[2]: 1, late[2]: 9e12})
    hold = await LaneHold.begin(redis)
    found = await hold.scan_queue(EXPIRED)
    retry = await hold.scan_queue(EXPIRED, "later")
    assert (["/0", "/1"], None, NEVER_MS - 8) == (
        paths(found.serialized),
        found.next_offset,
        found.earliest_ms,
    )
    assert (["/2"], None, NEVER_MS - 9) == (paths(retry.serialized), retry.next_offset, retry.earliest_ms)
    assert ["/7", "/8"] == paths(await waiting(redis, "normal"))
    assert ["/9"] == paths(list(await later(redis)))
    assert sorted(late) == await claimed(redis)


async def test_a_queue_is_searched_in_pieces(redis: Redis, fleet: Fleet) -> None:
    """Each continues from the end of the one before, after any removals."""
    await fleet.submit([Fetch(url=url("/live"), priority=Priority.LOW)])
    late = {1, 2, 5, 6}
    await put(redis, *(serialize_entry(entry(i, deadline_ms=1 if i in late else NEVER_MS)) for i in range(8)))
    hold = await LaneHold.begin(redis)
    hold.store = LaneStore(redis, "owner", LEASE_MS, page_size=3)
    offsets, found, offset = [], [], 0
    while offset is not None:
        offsets.append(offset)
        stretch = await hold.scan_queue(EXPIRED, offset=offset)
        found += paths(stretch.serialized)
        offset = stretch.next_offset  # type: ignore[assignment]
    assert [0, 1, 3] == offsets
    assert ["/1", "/2", "/5", "/6"] == found
    assert ["/0", "/3", "/4", "/7"] == paths(await waiting(redis, "normal"))


# A wrong token

Use = Callable[[LaneHold, bytes], Awaitable[Any]]
USES: dict[str, Use] = {
    "claim": lambda hold, _: hold.claim(),
    "withdraw": lambda hold, _: hold.scan_queue(ALL),
    "adopt": lambda hold, element: hold.adopt(interrupted(element)),
    "transfer": lambda hold, element: hold.transfer(element, OTHER),
    "release": lambda hold, element: hold.release(interrupted(element), gate=GATE),
}


async def rescued(redis: Redis, hold: LaneHold) -> None:
    """Let the lease lapse; no worker holds the lane."""
    await lapse(redis)
    await reclaim(redis)


async def taken_by_another(redis: Redis, hold: LaneHold) -> None:
    """Let the lease lapse and another worker acquire the lane."""
    await rescued(redis, hold)
    await LaneHold.begin(redis, "rival")


async def taken_again_by_itself(redis: Redis, hold: LaneHold) -> None:
    """Let the same worker acquire the lane a second time."""
    await rescued(redis, hold)
    await LaneHold.begin(redis, "owner")


Loss = Callable[[Redis, LaneHold], Awaitable[None]]
LOSSES = pytest.mark.parametrize("lost", [rescued, taken_by_another, taken_again_by_itself])


@LOSSES
@pytest.mark.parametrize("use", USES)
async def test_a_stale_owner_is_refused(fleet: Fleet, redis: Redis, lost: Loss, use: str) -> None:
    """It can change nothing in the lane."""
    hold, (element,) = await with_claimed(fleet, redis)
    await fleet.submit([url("/waiting")])
    await lost(redis, hold)
    before = await everything(redis)
    with pytest.raises(LaneLostError):
        await USES[use](hold, element)
    assert await everything(redis) == before


@LOSSES
async def test_a_stale_owner_can_neither_settle_nor_renew(fleet: Fleet, redis: Redis, lost: Loss) -> None:
    """Calls for many lanes return the lost ones."""
    hold, (element,) = await with_claimed(fleet, redis)
    await lost(redis, hold)
    hold.lane.gate = GATE
    before = await everything(redis)
    assert await hold.settle(stored(element)) == []
    assert await hold.settle(retried(element, 0)) == []
    assert not await hold.renew()
    assert await everything(redis) == before


@pytest.mark.parametrize("use", USES)
async def test_the_token_of_a_released_lane_is_refused(fleet: Fleet, redis: Redis, use: str) -> None:
    """An idle lane has no valid token."""
    hold, (element,) = await with_claimed(fleet, redis)
    await hold.settle(stored(element))
    await hold.release()
    before = await everything(redis)
    with pytest.raises(LaneLostError):
        await USES[use](hold, element)
    assert await everything(redis) == before


async def test_one_call_renews_the_lanes_that_are_still_held(fleet: Fleet, redis: Redis) -> None:
    """Each lane has its own reply, in order, and only held ones get a longer lease."""
    lanes = [LANE, OTHER, "c.example"]
    await fleet.submit([url("/x", lane) for lane in lanes])
    holds = [await LaneHold.begin(redis, name=lane) for lane in lanes]
    for lane in lanes:
        await redis.zadd(keys.ATTENTION, {lane: 1})
    tokens = [hold.held.token for hold in holds]
    now, kept = await holds[0].store.renew([(LANE, tokens[0]), (OTHER, tokens[0]), (lanes[2], tokens[2])])
    assert kept == [True, False, True]
    assert [await attention_ms(redis, lane) for lane in lanes] == [now + LEASE_MS, 1, now + LEASE_MS]


async def test_adopted_fetches_have_their_new_ledgers(fleet: Fleet, redis: Redis) -> None:
    """After the death of this owner too, the next one finds the cost of the first death."""
    hold, (one, two) = await with_claimed(fleet, redis, 2)
    await hold.adopt(interrupted(one))
    assert await claimed(redis) == [interrupted(one), two]


# Releasing


async def test_an_empty_lane_becomes_idle(fleet: Fleet, redis: Redis) -> None:
    """It has no owner, needs no attention, and keeps the state of its host for some time."""
    hold, (element,) = await with_claimed(fleet, redis)
    await hold.settle(stored(element))
    assert await hold.release(gate=GATE, why="cool-down") is None
    hash_ = await fields(redis)
    assert hash_["state"] == "idle"
    assert hash_["why"] == "cool-down"
    assert not {"owner", "token"} & hash_.keys()
    assert await attention_ms(redis) is None
    assert 0 < await redis.pttl(keys.lane(LANE)) <= keys.GATE_TTL_MS


async def test_a_lane_that_is_used_again_does_not_expire(fleet: Fleet, redis: Redis) -> None:
    """The TTL of an idle lane ends when fetches arrive."""
    await fleet.submit([url("/1")])
    await (await LaneHold.begin(redis)).finish()
    assert await state(redis) == "idle"
    await fleet.submit([url("/2")])
    assert await redis.pttl(keys.lane(LANE)) == -1


async def test_a_lane_with_waiting_fetches_is_due_now(fleet: Fleet, redis: Redis) -> None:
    """It has a new generation, and any worker may acquire it."""
    await fleet.submit([url("/x")])
    before = await generation(redis)
    wake = await (await LaneHold.begin(redis)).release()
    assert wake is not None
    assert wake.generation == await generation(redis) > before
    assert (wake.lane, wake.due_in_ms) == (LANE, 0)
    assert not {"owner", "token"} & (await fields(redis)).keys()
    assert await attention_ms(redis) == int((await fields(redis))["due_ms"]) + GRACE_MS


async def test_a_lane_with_only_retries_is_due_at_the_next_one(fleet: Fleet, redis: Redis) -> None:
    """No worker acquires it earlier."""
    hold, (one, two) = await with_claimed(fleet, redis, 2)
    await hold.settle(retried(one, 7200), retried(two, 3600))
    wake = await hold.release()
    assert wake is not None
    assert HOUR_MS - 60_000 < wake.due_in_ms <= HOUR_MS
    assert int((await fields(redis))["due_ms"]) == min((await later(redis)).values())


async def test_a_retry_that_is_due_makes_the_lane_due_now(fleet: Fleet, redis: Redis) -> None:
    """A due time in the past does not yield a negative wait."""
    hold, (element,) = await with_claimed(fleet, redis)
    await hold.settle(retried(element, 0))
    await redis.zadd(keys.later(LANE), dict.fromkeys(await later(redis), 1))
    wake = await hold.release()
    assert wake is not None
    assert wake.due_in_ms == 0


async def test_a_closed_lane_is_due_when_it_opens(fleet: Fleet, redis: Redis) -> None:
    """A host in a cool-down occupies no slot until then."""
    hold, _ = await with_claimed(fleet, redis)
    until_ms = await now_ms(redis) + HOUR_MS
    await hold.release(shut_until_ms=until_ms, why="cool-down")
    hash_ = await fields(redis)
    assert (hash_["due_ms"], hash_["shut_until_ms"]) == (str(until_ms), str(until_ms))
    assert hash_["why"] == "cool-down"
    assert await attention_ms(redis) == until_ms + GRACE_MS


@pytest.mark.parametrize("retry_in_s", [60, 7200])
async def test_a_closed_lane_with_a_retry_is_due_at_the_later_of_both(
    fleet: Fleet, redis: Redis, retry_in_s: int
) -> None:
    """Cool-down and back-off are both kept."""
    hold, (element,) = await with_claimed(fleet, redis)
    await hold.settle(retried(element, retry_in_s))
    until_ms = await now_ms(redis) + HOUR_MS
    await hold.release(shut_until_ms=until_ms)
    (retry_ms,) = (await later(redis)).values()
    assert int((await fields(redis))["due_ms"]) == max(until_ms, retry_ms)


async def test_a_closed_lane_is_due_at_its_first_deadline(fleet: Fleet, redis: Redis) -> None:
    """A fetch ends at its deadline without a request. A later one in the queue may be the first."""
    hold, _ = await with_claimed(fleet, redis)
    before_ms = await now_ms(redis)
    await fleet.submit([Fetch(url=url("/1"), deadline_s=700), Fetch(url=url("/2"), deadline_s=600)])
    await hold.release(shut_until_ms=await now_ms(redis) + HOUR_MS)
    assert before_ms + 600_000 <= int((await fields(redis))["due_ms"]) < before_ms + 650_000


async def test_a_searched_lane_has_its_first_deadline(fleet: Fleet, redis: Redis) -> None:
    """It counts waiting fetches, and those that arrived during the search."""
    await fleet.submit([Fetch(url=url("/1"), deadline_s=60)])
    hold = await LaneHold.begin(redis)
    store, name, token = hold.store, hold.lane.name, hold.held.token
    await store.note_earliest(name, token, None)
    assert None is (await store.overview(name)).earliest_ms
    await store.note_earliest(name, token, NEVER_MS)
    assert NEVER_MS == (await store.overview(name)).earliest_ms
    await fleet.submit([Fetch(url=url("/2"), deadline_s=30)])
    await store.note_earliest(name, token, NEVER_MS)
    assert await now_ms(redis) + 31_000 > ((await store.overview(name)).earliest_ms or NEVER_MS)


async def test_claimed_fetches_return_to_the_front(fleet: Fleet, redis: Redis) -> None:
    """The fetches keep their order, before those that were returned earlier and before waiting ones."""
    hold, _ = await with_claimed(fleet, redis, 12)
    await put(redis, serialize_entry(entry(99)), where="returned")
    await fleet.submit([Fetch(url=url("/waiting"), priority=Priority.HIGH)])
    await hold.release()
    assert await claimed(redis) == []
    order = paths((await (await LaneHold.begin(redis)).claim()).serialized)
    assert order == [*(f"/{i}" for i in range(12)), "/99", "/waiting"]


async def test_changed_ledgers_are_returned(fleet: Fleet, redis: Redis) -> None:
    """The cost of an interruption is kept. Other fetches are returned unchanged."""
    hold, (one, two) = await with_claimed(fleet, redis, 2)
    await hold.release(interrupted(two))
    assert await waiting(redis, "returned") == [one, interrupted(two)]


async def test_the_ledger_of_an_unclaimed_fetch_is_ignored(fleet: Fleet, redis: Redis) -> None:
    """A settled fetch does not return."""
    hold, (element,) = await with_claimed(fleet, redis)
    await hold.settle(stored(element))
    assert await hold.release(interrupted(element)) is None
    assert await waiting(redis, "returned") == []


# Transfer


async def test_a_transfer_wakes_the_other_lane(fleet: Fleet, redis: Redis) -> None:
    """The fetch waits in the lane of the redirect's target, which is scheduled."""
    hold, (element,) = await with_claimed(fleet, redis)
    wake = await hold.transfer(interrupted(element), OTHER, "high")
    assert wake == (OTHER, await generation(redis, OTHER), 0)
    assert await waiting(redis, "high", OTHER) == [interrupted(element)]
    assert await claimed(redis) == []
    assert await hold.release() is None


async def test_a_transfer_sent_twice_moves_once(fleet: Fleet, redis: Redis) -> None:
    """A call whose reply was lost may be repeated."""
    hold, (element,) = await with_claimed(fleet, redis)
    await hold.transfer(element, OTHER)
    before = await everything(redis)
    assert await hold.transfer(element, OTHER) is None
    assert await everything(redis) == before


async def test_a_transfer_to_a_held_lane_wakes_no_worker(fleet: Fleet, redis: Redis) -> None:
    """Its owner finds the fetch itself."""
    hold, (element,) = await with_claimed(fleet, redis)
    await fleet.submit([url("/there", OTHER)])
    there = await LaneHold.begin(redis, "rival", OTHER)
    assert await hold.transfer(element, OTHER) is None
    assert paths((await there.claim()).serialized) == ["/there", "/0"]


async def test_a_transfer_to_the_same_lane_loses_nothing(fleet: Fleet, redis: Redis) -> None:
    """The fetch goes to the end of its own lane."""
    hold, (one, two) = await with_claimed(fleet, redis, 2)
    assert await hold.transfer(one, LANE) is None
    assert await state(redis) == "held"
    assert (await hold.claim()).serialized == [one]
    assert parse_entry(two).id in {parse_entry(element).id for element in await claimed(redis)}


async def test_a_claim_under_a_foreign_id_is_settled_like_any_other_later(fleet: Fleet, redis: Redis) -> None:
    """No owner can settle it: it waits until the lane is released, and then for its turn."""
    hold, (element,) = await with_claimed(fleet, redis)
    stray, batch = serialize_entry(entry(9)), BATCH_ID
    await ask(redis, "HSET", keys.claimed(LANE), "x", stray, "y", b"garbage")
    await ask(redis, "SADD", keys.cancelled(LANE), batch)

    assert (await hold.store.claims(LANE, hold.held.token)).serialized == [element]
    assert (await hold.store.withdrawn(LANE, hold.held.token, {batch})).serialized == []
    await ask(redis, "HSET", keys.lane(LANE), "state", "scheduled", "due_ms", 1)
    after = await LaneHold.begin(redis, "after")
    assert after.held.orphans.serialized == [element]

    assert await after.release()
    await ask(redis, "HSET", keys.lane(LANE), "due_ms", 1)
    again = await LaneHold.begin(redis, "again")
    assert sorted((await again.claim()).serialized) == sorted([element, stray, b"garbage"])
