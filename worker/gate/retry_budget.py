"""The retry budget of a lane: a fifth of its recent traffic, and at least three in two seconds. Pure.

Retries over the budget are spaced out, not refused. So a host in trouble gets first requests and hardly any
second ones. GCRA: a window's worth of them, or the floor, may go at once.
"""

from msgspec.structs import replace

from fetchfleet.worker.gate.state import TRAFFIC_WINDOW_MS, GateState, recent_traffic

SHARE = 0.2
FLOOR = 3
FLOOR_MS = 2_000


def retry_not_before_ms(state: GateState, now_ms: int) -> int:
    """Return the earliest time for one more retry."""
    at_once = max(float(FLOOR), SHARE * recent_traffic(state, now_ms))
    return max(now_ms, round(state.retry_ms - (at_once - 1) * _interval_ms(state, now_ms)))


def retried(state: GateState, now_ms: int) -> GateState:
    """Return the state after one more retry was set. One that waits longer by itself delays no other."""
    return replace(state, retry_ms=max(state.retry_ms, float(now_ms)) + _interval_ms(state, now_ms))


def _interval_ms(state: GateState, now_ms: int) -> float:
    floor = FLOOR * TRAFFIC_WINDOW_MS / FLOOR_MS
    return TRAFFIC_WINDOW_MS / max(floor, SHARE * recent_traffic(state, now_ms))
