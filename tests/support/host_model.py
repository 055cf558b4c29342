"""A simulation of a host and the lane that fetches from it, with simulated time."""

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from fetchfleet.worker.fetch.rules.outcome import (
    Answered,
    AttemptOutcome,
    Stored,
    observation_of,
    throttle_of,
)
from fetchfleet.worker.gate import gate
from fetchfleet.worker.gate.gate import Admit, Closed
from fetchfleet.worker.gate.state import GateState
from fetchfleet.worker.policy.model import LanePolicy
from fetchfleet.worker.sink.index_entry import StoredAt, Validators

START_MS = 1_700_000_000_000
STORED = Stored(status=200, at=StoredAt("a", 1, ""), validators=Validators("http://a.test/"))
Times = Callable[[random.Random], float]


@dataclass(kw_only=True)
class HostModel:
    """A simulated host that refuses or queues the requests above its capacity."""

    capacity: int
    """Requests served at once."""
    service_s: Times
    """Draws the duration of a request."""
    status: int | None = 429
    """The status of a refusal; None to queue the request."""
    wait_s: float | None = None
    """The Retry-After of a refusal."""
    refusal_s: float = 0.005
    """Duration of a refusal."""
    serving: int = 0
    queue: list[int] = field(default_factory=list)


@dataclass(kw_only=True)
class Period:
    """Counters of one period of the simulation."""

    requests: int = 0
    refused: int = 0
    ended: int = 0
    limit_ms: float = 0.0
    """The integral of the limit of concurrent requests over time."""
    duration_ms: int = 0

    @property
    def mean_limit(self) -> float:
        """The limit of concurrent requests, averaged over time."""
        return self.limit_ms / self.duration_ms

    @property
    def refused_share(self) -> float:
        """The share of refused requests."""
        return self.refused / max(1, self.requests)


class Simulation:
    """A lane with unlimited work, a host, and the simulated time."""

    def __init__(self, host: HostModel, policy: LanePolicy, seed: int = 1) -> None:
        self.host = host
        self.policy = policy
        self.state = GateState()
        self.random = random.Random(seed)
        self.now_ms = START_MS
        self.in_flight: dict[int, int] = {}
        self._number = 0
        self._ends: list[tuple[int, int, bool]] = []

    @property
    def limit(self) -> int:
        """The current limit of requests in flight."""
        return gate.max_in_flight(self.state, self.policy)

    def run(self, for_s: float, until: Callable[[], bool] = lambda: False) -> Period:
        """Run for some simulated seconds, or until a condition holds; return the counters."""
        period, end_ms = Period(), self.now_ms + int(for_s * 1000)
        while self.now_ms < end_ms and not until():
            self._start_all(period)
            next_ms = min(self._next_ms(), end_ms)
            period.limit_ms += self.limit * (next_ms - self.now_ms)
            period.duration_ms += next_ms - self.now_ms
            self.now_ms = next_ms
            while self._ends and self._ends[0][0] <= self.now_ms:
                self._end(period)
        return period

    def _start_all(self, period: Period) -> None:
        while isinstance(gate.admit(self.state, self.policy, len(self.in_flight), self.now_ms), Admit):
            self.state = gate.started(self.state, self.policy, self.now_ms)
            self._number += 1
            self.in_flight[self._number] = self.now_ms
            period.requests += 1
            self._arrive(self._number)

    def _arrive(self, number: int) -> None:
        if self.host.serving < self.host.capacity:
            self._serve(number)
        elif self.host.status is None:
            self.host.queue.append(number)
        else:
            heapq.heappush(self._ends, (self.now_ms + int(self.host.refusal_s * 1000), number, False))

    def _serve(self, number: int) -> None:
        self.host.serving += 1
        duration_ms = max(1, round(self.host.service_s(self.random) * 1000))
        heapq.heappush(self._ends, (self.now_ms + duration_ms, number, True))

    def _next_ms(self) -> int:
        times = [self._ends[0][0]] if self._ends else []
        verdict = gate.admit(self.state, self.policy, len(self.in_flight), self.now_ms)
        if isinstance(verdict, Closed):
            times.append(verdict.until_ms)
        return min(times)

    def _end(self, period: Period) -> None:
        _, number, served = heapq.heappop(self._ends)
        started_ms = self.in_flight[number]
        if served:
            self.host.serving -= 1
            if self.host.queue and self.host.serving < self.host.capacity:
                self._serve(self.host.queue.pop(0))
            self._learn(STORED, started_ms)
        else:
            period.refused += 1
            self._learn(Answered(status=self.host.status or 0, wait_s=self.host.wait_s), started_ms)
        period.ended += 1
        del self.in_flight[number]

    def _learn(self, outcome: AttemptOutcome, started_ms: int) -> None:
        """Update the gate as worker/fetch/run.py does."""
        signal = observation_of(outcome, started_ms, len(self.in_flight), float(self.now_ms - started_ms))
        self.state = gate.attempt_ended(self.state, self.policy, signal, self.now_ms, self.random.random())
        throttle = throttle_of(outcome)
        if throttle is not None:
            chance = self.random.random()
            self.state = gate.throttled(self.state, self.policy, throttle.wait_s, self.now_ms, chance)
