"""The retry budget of a lane: a fifth of its recent traffic, and at least three in two seconds. Pure.

Retries over the budget are delayed, not dropped. A host in trouble therefore receives first attempts and few
retries. The budget is a GCRA: a fifth of the recent traffic, or FLOOR retries, may be made at once.
"""

from msgspec.structs import replace

from fetchfleet.worker.gate.state import TRAFFIC_WINDOW_MS, GateState, recent_traffic

SHARE = 0.2
FLOOR = 3
FLOOR_MS = 2_000


def retry_not_before_ms(state: GateState, now_ms: int) -> int:
    """Return the earliest time for one more retry, in Unix ms."""
    at_once = max(float(FLOOR), SHARE * recent_traffic(state, now_ms))
    return max(now_ms, round(state.retry_ms - (at_once - 1) * _interval_ms(state, now_ms)))


def retried(state: GateState, now_ms: int) -> GateState:
    """Return the state after one more retry was scheduled, for any time."""
    return replace(state, retry_ms=max(state.retry_ms, float(now_ms)) + _interval_ms(state, now_ms))


def _interval_ms(state: GateState, now_ms: int) -> float:
    floor = FLOOR * TRAFFIC_WINDOW_MS / FLOOR_MS
    return TRAFFIC_WINDOW_MS / max(floor, SHARE * recent_traffic(state, now_ms))
