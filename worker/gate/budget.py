"""The retry budget of a lane: at most a fifth of its recent traffic, three in the window at least. Pure.

Retries over the budget are not refused but spaced out, so that a host in trouble gets its first
requests and hardly any second ones.
"""

import math

from msgspec.structs import replace

from worker.gate.state import GateState

WINDOW_MS = 10_000
SHARE = 0.2
FLOOR = 3


def sent(state: GateState, now_ms: int) -> GateState:
    """The state after a request went out."""
    return replace(state, traffic=recent(state, now_ms) + 1, traffic_ms=now_ms)


def retry_not_before_ms(state: GateState, now_ms: int) -> int:
    """The earliest time for one more retry. GCRA, with the floor as its burst."""
    return math.ceil(max(float(now_ms), state.retry_ms - (FLOOR - 1) * _interval_ms(state, now_ms)))


def retried(state: GateState, at_ms: int, now_ms: int) -> GateState:
    """The state after a retry was set for at_ms."""
    return replace(state, retry_ms=max(state.retry_ms, float(at_ms)) + _interval_ms(state, now_ms))


def recent(state: GateState, now_ms: int) -> float:
    """Requests in the window before now, older ones fading."""
    return state.traffic * math.exp(-max(0, now_ms - state.traffic_ms) / WINDOW_MS)


def _interval_ms(state: GateState, now_ms: int) -> float:
    return WINDOW_MS / max(FLOOR, SHARE * recent(state, now_ms))
