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
"""The time for which the fetches of one claim should last."""

CLAIM_ROUNDS = 4
"""Maximum size of a claim, as a multiple of the maximum in flight. The minimum is one."""


class Claims:
    """The size and time of a lane's next claim."""

    def __init__(self) -> None:
        self._size = 0
        """Number of fetches that the last claim requested."""
        self._made_s = 0.0
        """The monotonic time of the last claim."""
        self.emptied = False
        """The last claim left no fetch waiting in the lane."""
        self._just_emptied = False
        self.left_waiting = False
        """The last claim left fetches waiting that may start now, as opposed to retries."""
        self.is_early = False
        """Make the next claim when the last fetch of this one starts, not when it ends: the host is fast."""

    def next_size(self, max_in_flight: int, now_s: float) -> int:
        """Return the number of fetches to claim now."""
        self._size = claim_size(max_in_flight, self._size, now_s - self._made_s)
        self._made_s = now_s
        self.is_early = self._size > max_in_flight
        return self._size

    def record(self, *, emptied: bool, found: bool, left_waiting: bool = False) -> None:
        """Record if a claim left no fetch waiting in the lane, if it found any, and if some may start now."""
        self.emptied, self._just_emptied, self.left_waiting = emptied, emptied and found, left_waiting
        self.is_early = self.is_early and not emptied

    def was_just_emptied(self) -> bool:
        """Return whether the last claim found all fetches of the lane. True once for each claim."""
        just_emptied, self._just_emptied = self._just_emptied, False
        return just_emptied


def claim_size(max_in_flight: int, previous: int, lasted_s: float) -> int:
    """Return the number of fetches to claim, given the size and duration of the previous claim. Pure."""
    in_time = int(previous * CLAIM_S / lasted_s) if lasted_s > 0 else 0
    return max(max_in_flight, min(in_time, CLAIM_ROUNDS * max_in_flight))


class Lane:
    """The queue of one host, held by this worker: its gate, its claimed fetches, and those in flight.

    The lane ends when it is released, after `stopping`, or when it is `lost`: another worker owns it, and
    this one must not change its fetches. If the lease lapses by this worker's clock, the lane stops. Redis
    decides later whether it is lost.

    Other rooms may read the attributes, but must use the methods to change them.
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
        self.token = token  # the fencing token
        self.pool = f"{name}#{token}"  # the name of the connection pool
        self.policy = policy
        self.grant = gate.grant(state, policy)
        """Fetches that may be in flight until gate or policy change. 0: the gate decides for each fetch."""
        self._gate = state
        self.closed_periods = state.closed  # the last few, oldest first
        self._starts_ms: list[int] = []
        self._answers: deque[RecordedAttempt] = deque(maxlen=gate.ANSWERS_KEPT)
        """With _starts_ms, the starts and responses under the grant that `_gate` does not include yet."""
        self._saved_gate = state
        """The state that Redis has, or will have after the call under way."""
        self.clock = clock
        self.ready: deque[Entry] = deque()  # claimed and not started
        self.claims = Claims()
        self.handovers: dict[str, str] = {}
        """The needs of claimed fetches that wait for another worker, by ID; see fetch/cases/handover.py."""
        self.handover_since_s = 0.0
        """The monotonic time at which the first handover was added."""
        self.in_flight: dict[str, asyncio.Task[None]] = {}  # by fetch ID
        self.ranges = 0  # requests for further pieces of bodies, besides those of the fetches
        self.entries: dict[str, Entry] = {}
        """Every claimed fetch that is not settled, by ID."""
        self.interrupted: set[str] = set()
        """IDs of fetches that were stopped in flight. Their claims are returned as interrupted."""
        self.robots: KnownRobots | None = None
        """The rules of the lane's origins; None before the first robots.txt."""
        self.robots_requests: dict[str, str] = {}
        """The ID of the fetch whose task requests the robots.txt, by origin."""
        self.cancelled: set[str] = set()
        """Cancelled batches that may still have fetches in the lane."""
        self.stopping = False
        """No more fetches are started. The lane is released when those in flight have ended."""
        self.lost = False  # another worker owns the lane
        self.lapsed = False  # by this worker's clock
        self.released = False
        self.lease_ends_s = lease_ends_s
        """The monotonic time at which the lease ends for this worker."""
        self.unwanted_until_s = unwanted_until_s
        """The rebalancer keeps the lane until this monotonic time, because no other worker acquired it."""
        self.for_upkeep = for_upkeep
        """Start no fetch: the lane is held only to end fetches that need no attempt."""
        self.is_idle = False  # the lane's loop waits in `idle`
        self.expiry_check_ms = 0
        """The time of the next search for expired fetches, Unix ms by Redis's clock."""
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
        """True if the lease holds by this worker's clock."""
        return not self.lost and mono_s() < self.lease_ends_s

    def may_place(self) -> bool:
        """Return whether a body may get its final name now."""
        return self.live

    @property
    def gate(self) -> GateState:
        """The state of the host. Set it with LaneSession.change_gate only."""
        if self._starts_ms or self._answers:
            self._gate = gate.count_granted(self._gate, self._starts_ms, self._answers)
            self._starts_ms.clear()
            self._answers.clear()
        return self._gate

    @gate.setter
    def gate(self, state: GateState) -> None:
        self._gate = state
        self.closed_periods = state.closed
        self.grant = gate.grant(state, self.policy)

    def admission(self, *, excluding: int = 0) -> Admission:
        """Return whether a fetch may start now. excluding: number of fetches in flight to ignore."""
        in_flight = self.requests - excluding
        if self.grant:
            return SATURATED if in_flight >= self.grant else ADMIT
        return gate.admit(self.gate, self.policy, in_flight, self.clock.now_ms())

    @property
    def requests(self) -> int:
        """The number of requests that count against the concurrency: of fetches and of further pieces."""
        return len(self.in_flight) + self.ranges

    def begin_range(self) -> None:
        """Count a request for a piece of a body, besides the request of its fetch."""
        self.ranges += 1

    def end_range(self) -> None:
        """Record that such a request has ended, and let a waiting fetch start in its place."""
        self.ranges -= 1
        self.notify()

    def count_start(self, now_ms: int) -> None:
        """Count a request that is about to be sent under the grant."""
        self._starts_ms.append(now_ms)

    def count_answer(self, status: int, now_ms: int) -> None:
        """Count a good response under the grant."""
        self._answers.append(RecordedAttempt(now_ms, str(status)))

    def closed(self) -> Closed | None:
        """Return why and until when the gate is closed; None if it is open."""
        if self.grant:
            return None
        return gate.closed_until(self.gate, self.policy, self.clock.now_ms())

    def blocked_s(self) -> float:
        """Return the wait of an admitted fetch for a cool-down that has begun since; 0.0 if none has."""
        if self.grant:
            return 0.0
        now_ms = self.clock.now_ms()
        until_ms = gate.blocked_until_ms(self.gate, self.policy, now_ms)
        return (until_ms - now_ms) / 1000 if until_ms else 0.0

    @property
    def seems_empty(self) -> bool:
        """True if the lane is open and, as far as the worker knows, all of its fetches are being settled."""
        empty = self.claims.emptied and not (self.in_flight or self.ready or self.handovers)
        return self.is_idle and empty and self.closed() is None

    @property
    def expiry_check_due(self) -> bool:
        """True if a search for expired fetches is due."""
        return self.clock.now_ms() >= self.expiry_check_ms

    def check_expiry_at(self, at_ms: int) -> None:
        """Set the time of the next search for expired fetches."""
        self.expiry_check_ms = at_ms

    def extend_lease(self, ends_s: float) -> None:
        """Set the monotonic time at which the renewed lease ends."""
        self.lease_ends_s = ends_s

    def change_policy(self, policy: LanePolicy) -> None:
        """Replace the policy."""
        self.policy = policy
        self.grant = gate.grant(self._gate, policy)
        self.notify()

    @property
    def gate_is_saved(self) -> bool:
        """True if Redis has the state of the gate, or will have after the call under way."""
        return self._gate is self._saved_gate and not self._starts_ms and not self._answers

    def gate_to_save(self) -> bytes:
        """Return the state of the gate as JSON, for a call that saves it."""
        self._saved_gate = self.gate
        return to_json(self.gate)

    def rules(self, url: str) -> RobotsRules | None:
        """Return the robots.txt rules for the URL's origin; None if they must be requested first."""
        if self.policy.robots == "ignore":
            return ALLOW_ALL
        return self.robots.rules(origin_of_url(url), self.clock.now_ms()) if self.robots else None

    def set_rules(self, origin: str, rules: RobotsRules, until_ms: int) -> float:
        """Set the rules of an origin until until_ms. Returns the crawl delay of all origins, in seconds."""
        if self.robots is None:
            self.robots = KnownRobots()
        self.robots.learn(origin, rules, until_ms)
        return self.robots.crawl_delay_s()

    def is_requesting_robots(self, url: str) -> bool:
        """Return whether the robots.txt of the URL's origin is being requested."""
        return self.robots_requests.get(origin_of_url(url)) in self.in_flight

    def begin_robots_request(self, url: str, fetch_id: str) -> None:
        """Record that the task of this fetch requests the robots.txt of the URL's origin."""
        self.robots_requests[origin_of_url(url)] = fetch_id

    def end_robots_request(self, origin: str) -> None:
        """Record that the request for the origin's robots.txt has ended."""
        self.robots_requests.pop(origin, None)

    def since_ms(self, started_s: float) -> int:
        """Convert a monotonic time to Unix ms by Redis's clock."""
        return self.clock.now_ms() - int((mono_s() - started_s) * 1000)

    def hold(self, entry: Entry) -> None:
        """Append a claimed fetch to `ready`. This worker must settle it."""
        self.entries[entry.id] = entry
        self.ready.append(entry)

    def requeue(self, entry: Entry) -> None:
        """Put a claimed fetch back at the start of `ready`."""
        self.ready.appendleft(entry)

    def add_handover(self, fetch_id: str, needs: str) -> None:
        """Keep a claimed fetch for a worker that meets its needs and gets the lane."""
        if not self.handovers:
            self.handover_since_s = mono_s()
        self.handovers[fetch_id] = needs

    def unqueue(self, batches: set[str]) -> None:
        """Remove the fetches of these batches from `ready`."""
        self.ready = deque(entry for entry in self.ready if entry.batch_id not in batches)

    def replace_entry(self, entry: Entry) -> None:
        """Replace the entry of a claimed fetch."""
        self.entries[entry.id] = entry

    def drop(self, fetch_id: str | bytes) -> None:
        """Remove a settled fetch from `entries`."""
        self.entries.pop(fetch_id, None)  # type: ignore[arg-type]

    def start(
        self,
        fetch_id: str,
        work: Coroutine[Any, Any, None],
        ended: Callable[[asyncio.Task[None]], None],
    ) -> None:
        """Run work as the task of a fetch in flight. `ended` must call `end`."""
        task = asyncio.get_running_loop().create_task(work, name=f"fetch of {self.name}")
        self.in_flight[fetch_id] = task
        task.add_done_callback(ended)

    def follow(self, fetch_id: str, next_id: str) -> None:
        """Record that the task of an ended fetch now runs the next fetch."""
        self.in_flight[next_id] = self.in_flight.pop(fetch_id)

    def end(self, fetch_id: str, task: asyncio.Task[None]) -> None:
        """Record that the fetch's task has ended."""
        # The fetch may have been started again when its robots.txt request ended, before this call.
        if self.in_flight.get(fetch_id) is task:
            del self.in_flight[fetch_id]

    def lose(self) -> None:
        """Stop all network and disk work, because another worker owns the lane."""
        self.lost = True
        self._cancel_in_flight()
        self.notify()

    def lapse(self) -> None:
        """Stop all network and disk work, because another worker may own the lane. Results can be settled."""
        self.lapsed = True
        self.interrupt()
        self.stop_serving()

    def interrupt(self) -> None:
        """Stop the fetches in flight.

        Their claims are returned as interrupted, except those whose task requests a robots.txt.
        """
        self.interrupted |= self.in_flight.keys() - self.robots_requests.values()
        self._cancel_in_flight()

    def cancel(self, batches: set[str]) -> None:
        """Stop the fetches in flight of these batches, and have the loop remove the others."""
        self.cancelled |= batches
        for fetch_id, task in self.in_flight.items():
            if batch_of(fetch_id) in batches:
                self.interrupted.add(fetch_id)
                task.cancel()
        self.notify()

    def forget_cancelled(self, batches: set[str]) -> None:
        """Record that the lane has no more fetches of these cancelled batches."""
        self.cancelled -= batches

    def stop_serving(self) -> None:
        """Start no more fetches, and release the lane when those in flight have ended."""
        self.stopping = True
        self.notify()

    def notify(self) -> None:
        """Wake the waiter in `changed`."""
        self._changed.set()

    async def changed(self, timeout_s: float) -> None:
        """Wait for `notify`, timeout_s at most (inf: no timeout). May return early without a change.

        Most waits end before their timeout, so an earlier timer is kept for later waits.
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

    async def idle(self, timeout_s: float) -> None:
        """Wait as in `changed`, while the lane's loop has no call to Redis under way."""
        self.is_idle = True
        await self.changed(timeout_s)
        self.is_idle = False

    def _on_wake_up(self) -> None:
        self._wake_up = None
        self.notify()

    def _cancel_in_flight(self) -> None:
        for task in self.in_flight.values():
            task.cancel()
