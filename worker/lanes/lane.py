"""The state of a lane while this worker holds it."""

import asyncio
import math
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

from fetchfleet.jobs.contract.entry import Entry
from fetchfleet.jobs.contract.ids import batch_of
from fetchfleet.jobs.contract.urls import origin_of_url
from fetchfleet.worker.gate import gate
from fetchfleet.worker.gate.gate import ADMIT, SATURATED, Admission, Closed
from fetchfleet.worker.gate.robots_rules import ALLOW_ALL, KnownRobots, RobotsRules
from fetchfleet.worker.gate.state import GateState, RecordedAttempt, to_json
from fetchfleet.worker.policy.model import LanePolicy
from fetchfleet.worker.util.clock import RedisClock, mono_s

CLAIM_S = 1.0
CLAIM_ROUNDS = 4
"""A claim is for what the lane starts in that time, and at least for a round of what may be in flight."""


class Claims:
    """The claims of a lane: how large the next one is, and when it is made."""

    def __init__(self) -> None:
        self._size = 0
        self._made_s = 0.0
        """Of the last one: for how many fetches, and when, by the monotonic clock."""
        self.emptied = False
        """The last one left no fetch waiting in the lane."""
        self._just_emptied = False
        self.ahead = False
        """The next one is made once the last fetch of this one has started: the host is quick."""

    def next_size(self, most_in_flight: int, now_s: float) -> int:
        """Return how many fetches to claim now that none is left."""
        self._size = claim_size(most_in_flight, self._size, now_s - self._made_s)
        self._made_s = now_s
        self.ahead = self._size > most_in_flight
        return self._size

    def note(self, *, emptied: bool, found: bool) -> None:
        """Note whether a claim left no fetch waiting in the lane, and whether it found any."""
        self.emptied, self._just_emptied = emptied, emptied and found
        self.ahead = self.ahead and not emptied

    def was_just_emptied(self) -> bool:
        """Return whether the last claim found all fetches of the lane; once for each claim."""
        just_emptied, self._just_emptied = self._just_emptied, False
        return just_emptied


def claim_size(most_in_flight: int, before: int, lasted_s: float) -> int:
    """Return how many fetches to claim, if the claim `before` lasted so long. Pure."""
    in_time = int(before * CLAIM_S / lasted_s) if lasted_s > 0 else 0
    return max(most_in_flight, min(in_time, CLAIM_ROUNDS * most_in_flight))


class Lane:
    """One host's queue held by this worker: its gate, its claimed fetches, and those in flight.

    A lane ends in one of two ways: `leaving` (this worker gives it back) or `lost` (another worker owns it,
    and this one must not touch its fetches any more). If the lease lapses by this worker's clock, because
    Redis does not answer, the lane stops and leaves; Redis decides later whether it is lost.

    Other rooms read the attributes, and change them by methods only.
    """

    def __init__(
        self,
        name: str,
        token: int,
        policy: LanePolicy,
        state: GateState,
        clock: RedisClock,
        *,
        lease_ends_s: float = 0.0,
        unwanted_until_s: float = 0.0,
        for_upkeep: bool = False,
    ) -> None:
        self.name = name
        self.token = token
        """The fencing token of this acquisition."""
        self.pool = f"{name}#{token}"
        """Names the connection pool of this acquisition; a later one of the same lane has another."""
        self.policy = policy
        self.grant = gate.grant(state, policy)
        """How many fetches may be in flight until gate or policy changes; 0: the gate decides each time."""
        self._gate = state
        self._starts_ms: list[int] = []
        self._answers: deque[RecordedAttempt] = deque(maxlen=gate.ANSWERS_KEPT)
        """Starts and responses under the grant that the gate has not counted yet."""
        self._saved_gate = state
        self.clock = clock
        self.ready: deque[Entry] = deque()
        """Claimed fetches that wait for their start."""
        self.claims = Claims()
        self.aside: dict[str, str] = {}
        """Claimed fetches that wait for another worker, with their needs (worker/fetch/cases/handover.py)."""
        self.aside_since_s = 0.0
        """When the first of them was set aside, by the monotonic clock."""
        self.in_flight: dict[str, asyncio.Task[None]] = {}
        self.entries: dict[str, Entry] = {}
        """Every claimed fetch that is not settled, by its id."""
        self.cut: set[str] = set()
        """Fetches in flight that were stopped: interrupted if the lane is given back with them."""
        self.robots: KnownRobots | None = None
        """The rules of the lane's origins, once a robots.txt was read."""
        self.asking: dict[str, str] = {}
        """For each origin whose robots.txt is requested, the fetch that waits for it."""
        self.cancelled: set[str] = set()
        """Cancelled batches that may still have fetches in the lane."""
        self.stopping = False
        self.lost = False
        self.lapsed = False
        self.released = False
        self.lease_ends_s = lease_ends_s
        """By this worker's monotonic clock."""
        self.unwanted_until_s = unwanted_until_s
        """No other worker took the lane: until then it is not given back for balance."""
        self.for_upkeep = for_upkeep
        """The worker may start no fetch: it holds the lane only to end fetches that need no attempt."""
        self.at_rest = False
        """Its loop waits for a change, and has no call to Redis under way."""
        self.expiry_check_ms = 0
        """When to search the lane for expired fetches next."""
        self._changed = asyncio.Event()
        self._wake_up: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        states = {"lost": self.lost, "lapsed": self.lapsed, "stopping": self.stopping, "held": True}
        state = next(name for name, holds in states.items() if holds)
        limit = gate.max_in_flight(self.gate, self.policy)
        return (
            f"<Lane {self.name} {state} {len(self.in_flight)}/{limit} in flight, "
            f"{len(self.ready)} ready, gate {self.gate.breaker.value}>"
        )

    @property
    def serving(self) -> bool:
        """True if fetches may be started."""
        return not self.lost and not self.stopping and mono_s() < self.lease_ends_s

    @property
    def live(self) -> bool:
        """True if the lease holds by this worker's clock: only then may a file be put in its place."""
        return not self.lost and mono_s() < self.lease_ends_s

    def may_place(self) -> bool:
        """Return whether a file may be put in its place."""
        return self.live

    @property
    def gate(self) -> GateState:
        """The state of the host as the lane knows it. Changed by LaneSession.change_gate only."""
        if self._starts_ms or self._answers:
            self._gate = gate.count_granted(self._gate, self._starts_ms, self._answers)
            self._starts_ms.clear()
            self._answers.clear()
        return self._gate

    @gate.setter
    def gate(self, state: GateState) -> None:
        self._gate = state
        self.grant = gate.grant(state, self.policy)

    def admission(self, *, excluding: int = 0) -> Admission:
        """Return whether a fetch may start now, not counting `excluding` of those in flight."""
        in_flight = len(self.in_flight) - excluding
        if self.grant:
            return SATURATED if in_flight >= self.grant else ADMIT
        return gate.admit(self.gate, self.policy, in_flight, self.clock.now_ms())

    def count_start(self, now_ms: int) -> None:
        """Count a request that goes out under the grant."""
        self._starts_ms.append(now_ms)

    def count_answer(self, status: int, now_ms: int) -> None:
        """Count a good answer to a request, while the grant holds."""
        self._answers.append(RecordedAttempt(now_ms, str(status)))

    def closed(self) -> Closed | None:
        """Return until when the lane is closed and why, None while it is open."""
        if self.grant:
            return None
        return gate.closed_until(self.gate, self.policy, self.clock.now_ms())

    def blocked_s(self) -> float:
        """Return how long an admitted fetch must wait for a cool-down that began since; 0.0: not at all."""
        if self.grant:
            return 0.0
        now_ms = self.clock.now_ms()
        until_ms = gate.blocked_until_ms(self.gate, self.policy, now_ms)
        return (until_ms - now_ms) / 1000 if until_ms else 0.0

    @property
    def seems_empty(self) -> bool:
        """True if the lane, which is open, has only fetches that wait to be settled, as far as is known."""
        idle = self.at_rest and self.claims.emptied and not (self.in_flight or self.ready or self.aside)
        return idle and self.closed() is None

    @property
    def expiry_check_due(self) -> bool:
        """True if a fetch of the lane may have passed its deadline."""
        return self.clock.now_ms() >= self.expiry_check_ms

    def check_expiry_at(self, at_ms: int) -> None:
        """Set the time of the next search for expired fetches."""
        self.expiry_check_ms = at_ms

    def extend_lease(self, ends_s: float) -> None:
        """Note that the lease was renewed and now ends at ends_s."""
        self.lease_ends_s = ends_s

    def change_policy(self, policy: LanePolicy) -> None:
        """Apply a changed policy from now on."""
        self.policy = policy
        self.grant = gate.grant(self._gate, policy)
        self.notify()

    @property
    def gate_is_saved(self) -> bool:
        """True if Redis has the state of the gate, or will have with a call under way."""
        return self._gate is self._saved_gate and not self._starts_ms and not self._answers

    def gate_to_save(self) -> bytes:
        """Return the state of the gate for a call to Redis that saves it."""
        self._saved_gate = self.gate
        return to_json(self.gate)

    def rules(self, url: str) -> RobotsRules | None:
        """Return the robots.txt rules for the URL's origin, None if they must be requested first."""
        if self.policy.robots == "ignore":
            return ALLOW_ALL
        return self.robots.rules(origin_of_url(url), self.clock.now_ms()) if self.robots else None

    def learn_rules(self, origin: str, rules: RobotsRules, until_ms: int) -> float:
        """Apply the rules of an origin until then; return the crawl delay in seconds of all origins."""
        if self.robots is None:
            self.robots = KnownRobots()
        self.robots.learn(origin, rules, until_ms)
        return self.robots.crawl_delay_s()

    def is_asking(self, url: str) -> bool:
        """Return whether the robots.txt of the URL's origin is being requested."""
        return self.asking.get(origin_of_url(url)) in self.in_flight

    def begin_asking(self, url: str, fetch_id: str) -> None:
        """Note that the task of this fetch requests the robots.txt of the URL's origin."""
        self.asking[origin_of_url(url)] = fetch_id

    def end_asking(self, origin: str) -> None:
        """Note that the request for the origin's robots.txt has ended."""
        self.asking.pop(origin, None)

    def since_ms(self, started_s: float) -> int:
        """Convert a time of the monotonic clock to Redis's clock."""
        return self.clock.now_ms() - int((mono_s() - started_s) * 1000)

    def hold(self, entry: Entry) -> None:
        """Queue a claimed fetch: this worker must settle it."""
        self.entries[entry.id] = entry
        self.ready.append(entry)

    def put_back(self, entry: Entry) -> None:
        """Queue a claimed fetch that was taken out of `ready` as the next one again."""
        self.ready.appendleft(entry)

    def set_aside(self, fetch_id: str, needs: str) -> None:
        """Keep a claimed fetch for another worker, which gets the lane."""
        if not self.aside:
            self.aside_since_s = mono_s()
        self.aside[fetch_id] = needs

    def unqueue(self, batches: set[str]) -> None:
        """Take the claimed fetches of these batches out of `ready`."""
        self.ready = deque(entry for entry in self.ready if entry.batch_id not in batches)

    def rewrite(self, entry: Entry) -> None:
        """Hold this version of a claimed fetch."""
        self.entries[entry.id] = entry

    def drop(self, fetch_id: str | bytes) -> None:
        """Forget a settled fetch."""
        self.entries.pop(fetch_id, None)  # type: ignore[arg-type]

    def start(
        self,
        fetch_id: str,
        work: Coroutine[Any, Any, None],
        ended: Callable[[asyncio.Task[None]], None],
    ) -> None:
        """Run work as the fetch's task, which is in flight until `ended` calls `end` with it."""
        task = asyncio.get_running_loop().create_task(work, name=f"fetch of {self.name}")
        self.in_flight[fetch_id] = task
        task.add_done_callback(ended)

    def follow(self, fetch_id: str, next_id: str) -> None:
        """Note that the task of a fetch that has ended runs the next one."""
        self.in_flight[next_id] = self.in_flight.pop(fetch_id)

    def end(self, fetch_id: str, task: asyncio.Task[None]) -> None:
        """Note that the fetch's task has ended."""
        # A fetch may be started again as the task of its robots.txt request ends, before this is called.
        if self.in_flight.get(fetch_id) is task:
            del self.in_flight[fetch_id]

    def lose(self) -> None:
        """Stop all network and disk work: another worker owns the lane."""
        self.lost = True
        self._cancel_in_flight()
        self.notify()

    def lapse(self) -> None:
        """Stop all network and disk work: another worker may own the lane. Results may still be settled."""
        self.lapsed = True
        self.cut_short()
        self.stop_serving()

    def cut_short(self) -> None:
        """Stop the fetches in flight; those that had started are handed back as interrupted."""
        self.cut |= self.in_flight.keys() - self.asking.values()
        self._cancel_in_flight()

    def cancel(self, batches: set[str]) -> None:
        """Stop the fetches in flight of these batches; their other fetches are to be withdrawn."""
        self.cancelled |= batches
        for fetch_id, task in self.in_flight.items():
            if batch_of(fetch_id) in batches:
                self.cut.add(fetch_id)
                task.cancel()
        self.notify()

    def forget_cancelled(self, batches: set[str]) -> None:
        """Note that no fetch of these cancelled batches is left."""
        self.cancelled -= batches

    def stop_serving(self) -> None:
        """Start nothing more; fetches in flight may end."""
        self.stopping = True
        self.notify()

    def notify(self) -> None:
        """Wake the waiter in `changed`."""
        self._changed.set()

    async def changed(self, timeout_s: float) -> None:
        """Wait for a change, timeout_s at most (inf: for as long as it takes); it may return without one.

        Most waits end before their timeout, so one timer serves several: an earlier one is kept.
        """
        if timeout_s != math.inf:
            loop = asyncio.get_running_loop()
            wake_up_s = loop.time() + timeout_s
            if self._wake_up is not None and self._wake_up.when() > wake_up_s:
                self._wake_up.cancel()
                self._wake_up = None
            if self._wake_up is None:
                self._wake_up = loop.call_at(wake_up_s, self._on_wake_up)
        await self._changed.wait()
        self._changed.clear()

    async def rest(self, timeout_s: float) -> None:
        """Wait as in `changed`, with no call to Redis under way for the lane."""
        self.at_rest = True
        await self.changed(timeout_s)
        self.at_rest = False

    def _on_wake_up(self) -> None:
        self._wake_up = None
        self.notify()

    def _cancel_in_flight(self) -> None:
        for task in self.in_flight.values():
            task.cancel()
