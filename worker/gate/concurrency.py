"""How many fetches a host can take at once, found by trying: adaptive concurrency. Pure.

Additive increase, multiplicative cut. A round of good answers, with the limit really in use, adds one;
a refusal or a time-out takes three tenths. Where the host has refused is remembered as the ceiling:
below it the limit climbs quickly, to it only after a hold that doubles with each refusal there, so that
looking for more costs next to nothing. Answers to what was sent before a cut are part of what led to it.
Quick refusals are no good answers: they teach nothing but the ceiling.

A host that queues instead of refusing shows it by latency. Its recent mean is held against the usual,
which follows the lows at once and the highs hardly; at twice the usual, seven tenths are cut. That goes
below where the last climb began, so each climb begins with a shorter queue, until there is none and the
usual is the host's own. Each cut grants it a slower usual, to be taken back at once if the cut has helped:
a host that has become slow whatever we do is not held down for ever.
"""

import math

from msgspec.structs import replace

from fetchfleet.worker.gate.state import Limit
from fetchfleet.worker.policy.model import Range

START = 4
CUT = 0.7
HOLD_S = 30.0
HOLD_CAP_S = 240.0

CUT_FOR_LATENCY = 0.3
SLOWER = 2.0
"""So many times the usual latency is rising latency; times what a cut leaves it is well below 1."""
SLOWER_BY_MS = 20.0
ENOUGH = 24
ROUNDS = 3
"""The recent mean is over so many answers, or over so many rounds of them where that is more."""
GRANTED = 1.25
FALL = 1.0
RISE = 0.15
"""The usual latency follows the recent one: down in a round, up by about this share in a doubling."""


def allowed(limit: Limit, within: Range) -> int:
    """How many may be in flight."""
    return math.floor(_now(limit, within))


def good(
    limit: Limit, within: Range, in_flight: int, latency_ms: float, started_ms: int, now_ms: int
) -> Limit:
    """The limit after a good answer to a request that was sent at started_ms."""
    if started_ms <= limit.cut_ms:
        return limit
    now = _now(limit, within)
    limit = _felt(limit, now, latency_ms)
    if in_flight * 2 <= now:
        return limit  # it was not really used: the answer says nothing of more
    if not _is_slow(limit, now):
        return _grown(limit, within, now_ms)
    less = max(float(within.min), now * CUT_FOR_LATENCY)
    return replace(_cut(limit, now_ms), now=less, usual_ms=limit.usual_ms * GRANTED)


def refused(limit: Limit, within: Range, in_flight: int, started_ms: int, now_ms: int) -> Limit:
    """The limit after a throttle or a time-out; what was sent before the last cut is part of it."""
    if started_ms <= limit.cut_ms:
        return limit
    at = max(1, min(allowed(limit, within), in_flight))
    was_probe = limit.probes_left > 0
    hold_s = min(limit.hold_s * 2, HOLD_CAP_S) if was_probe else HOLD_S
    lower = at - 1 if was_probe else at * CUT
    return replace(
        _cut(limit, now_ms),
        now=max(float(within.min), float(lower)),
        ceiling=at,
        hold_s=hold_s,
        hold_until_ms=now_ms + int(hold_s * 1000),
    )


def _cut(limit: Limit, now_ms: int) -> Limit:
    return replace(limit, cut_ms=now_ms, probes_left=0, felt=0)


def _grown(limit: Limit, within: Range, now_ms: int) -> Limit:
    now = _now(limit, within)
    if limit.probes_left:
        return _probed(limit)
    more, below = min(float(within.max), now + 1 / now), limit.ceiling - 1.0
    if not limit.ceiling or more <= below:
        return replace(limit, now=more)
    if now_ms < limit.hold_until_ms:
        return replace(limit, now=max(float(within.min), below))
    probe = float(min(limit.ceiling, within.max))
    return replace(limit, now=probe, probes_left=2 * limit.ceiling)


def _probed(limit: Limit) -> Limit:
    """One good answer more at the ceiling; after two rounds of them it is none any more."""
    if limit.probes_left > 1:
        return replace(limit, probes_left=limit.probes_left - 1)
    return replace(limit, probes_left=0, ceiling=0, hold_s=HOLD_S)


def _felt(limit: Limit, now: float, latency_ms: float) -> Limit:
    felt = min(limit.felt + 1, _enough(now))
    recent_ms = limit.recent_ms + (latency_ms - limit.recent_ms) / felt
    usual_ms = limit.usual_ms
    if felt >= _enough(now):
        pace = FALL if recent_ms < usual_ms else RISE / now
        usual_ms = usual_ms + (recent_ms - usual_ms) * pace / now if usual_ms else recent_ms
    return replace(limit, felt=felt, recent_ms=recent_ms, usual_ms=usual_ms)


def _is_slow(limit: Limit, now: float) -> bool:
    return limit.felt >= _enough(now) and limit.recent_ms > limit.usual_ms * SLOWER + SLOWER_BY_MS


def _enough(now: float) -> int:
    return max(ENOUGH, int(ROUNDS * now))


def _now(limit: Limit, within: Range) -> float:
    return max(float(within.min), min(float(within.max), limit.now or START))
