"""The retry budget of a lane: a fifth of its recent traffic, and at least three in two seconds. Pure.

Retries over the budget are spaced out, not refused. So a host in trouble gets first requests and hardly any
second ones. GCRA: a window's worth of them, or the floor, may go at once.
"""

import math

from msgspec.structs import replace

from fetchfleet.worker.gate.state import GateState

WINDOW_MS = 10_000
SHARE = 0.2
FLOOR = 3
FLOOR_MS = 2_000


def sent(state: GateState, now_ms: int) -> GateState:
    """Return the state after a request went out."""
    return replace(state, traffic=recent(state, now_ms) + 1, traffic_ms=now_ms)


def retry_not_before_ms(state: GateState, now_ms: int) -> int:
    """Return the earliest time for one more retry."""
    at_once = max(float(FLOOR), SHARE * recent(state, now_ms))
    return max(now_ms, round(state.retry_ms - (at_once - 1) * _interval_ms(state, now_ms)))


def retried(state: GateState, now_ms: int) -> GateState:
    """Return the state after one more retry was set. One that waits longer by itself delays no other."""
    return replace(state, retry_ms=max(state.retry_ms, float(now_ms)) + _interval_ms(state, now_ms))


def recent(state: GateState, now_ms: int) -> float:
    """Return the number of requests in the window before now, older ones fading."""
    return state.traffic * math.exp(-max(0, now_ms - state.traffic_ms) / WINDOW_MS)


def _interval_ms(state: GateState, now_ms: int) -> float:
    return WINDOW_MS / max(FLOOR * WINDOW_MS / FLOOR_MS, SHARE * recent(state, now_ms))
