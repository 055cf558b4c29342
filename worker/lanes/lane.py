"""A lane while this worker holds it."""

import asyncio
import math
from collections import deque
from collections.abc import Coroutine
from typing import Any

from fetchfleet.jobs.contract.entry import Entry
from fetchfleet.jobs.contract.ids import batch_of
from fetchfleet.jobs.contract.urls import origin_of_url
from fetchfleet.worker.gate import gate
from fetchfleet.worker.gate.gate import Admission, Closed
from fetchfleet.worker.gate.robots_rules import ALLOW_ALL, KnownRobots, RobotsRules
from fetchfleet.worker.gate.state import GateState
from fetchfleet.worker.policy.model import LanePolicy
from fetchfleet.worker.util.clock import RedisClock, mono_s


class Lane:
    """One host's queue in our hands: its gate, what is claimed, what is in flight.

    A lane ends in one of two ways: `leaving` (we give it back) or `lost` (it is somebody else's, and with
    it every right to touch the lane's fetches). When its lease lapses by our own clock, because Redis does
    not answer, it stops and leaves: whether it is lost, Redis will say.
    """

    def __init__(
        self, name: str, token: int, policy: LanePolicy, state: GateState, clock: RedisClock
    ) -> None:
        self.name = name
        self.token = token
        self.pool = f"{name}#{token}"
        """The name of this stay's connection pool; a later stay of the same lane has another."""
        self.policy = policy
        self.gate = state
        self.saved_gate = state
        self.clock = clock
        self.ready: deque[Entry] = deque()
        self.in_flight: dict[str, asyncio.Task[None]] = {}
        self.entries: dict[str, Entry] = {}
        self.cut: set[str] = set()
        self.robots = KnownRobots()
        self.asking: dict[str, str] = {}
        """By origin, the fetch in whose place its robots.txt is asked for."""
        self.cancelled: set[str] = set()
        self.leaving = False
        self.lost = False
        self.lapsed = False
        self.released = False
        self.lease_ends_s = 0.0
        self.look_ms = 0
        self.unwanted_until_s = 0.0
        """Nobody else took it: until then it is not given back for balance."""
        self.task: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self._look: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        states = {"lost": self.lost, "lapsed": self.lapsed, "leaving": self.leaving, "held": True}
        state = next(name for name, holds in states.items() if holds)
        limit = gate.max_in_flight(self.gate, self.policy)
        return (
            f"<Lane {self.name} {state} {len(self.in_flight)}/{limit} in flight, "
            f"{len(self.ready)} ready, gate {self.gate.breaker.value}>"
        )

    @property
    def serving(self) -> bool:
        """Whether fetches may be started."""
        return self.live and not self.leaving

    @property
    def live(self) -> bool:
        """Whether the lease holds by our own clock: only then may a file be put in its place."""
        return not self.lost and mono_s() < self.lease_ends_s

    def verdict(self, *, besides: int = 0) -> Admission:
        """Whether a fetch may start now, with `besides` of those in flight left out of account."""
        in_flight = len(self.in_flight) - besides
        return gate.admit(self.gate, self.policy, in_flight, self.clock.now_ms())

    def shut(self) -> Closed | None:
        """Until when the lane is shut and why, None while it is open."""
        return gate.closed_until(self.gate, self.policy, self.clock.now_ms())

    def held_up_s(self) -> float:
        """How long what was started must wait before it goes out, for what came since; 0.0: not at all."""
        now_ms = self.clock.now_ms()
        until_ms = gate.blocked_until_ms(self.gate, self.policy, now_ms)
        return (until_ms - now_ms) / 1000 if until_ms else 0.0

    def rules(self, url: str) -> RobotsRules | None:
        """What the URL's origin lets us do, None if it must be asked first."""
        if self.policy.robots == "ignore":
            return ALLOW_ALL
        return self.robots.rules(origin_of_url(url), self.clock.now_ms())

    def is_asking(self, url: str) -> bool:
        """Whether the URL's origin is being asked."""
        return self.asking.get(origin_of_url(url)) in self.in_flight

    def since_ms(self, started_s: float) -> int:
        """By Redis's clock, what our monotonic clock called started_s."""
        return self.clock.now_ms() - int((mono_s() - started_s) * 1000)

    def hold(self, entry: Entry) -> None:
        """The fetch is claimed: it is to be settled by us, and by nobody else."""
        self.entries[entry.id] = entry
        self.ready.append(entry)

    def drop(self, fetch_id: str | bytes) -> None:
        """The fetch is settled."""
        self.entries.pop(fetch_id, None)  # type: ignore[arg-type]

    def count_start(self) -> None:
        """A request goes out: the gate counts it, be it a fetch's first or where a redirect leads."""
        self.gate = gate.started(self.gate, self.policy, self.clock.now_ms())

    def start(self, fetch_id: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run work as the fetch's task, which counts as in flight until it ends."""
        self.count_start()
        task = asyncio.create_task(work, name=f"fetch {fetch_id}")
        self.in_flight[fetch_id] = task
        task.add_done_callback(lambda done: self._ended(fetch_id, done))
        return task

    def lose(self) -> None:
        """Stop all network and disk work: somebody else has the lane now."""
        self.lost = True
        self._cancel()
        self.notify()

    def lapse(self) -> None:
        """Stop all network and disk work: somebody else may have the lane now. What is done may be told."""
        self.lapsed = True
        self.cut_short()
        self.leave()

    def cut_short(self) -> None:
        """Stop what is in flight; it is handed back with the lane, as interrupted if it had begun."""
        self.cut |= self.in_flight.keys() - self.asking.values()
        self._cancel()

    def cancel(self, batches: set[str]) -> None:
        """Stop what is in flight of these batches; the rest of them is to be withdrawn."""
        self.cancelled |= batches
        for fetch_id, task in self.in_flight.items():
            if batch_of(fetch_id) in batches:
                self.cut.add(fetch_id)
                task.cancel()
        self.notify()

    def leave(self) -> None:
        """Start nothing more; what is in flight may end."""
        self.leaving = True
        self.notify()

    def notify(self) -> None:
        """Something changed: whoever waits in `changed` looks again."""
        self._changed.set()

    async def changed(self, timeout_s: float) -> None:
        """Wait for a change, timeout_s at most (inf: for as long as it takes); it may be none at all."""
        if timeout_s != math.inf:
            self._look_in(timeout_s)
        await self._changed.wait()
        self._changed.clear()

    def _look_in(self, wait_s: float) -> None:
        """By then there is a look. One that comes sooner is left to come: most waits end before theirs."""
        loop = asyncio.get_running_loop()
        look_s = loop.time() + wait_s
        if self._look is not None and self._look.when() > look_s:
            self._look.cancel()
            self._look = None
        if self._look is None:
            self._look = loop.call_at(look_s, self._look_now)

    def _look_now(self) -> None:
        self._look = None
        self.notify()

    def _cancel(self) -> None:
        for task in self.in_flight.values():
            task.cancel()

    def _ended(self, fetch_id: str, task: asyncio.Task[None]) -> None:
        """Unless the fetch was started again as its question for a robots.txt ended, a moment before this."""
        if self.in_flight.get(fetch_id) is task:
            del self.in_flight[fetch_id]
        self.notify()
