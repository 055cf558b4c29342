"""Whatever two workers do to a lane, in whichever order: no fetch is lost, none has two results."""

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable
from functools import partial
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from fetchfleet import Batch, Fetch, Fleet, Outcome, Priority, Reason
from fetchfleet.jobs import keys
from fetchfleet.jobs.contract.entry import HEAD_CHARS
from fetchfleet.jobs.contract.ids import FETCH_ID_CHARS, batch_of
from fetchfleet.jobs.redis_connection import connect
from fetchfleet.jobs.scripts.lanes import Early
from fetchfleet.worker.lanes.settler import Settlement
from fetchfleet.worker.lanes.store import (
    AcquiredLane,
    AcquireResult,
    BatchCancelled,
    LaneLostError,
    LaneStore,
)
from tests.support import shifted_clock
from tests.support.lanes import (
    HOUR_MS,
    LANE,
    LEASE_MS,
    LaneHold,
    ask,
    attention_ms,
    backlog,
    claimed,
    ended,
    everything,
    fields,
    interrupted,
    later,
    open_in,
    reclaim,
    results,
    retried,
    returned,
    start_marked,
    state,
    stored,
    url,
    waiting,
)
from tests.support.redis import flush

T = TypeVar("T")
OWNERS = st.sampled_from(["a", "b"])
COUNTS = st.integers(1, 4)
FIRST_COUNTS = st.integers(0, 4)
OTHER = "b.example"
LISTS = ["returned", *Priority]
JUMPS_S = st.sampled_from([1, LEASE_MS // 1000 + 1, 2 * HOUR_MS // 1000, -1, -300])
SETTLEMENTS: dict[str, Callable[[bytes], Settlement]] = {
    "returned": returned,
    "stored": stored,
    "failed": lambda element: ended(element, Outcome.FAILED, reason=Reason.READ),
    "now": lambda element: retried(element, 0),
    "later": lambda element: retried(element, 3600),
}
SETTINGS = settings(
    max_examples=25,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


def ids_of(elements: Iterable[bytes]) -> list[str]:
    return [id_of(element) for element in elements]


def id_of(element: bytes) -> str:
    return element[:FETCH_ID_CHARS].decode()


class LaneMachine(RuleBasedStateMachine):
    """One lane, one producer, two workers; each knows only the replies that it got."""

    def __init__(self, redis_url: str) -> None:
        super().__init__()
        flush(redis_url)
        self.runner = asyncio.Runner()
        self.redis = self.run(self._connected(redis_url))
        self.fleet = Fleet(redis_url)
        self.batches: list[Batch] = []
        self.cancelled: dict[str, Batch] = {}
        self.holds: dict[str, LaneHold] = {}
        self.hands: dict[str, list[bytes]] = {"a": [], "b": []}
        self.set_back_s = 0
        self.sent: list[tuple[LaneHold, list[Settlement]]] = []

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Return the result of a coroutine, on the loop of the machine."""
        return self.runner.run(work)

    async def _connected(self, redis_url: str) -> Any:
        return connect(redis_url)

    @initialize()
    def begins(self) -> None:
        """Begin with waiting fetches."""
        self.run(self._submit(3, Priority.NORMAL))

    @rule(count=COUNTS, priority=st.sampled_from(list(Priority)))
    def submit(self, count: int, priority: Priority) -> None:
        """Add a batch, as a producer."""
        self.run(self._submit(count, priority))

    @rule(owner=OWNERS, off_by=st.sampled_from([0, 0, 0, -1, 1]), count=FIRST_COUNTS)
    def take(self, owner: str, off_by: int, count: int) -> None:
        """Deliver a notification, perhaps of another generation."""
        self.run(self._take(owner, off_by, count=count))

    @rule(owner=OWNERS, count=FIRST_COUNTS)
    def look(self, owner: str, count: int) -> None:
        """Acquire the lane without its notification."""
        self.run(self._take(owner, count=count, looked=True))

    @precondition(lambda self: self.holds)
    @rule(owner=OWNERS, count=COUNTS)
    def claim(self, owner: str, count: int) -> None:
        """Claim more, as a worker."""
        if owner in self.holds:
            self.run(self._claim(owner, count))

    @rule(owner=OWNERS)
    def take_unheard(self, owner: str) -> None:
        """Lose the reply to a notification: the lane is held, and its owner does not know."""
        self.run(self._take_unheard(owner))

    @precondition(lambda self: self.holds)
    @rule(owner=OWNERS, count=COUNTS)
    def claim_unheard(self, owner: str, count: int) -> None:
        """Lose the reply to a claim."""
        if owner in self.holds:
            self.run(self._claim_unheard(owner, count))

    @precondition(lambda self: self.holds)
    @rule(owner=OWNERS)
    def find_unheard(self, owner: str) -> None:
        """Read the claims of a worker."""
        if owner in self.holds:
            self.run(self._find_unheard(owner))

    @precondition(lambda self: any(self.hands.values()))
    @rule(owner=OWNERS, count=COUNTS)
    def begin(self, owner: str, count: int) -> None:
        """Mark the claimed fetches of a worker as started."""
        if self.hands[owner]:
            self.run(self._begin(owner, count))

    @precondition(lambda self: self.sent)
    @rule(place=st.integers(0, 100))
    def settle_again(self, place: int) -> None:
        """Repeat an old settlement whose reply was lost."""
        self.run(self._settle_again(place))

    @precondition(lambda self: self.holds)
    @rule(owner=OWNERS)
    def crash(self, owner: str) -> None:
        """End a worker with all its claims."""
        self.holds.pop(owner, None)
        self.hands[owner] = []

    @rule(by_s=JUMPS_S)
    def clock_jumps(self, by_s: int) -> None:
        """Set Redis's clock forward or back."""
        self.run(shifted_clock.shift(self.redis, by_s))
        self.set_back_s += max(0, -by_s)

    @precondition(lambda self: any(self.hands.values()))
    @rule(owner=OWNERS, count=COUNTS, how=st.sampled_from(list(SETTLEMENTS)), release_if_empty=st.booleans())
    def settle(self, owner: str, count: int, how: str, *, release_if_empty: bool) -> None:
        """End or postpone claimed fetches, twice; perhaps release the lane with it."""
        if self.hands[owner]:
            self.run(self._settle(owner, count, how, release_if_empty=release_if_empty))

    @precondition(lambda self: self.holds)
    @rule(owner=OWNERS, shut=st.booleans(), changed=st.booleans())
    def release(self, owner: str, *, shut: bool, changed: bool) -> None:
        """Release the lane with its claims."""
        if owner in self.holds:
            self.run(self._release(owner, shut=shut, changed=changed))

    @precondition(lambda self: self.holds)
    @rule(owner=OWNERS)
    def renew(self, owner: str) -> None:
        """Renew the lease."""
        if owner in self.holds:
            self.run(self._renew(owner))

    @precondition(lambda self: any(self.hands.values()))
    @rule(owner=OWNERS, count=COUNTS)
    def transfer(self, owner: str, count: int) -> None:
        """Move a fetch to another host's lane, twice."""
        if self.hands[owner]:
            self.run(self._transfer(owner, count))

    @rule(place=st.integers(0, 100))
    def cancel(self, place: int) -> None:
        """Cancel a batch, perhaps for the second time, perhaps too late."""
        self.run(self._cancel(self.batches[place % len(self.batches)]))

    @precondition(lambda self: self.holds)
    @rule(owner=OWNERS)
    def withdraw(self, owner: str) -> None:
        """Withdraw cancelled batches and end their fetches."""
        if owner in self.holds:
            self.run(self._withdraw(owner))

    @rule()
    def lapse_and_rescue(self) -> None:
        """Let the lease or the wake lapse, and sweep."""
        self.run(self._rescue(lapsed=True))

    @rule()
    def sweep(self) -> None:
        """Sweep: only overdue lanes change."""
        self.run(self._rescue(lapsed=False))

    @rule()
    def time_passes(self) -> None:
        """Make every retry due and end every cool-down."""
        self.run(self._time_passes())

    @invariant()
    def every_fetch_is_in_one_place(self) -> None:
        """Waiting, postponed, claimed, or ended with one result."""
        self.run(self._check_places())

    @invariant()
    def every_open_fetch_is_counted(self) -> None:
        """In its lane and in the fleet, exactly."""
        self.run(self._check_counts())

    @invariant()
    def lanes_know_cancelled_batches(self) -> None:
        """A lane with a fetch of a cancelled batch knows the batch, and is due soon."""
        self.run(self._check_cancelled())

    @invariant()
    def lane_state_is_consistent(self) -> None:
        """Its state, owner, TTL and score in ATTENTION fit together."""
        self.run(self._check_lane())

    def teardown(self) -> None:
        """Let one worker end everything; then no key is left."""
        try:
            self.run(self._end_all())
        finally:
            self.run(self._close())
            self.runner.close()

    async def _submit(self, count: int, priority: Priority) -> None:
        before = await state(self.redis)
        batch = await self.fleet.submit([Fetch(url=url("/x"), priority=priority) for _ in range(count)])
        self.batches.append(batch)
        assert await state(self.redis) == ("held" if before == "held" else "scheduled")

    async def _take(self, owner: str, off_by: int = 0, *, count: int, looked: bool = False) -> None:
        hash_ = await fields(self.redis)
        orphans = await claimed(self.redis)
        waits = await self._waiting()
        before = await everything(self.redis)
        store = LaneStore(self.redis, owner, LEASE_MS)
        held: AcquireResult | Exception
        if looked:
            [held] = await store.acquire_many([LANE], None, counts=[count])
        else:
            held = await store.acquire(LANE, int(hash_["generation"]) + off_by, count=count)
        early_ms = int(hash_["due_ms"]) - await shifted_clock.now_ms(self.redis)
        if hash_["state"] != "scheduled" or off_by:
            assert held is None
        elif early_ms > 1000:
            assert isinstance(held, Early)
        elif early_ms <= 0 or isinstance(held, AcquiredLane):
            assert isinstance(held, AcquiredLane)
            assert sorted(held.orphans.serialized) == orphans
            assert held.cancelled == await self._flagged()
            assert all(held.token > hold.held.token for hold in self.holds.values())
            self.holds[owner] = LaneHold(self.redis, LaneStore(self.redis, owner, LEASE_MS), LANE, held)
            first = held.claim.serialized if held.claim else []
            if not count or orphans or held.cancelled:
                assert held.claim is None
            elif int(hash_.get("shut_until_ms", 0)) <= held.now_ms:
                assert len(first) >= min(count, len(waits))
            taken = [element for element in first if element in waits]
            assert taken == waits[: len(taken)]
            self.hands[owner] = orphans + first
            return
        assert await everything(self.redis) == before

    async def _take_unheard(self, owner: str) -> None:
        hash_ = await fields(self.redis)
        await LaneStore(self.redis, owner, LEASE_MS).acquire(LANE, int(hash_["generation"]))

    async def _claim_unheard(self, owner: str, count: int) -> None:
        work = self.holds[owner].claim(count)
        if await self._ours(owner):
            await work
        else:
            await self._refused(work)

    async def _find_unheard(self, owner: str) -> None:
        work = self.holds[owner].store.claims(LANE, self.holds[owner].held.token)
        if await self._ours(owner):
            self.hands[owner] = (await work).serialized
            assert sorted(self.hands[owner]) == await claimed(self.redis)
        else:
            await self._refused(work)

    async def _begin(self, owner: str, count: int) -> None:
        elements, kept = self.hands[owner][:count], self.hands[owner][count:]
        ours = await self._ours(owner)
        before = await everything(self.redis)
        assert bool(await self.holds[owner].settle(*(start_marked(element) for element in elements))) is ours
        if ours:
            begun = {id_of(element) for element in elements}
            self.hands[owner] = [*kept, *(e for e in await claimed(self.redis) if id_of(e) in begun)]
        else:
            assert await everything(self.redis) == before

    async def _settle_again(self, place: int) -> None:
        hold, settlements = self.sent[place % len(self.sent)]
        done = await self._done()
        await hold.settle(*settlements)
        assert await self._done() == done
        for owner, hands in self.hands.items():
            still = {id_of(element) for element in await claimed(self.redis)}
            self.hands[owner] = [element for element in hands if id_of(element) in still]

    async def _done(self) -> int:
        return sum([len(await results(self.redis, batch)) for batch in self.batches])

    async def _ours(self, owner: str) -> bool:
        hash_ = await fields(self.redis)
        token = self.holds[owner].held.token
        return (hash_["state"], hash_.get("token")) == ("held", str(token))

    async def _refused(self, work: Coroutine[Any, Any, object]) -> None:
        before = await everything(self.redis)
        with pytest.raises(LaneLostError):
            await work
        assert await everything(self.redis) == before

    async def _claim(self, owner: str, count: int) -> None:
        work = self.holds[owner].claim(count)
        if not await self._ours(owner):
            await self._refused(work)
            return
        before = await self._waiting()
        now_ms = await shifted_clock.now_ms(self.redis)
        due = [element for element, ms in (await later(self.redis)).items() if ms <= now_ms]
        claim = await work
        assert len(claim.serialized) >= min(count, len(due) + len(before))
        taken = [element for element in claim.serialized if element in before]
        assert taken == before[: len(taken)]
        self.hands[owner] += claim.serialized

    async def _waiting(self) -> list[bytes]:
        return [element for where in LISTS for element in await waiting(self.redis, where)]

    async def _settle(self, owner: str, count: int, how: str, *, release_if_empty: bool) -> None:
        hands = self.hands[owner]
        elements, self.hands[owner] = hands[:count], hands[count:]
        ours = await self._ours(owner)
        before = await everything(self.redis)
        settlements = [SETTLEMENTS[how](element) for element in elements]
        self.sent.append((self.holds[owner], settlements))
        reply = await self.holds[owner].settle(*settlements, release_if_empty=release_if_empty)
        assert bool(reply) is ours
        assert (await everything(self.redis) != before) is ours
        if ours:
            empty = not await self._in_lane(LANE) and not await self._flagged()
            assert (reply[-1] == b"left") is (release_if_empty and empty)
            assert (await state(self.redis) == "idle") is (release_if_empty and empty)
        after = await everything(self.redis)
        assert (
            await self.holds[owner].settle(*settlements, release_if_empty=release_if_empty) != [] or not ours
        )
        assert await everything(self.redis) == after

    async def _release(self, owner: str, *, shut: bool, changed: bool) -> None:
        shut_until_ms = await shifted_clock.now_ms(self.redis) + HOUR_MS if shut else 0
        ledgers = [interrupted(element) for element in self.hands[owner]] if changed else []
        work = self.holds[owner].release(*ledgers, shut_until_ms=shut_until_ms)
        if not await self._ours(owner):
            await self._refused(work)
            return
        back = [id_of(element) for element in await claimed(self.redis)]
        before = [id_of(element) for element in await self._waiting()]
        wake = await work
        assert [id_of(element) for element in await self._waiting()] == back + before
        assert (wake is None) == (await state(self.redis) == "idle")
        if shut and wake:
            assert wake.due_in_ms == 0 if await self._flagged() else wake.due_in_ms > HOUR_MS // 2
        self.hands[owner] = []

    async def _transfer(self, owner: str, count: int) -> None:
        elements = self.hands[owner][:count]
        if not await self._ours(owner):
            await self._refused(self.holds[owner].transfer(elements[0], OTHER))
            return
        for element in elements:
            holds = batch_of(id_of(element)) in self.cancelled
            moved = await self.holds[owner].transfer(element, OTHER)
            assert isinstance(moved, BatchCancelled) is holds
            assert (element in await claimed(self.redis)) is holds
            if not holds:
                self.hands[owner].remove(element)
            before = await everything(self.redis)
            await self.holds[owner].transfer(element, OTHER)
            assert await everything(self.redis) == before

    async def _cancel(self, batch: Batch) -> None:
        ended_before = (await batch.counts()).ended
        before = await everything(self.redis)
        await batch.cancel()
        assert not ended_before or await everything(self.redis) == before
        if not ended_before:
            self.cancelled[batch.id] = batch
        if not ended_before and await state(self.redis) != "idle":
            assert batch.id in await self._flagged()

    async def _withdraw(self, owner: str) -> None:
        batches = [self.cancelled[of] for of in await self._flagged()]
        hold = self.holds[owner]
        if not await self._ours(owner):
            if batches:
                await self._refused(hold.withdraw(*batches))
            return
        others = [element for element in await self._in_lane(LANE) if self._is_of(element, batches) is False]
        await self._end_cancelled(hold, batches, self.hands[owner])
        self.hands[owner] = [element for element in self.hands[owner] if not self._is_of(element, batches)]
        assert await self._in_lane(LANE) == others
        assert await self._flagged() == set()

    async def _end_cancelled(self, hold: LaneHold, batches: list[Batch], hands: list[bytes]) -> None:
        ours = [element for element in hands if self._is_of(element, batches)]
        await hold.settle(*(ended(element, Outcome.CANCELLED) for element in ours))
        await hold.withdraw(*batches)
        unheard = await hold.withdrawn(*batches) if batches else []
        await hold.settle(*(ended(element, Outcome.CANCELLED) for element in unheard))
        assert not unheard or await hold.withdrawn(*batches) == []

    def _is_of(self, element: bytes, batches: list[Batch]) -> bool:
        return batch_of(id_of(element)) in {batch.id for batch in batches}

    async def _flagged(self, lane: str = LANE) -> set[str]:
        return {of.decode() for of in await ask(self.redis, "SMEMBERS", keys.cancelled(lane))}

    async def _in_lane(self, lane: str) -> list[bytes]:
        waits = [element for where in LISTS for element in await waiting(self.redis, where, lane)]
        return waits + sorted(await later(self.redis, lane)) + await claimed(self.redis, lane)

    async def _renew(self, owner: str) -> None:
        ours = await self._ours(owner)
        assert await self.holds[owner].renew() is ours

    async def _rescue(self, *, lapsed: bool) -> None:
        hash_ = await fields(self.redis)
        busy = hash_["state"] != "idle"
        attention = await attention_ms(self.redis)
        if lapsed and attention is not None:
            overdue_s = int(attention - await shifted_clock.now_ms(self.redis)) // 1000 + 1
            await shifted_clock.shift(self.redis, max(0, overdue_s))
        overdue = attention is not None and attention <= await shifted_clock.now_ms(self.redis)
        rescued = await reclaim(self.redis)
        found = [(wake, lost) for wake, lost in rescued if wake.lane == LANE]
        assert len(found) == (busy and overdue)
        for _, lost in found:
            assert lost == (hash_["owner"] if hash_["state"] == "held" else "")

    async def _time_passes(self) -> None:
        for element in await later(self.redis):
            await self.redis.zadd(keys.later(LANE), {element: 1})
        await ask(self.redis, "HSET", keys.lane(LANE), "due_ms", 1, "shut_until_ms", 1)

    async def _check_places(self) -> None:
        places = Counter(ids_of(await self._in_lane(LANE)))
        places.update(ids_of(await self._in_lane(OTHER)))
        assert all(len(element) > HEAD_CHARS for element in await self._waiting())
        total = 0
        for batch in self.batches:
            found = await results(self.redis, batch)
            places.update(result.id for result in found)
            counts = await batch.counts()
            assert counts.done == len(found)
            assert counts.ended == (counts.total == len(found))
            total += counts.total
        assert set(places.values()) <= {1}
        assert len(places) == total

    async def _check_counts(self) -> None:
        here, there = [len(await self._in_lane(lane)) for lane in (LANE, OTHER)]
        assert (here, there) == (await open_in(self.redis), await open_in(self.redis, OTHER))
        assert here + there == await backlog(self.redis)

    async def _check_cancelled(self) -> None:
        for lane in (LANE, OTHER):
            flagged = await self._flagged(lane)
            unheard = [batch for of, batch in self.cancelled.items() if of not in flagged]
            assert not [element for element in await self._in_lane(lane) if self._is_of(element, unheard)]
            hash_ = await fields(self.redis, lane)
            if flagged and hash_["state"] == "scheduled":
                now_ms = await shifted_clock.now_ms(self.redis)
                assert int(hash_["due_ms"]) <= now_ms + 1000 * self.set_back_s

    async def _check_lane(self) -> None:
        if not self.batches:
            return
        hash_ = await fields(self.redis)
        idle, held = hash_["state"] == "idle", hash_["state"] == "held"
        assert hash_["state"] in {"idle", "scheduled", "held"}
        assert ("token" in hash_, "owner" in hash_) == (held, held)
        assert (await self.redis.pttl(keys.lane(LANE)) == -1) is not idle
        assert (await attention_ms(self.redis) is None) is idle
        if idle:
            assert not await self._waiting()
            assert not await later(self.redis)
            assert not await claimed(self.redis)

    async def _end_all(self) -> None:
        await self._time_passes()
        if await state(self.redis, OTHER) == "scheduled":  # perhaps before the clock was set back
            await ask(self.redis, "HSET", keys.lane(OTHER), "due_ms", 1)
        if await state(self.redis) == "held":
            await self._rescue(lapsed=True)
        for lane in (LANE, OTHER):
            if await state(self.redis, lane) == "scheduled":
                hold = await LaneHold.begin(self.redis, "last", lane)
                orphans = hold.held.orphans.serialized
                await self._end_cancelled(hold, [self.cancelled[of] for of in hold.held.cancelled], orphans)
                await hold.settle(*(stored(element) for element in orphans))
                await hold.finish(count=1000)
            assert await state(self.redis, lane) in {"idle", None}
        await self._check_places()
        for batch in self.batches:
            assert (await batch.counts()).ended

    async def _close(self) -> None:
        await shifted_clock.unshift(self.redis)
        await self.fleet.aclose()
        await self.redis.aclose()
        await self.redis.connection_pool.aclose()


@pytest.mark.timeout(600)  # Hypothesis takes a long time to shrink a failure
def test_i02_a_lane_never_loses_a_fetch_and_ends_none_twice(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two workers, one lane, crashes, lost replies and clock jumps in any order: one place, one result."""
    shifted_clock.install(monkeypatch)
    machine: Any = partial(LaneMachine, redis_url)
    run_state_machine_as_test(machine, settings=SETTINGS)
