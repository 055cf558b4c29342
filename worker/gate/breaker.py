"""The circuit breaker: pybreaker's transitions, over the gate's state and clock. Pure.

pybreaker computes the next state from one more outcome. The gate decides when an open breaker lets a probe
through (open_until_ms). This module decides which failures count: those of one fetch count once, so one bad
URL does not close its host to the others.
"""

import math
import zlib
from contextlib import suppress
from typing import NamedTuple, NoReturn

import pybreaker
from msgspec.structs import replace

from fetchfleet.worker.gate.state import Breaker, GateState
from fetchfleet.worker.util.backoff import upward_jitter_s
from fetchfleet.worker.util.quantities import age


class BreakerRules(NamedTuple):
    """The policy keys of the breaker (worker/policy/model.py)."""

    failures: int
    """The number of failures in a row that opens the breaker."""
    reset_s: float
    """The first time open; each further time in a row is reset_s longer."""
    cap_s: float
    """The maximum time for which the breaker opens."""


class _Storage(pybreaker.CircuitMemoryStorage):
    """pybreaker's storage, started with the failures that the gate has counted."""

    def __init__(self, state: GateState) -> None:
        super().__init__(state.breaker.value)
        self._before = state.failures

    @property
    def counter(self) -> int:
        return self._before + super().counter

    def reset_counter(self) -> None:
        self._before = 0
        super().reset_counter()


class _HostFailedError(Exception):
    """Signals to pybreaker that the host failed."""


def _fail() -> NoReturn:
    raise _HostFailedError


def after_attempt(
    state: GateState, rules: BreakerRules, *, failed: bool, now_ms: int, chance: float, fetch_id: str = ""
) -> GateState:
    """Return the state after one response or failure of the host. While the breaker is open, none counts.

    chance: in [0, 1); lengthens the time open by up to a tenth. fetch_id: the fetch whose request failed;
    empty for a failure that counts each time.
    """
    closed = state.breaker is Breaker.CLOSED
    if state.breaker is Breaker.OPEN or (closed and not failed and state.failures == 0):
        return state
    newly_failed: tuple[int, ...] = ()
    if closed and failed and fetch_id:
        newly_failed = (zlib.crc32(fetch_id.encode()),)
        if newly_failed[0] in state.failed:
            return state
    storage = _Storage(state)
    counting = pybreaker.CircuitBreaker(fail_max=rules.failures, state_storage=storage)
    with suppress(_HostFailedError, pybreaker.CircuitBreakerError):
        counting.call(_fail if failed else int)
    after = Breaker(storage.state)
    failed_fetches = (*state.failed, *newly_failed) if failed and after is Breaker.CLOSED else ()
    state = replace(state, breaker=after, failures=storage.counter, failed=failed_fetches)
    if state.breaker is Breaker.OPEN:
        opens = state.opens + 1
        open_s = min(rules.reset_s * opens, max(rules.cap_s, rules.reset_s))
        return replace(
            state,
            opens=opens,
            open_until_ms=now_ms + math.ceil(upward_jitter_s(open_s, chance) * 1000),
            down_since_ms=state.down_since_ms or now_ms,
        )
    if state.breaker is Breaker.CLOSED and state.opens:
        return replace(state, open_until_ms=0, opens=0, down_since_ms=0, nameless=False)
    return state


def down_text(state: GateState, now_ms: int) -> str:
    """Return for how long the host has been down, and its last failure, in words."""
    last = f"; last: {state.last_failure}" if state.last_failure else ""
    return f"no usable response for {age(max(0, now_ms - state.down_since_ms) / 1000)}{last}"


def probing(state: GateState) -> GateState:
    """Return the state after a probe was let through: an open breaker becomes half-open."""
    return replace(state, breaker=Breaker.HALF_OPEN) if state.breaker is Breaker.OPEN else state
