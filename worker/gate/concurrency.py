"""Adaptive concurrency: how many requests a host can take at once, found by trying. Pure.

Additive increase, multiplicative decrease. A round of good answers, with the limit really in use, adds one; a
refusal or a timeout takes three tenths. The limit at which the host has refused is remembered as the ceiling.
Below it the limit climbs quickly. It climbs to the ceiling only after a hold that doubles with each refusal
there, so that probing for more costs next to nothing. Answers to requests sent before a cut are part of what
led to the cut. Quick refusals are no good answers: they teach nothing but the ceiling.

A host that queues instead of refusing shows it by latency. The recent mean is compared with the usual
latency, which follows decreases at once and increases hardly. At twice the usual, seven tenths are cut. That
goes below where the last climb began, so each climb begins with a shorter queue, until there is none and the
usual latency is the host's own. Each cut raises the usual latency, which falls back at once if the cut has
helped: a host that has become slow for other reasons is not held down for ever.
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
"""How many times the usual latency counts as rising; times what a cut leaves it is well below 1."""
SLOWER_BY_MS = 20.0
ENOUGH = 24
ROUNDS = 3
"""The recent mean is over ENOUGH answers, or over ROUNDS rounds of them if that is more."""
GRANTED = 1.25
FALL = 1.0
RISE = 0.15
"""The usual latency follows the recent one: down in one round, up by about this share in a doubling."""


def allowed(limit: Limit, within: Range) -> int:
    """Return how many requests may be in flight."""
    return math.floor(_now(limit, within))


def good(limit: Limit, within: Range, in_flight: int, latency_ms: float, sent_ms: int, now_ms: int) -> Limit:
    """Return the limit after a good answer to a request sent at sent_ms."""
    if sent_ms <= limit.cut_ms:
        return limit
    now = _now(limit, within)
    enough = max(ENOUGH, int(ROUNDS * now))
    felt = min(limit.felt + 1, enough)
    recent_ms = limit.recent_ms + (latency_ms - limit.recent_ms) / felt
    usual_ms = limit.usual_ms
    if felt >= enough:
        share = FALL if recent_ms < usual_ms else RISE / now
        usual_ms = usual_ms + (recent_ms - usual_ms) * share / now if usual_ms else recent_ms
    limit = replace(limit, felt=felt, recent_ms=recent_ms, usual_ms=usual_ms)
    if in_flight * 2 <= now:
        return limit  # the limit was not in use: the answer says nothing of a higher one
    if felt < enough or recent_ms <= usual_ms * SLOWER + SLOWER_BY_MS:
        return _grown(limit, within, now_ms)
    less = max(float(within.min), now * CUT_FOR_LATENCY)
    return replace(_cut(limit, now_ms), now=less, usual_ms=usual_ms * GRANTED)


def refused(limit: Limit, within: Range, in_flight: int, sent_ms: int, now_ms: int) -> Limit:
    """Return the limit after a throttle or a timeout; one sent before the last cut belongs to that cut."""
    if sent_ms <= limit.cut_ms:
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
    """Return the limit after a good answer while it was in use."""
    now = _now(limit, within)
    if limit.probes_left > 1:
        return replace(limit, probes_left=limit.probes_left - 1)
    if limit.probes_left:  # after two rounds of good answers at the ceiling it is none any more
        return replace(limit, probes_left=0, ceiling=0, hold_s=HOLD_S)
    more, below = min(float(within.max), now + 1 / now), limit.ceiling - 1.0
    if not limit.ceiling or more <= below:
        return replace(limit, now=more)
    if now_ms < limit.hold_until_ms:
        return replace(limit, now=max(float(within.min), below))
    probe = float(min(limit.ceiling, within.max))
    return replace(limit, now=probe, probes_left=2 * limit.ceiling)


def _now(limit: Limit, within: Range) -> float:
    return max(float(within.min), min(float(within.max), limit.now or START))
