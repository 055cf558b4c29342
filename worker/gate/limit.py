"""How many fetches a host can take at once, found by trying: adaptive concurrency. Pure.

Additive increase, multiplicative cut. A round of good answers, with the limit really in use, adds one;
a refusal or a time-out takes three tenths. Where the host has refused is remembered as the ceiling:
below it the limit climbs quickly, to it only after a hold that doubles with each refusal there, so that
looking for more costs next to nothing. Latency that rises while the limit is in use cuts it too. Quick
refusals are no good answers: they teach nothing but the ceiling.
"""

import math

from msgspec.structs import replace

from worker.gate.state import Limit
from worker.policy import Range

START = 4
CUT = 0.7
CUT_FOR_LATENCY = 0.9
HOLD_S = 30.0
HOLD_CAP_S = 600.0
SLOWER = 2.0
"""So many times the usual latency is rising latency."""
SLOWER_BY_MS = 20.0
RECENT = 0.2
DRIFT = 0.005
"""How quickly the usual latency follows upwards: a host that has become slower for good is the usual."""


def allowed(limit: Limit, within: Range) -> int:
    """How many may be in flight."""
    return max(within.min, min(within.max, math.floor(_now(limit, within))))


def good(
    limit: Limit, within: Range, in_flight: int, latency_ms: float, started_ms: int, now_ms: int
) -> Limit:
    """The limit after a good answer to a request that was sent at started_ms."""
    limit = _felt(limit, latency_ms)
    if in_flight * 2 <= _now(limit, within):
        return limit  # it was not really used: the answer says nothing of more
    if _is_slow(limit) and started_ms > limit.cut_ms:
        slower = max(float(within.min), _now(limit, within) * CUT_FOR_LATENCY)
        return replace(limit, now=slower, cut_ms=now_ms, probes_left=0)
    return _grown(limit, within, now_ms)


def refused(limit: Limit, within: Range, in_flight: int, started_ms: int, now_ms: int) -> Limit:
    """The limit after a throttle or a time-out; what was sent before the last cut is part of it."""
    if started_ms <= limit.cut_ms:
        return limit
    at = max(1, min(math.floor(_now(limit, within)), in_flight))
    was_probe = limit.probes_left > 0
    hold_s = min(limit.hold_s * 2, HOLD_CAP_S) if was_probe else HOLD_S
    lower = at - 1 if was_probe else at * CUT
    return replace(
        limit,
        now=max(float(within.min), float(lower)),
        ceiling=at,
        hold_s=hold_s,
        hold_until_ms=now_ms + int(hold_s * 1000),
        cut_ms=now_ms,
        probes_left=0,
    )


def _grown(limit: Limit, within: Range, now_ms: int) -> Limit:
    now = _now(limit, within)
    if limit.probes_left:
        return _probed(limit)
    more = min(float(within.max), now + 1 / now)
    if not limit.ceiling or more < limit.ceiling:
        return replace(limit, now=more)
    if now_ms < limit.hold_until_ms:
        return replace(limit, now=max(float(within.min), min(more, limit.ceiling - 1.0)))
    probe = float(min(limit.ceiling, within.max))
    return replace(limit, now=probe, probes_left=2 * limit.ceiling)


def _probed(limit: Limit) -> Limit:
    """One good answer more at the ceiling; after two rounds of them it is none any more."""
    if limit.probes_left > 1:
        return replace(limit, probes_left=limit.probes_left - 1)
    return replace(limit, probes_left=0, ceiling=0, hold_s=HOLD_S)


def _felt(limit: Limit, latency_ms: float) -> Limit:
    if not limit.usual_ms:
        return replace(limit, usual_ms=latency_ms, recent_ms=latency_ms)
    drifted = limit.usual_ms + (latency_ms - limit.usual_ms) * DRIFT
    return replace(
        limit,
        usual_ms=min(latency_ms, drifted),
        recent_ms=limit.recent_ms + (latency_ms - limit.recent_ms) * RECENT,
    )


def _is_slow(limit: Limit) -> bool:
    return limit.recent_ms > limit.usual_ms * SLOWER + SLOWER_BY_MS


def _now(limit: Limit, within: Range) -> float:
    return limit.now or float(max(within.min, min(within.max, START)))
