"""The breaker: pybreaker's counting and states, our state and our clock. Pure.

Its own notion of time is never asked: when an open breaker lets a probe through is decided by the
gate, from open_until_ms.
"""

import math
from contextlib import suppress
from datetime import datetime
from typing import NamedTuple

import pybreaker
from msgspec.structs import replace

from fetchfleet.worker.gate.state import Breaker, GateState
from fetchfleet.worker.util.backoff import upward_jitter_s


class _Failed(Exception):  # noqa: N818 a signal to pybreaker, never seen by anybody else
    """The host failed."""


class _Storage(pybreaker.CircuitBreakerStorage):
    """What pybreaker reads and writes, for the length of one call."""

    def __init__(self, state: GateState) -> None:
        super().__init__("lane")
        self._state, self._counter = state.breaker.value, state.failures
        self._success_counter = 0

    @property
    def state(self) -> str:
        return self._state

    @state.setter
    def state(self, state: str) -> None:
        self._state = state

    def increment_counter(self) -> None:
        self._counter += 1

    def reset_counter(self) -> None:
        self._counter = 0

    def increment_success_counter(self) -> None:
        self._success_counter += 1

    def reset_success_counter(self) -> None:
        self._success_counter = 0

    @property
    def counter(self) -> int:
        return self._counter

    @property
    def success_counter(self) -> int:
        return self._success_counter

    @property
    def opened_at(self) -> datetime | None:
        return None

    @opened_at.setter
    def opened_at(self, datetime: datetime) -> None:
        """The gate keeps the time."""


class BreakerRules(NamedTuple):
    """failures in a row that open it; the first time for reset_s, each time that much longer, up to cap_s."""

    failures: int
    reset_s: float
    cap_s: float


def after_attempt(
    state: GateState, rules: BreakerRules, *, failed: bool, now_ms: int, chance: float
) -> GateState:
    """The state after the host answered or failed once. What comes in while open is old news.

    chance in [0, 1) only ever lengthens the time for which it is open.
    """
    if state.breaker is Breaker.OPEN or (not failed and _calm(state)):
        return state
    storage = _Storage(state)
    breaker = pybreaker.CircuitBreaker(fail_max=rules.failures, state_storage=storage)
    with suppress(_Failed, pybreaker.CircuitBreakerError):
        breaker.call(_fail if failed else _succeed)
    state = replace(state, breaker=Breaker(storage.state), failures=storage.counter)
    if state.breaker is Breaker.OPEN:
        return _opened(state, rules, now_ms, chance)
    if state.breaker is Breaker.CLOSED and state.opens:
        return replace(state, open_until_ms=0, opens=0, down_since_ms=0, nameless=False)
    return state


def _opened(state: GateState, rules: BreakerRules, now_ms: int, chance: float) -> GateState:
    opens = state.opens + 1
    wait_s = upward_jitter_s(min(rules.reset_s * opens, max(rules.cap_s, rules.reset_s)), chance)
    return replace(
        state,
        opens=opens,
        open_until_ms=now_ms + math.ceil(wait_s * 1000),
        down_since_ms=state.down_since_ms or now_ms,
    )


def probing(state: GateState) -> GateState:
    """Open → half-open: the probe is on its way."""
    return replace(state, breaker=Breaker.HALF_OPEN) if state.breaker is Breaker.OPEN else state


def _calm(state: GateState) -> bool:
    return state.breaker is Breaker.CLOSED and state.failures == 0


def _fail() -> None:
    raise _Failed


def _succeed() -> None:
    return
