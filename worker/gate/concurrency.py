"""Adaptive concurrency: learns how many requests a host can serve at once (AIMD). Pure.

Additive increase: a round of good responses, while more than half of the limit is in use, adds one.
Multiplicative decrease: a refusal or a timeout takes three tenths. The limit at which the host refused is
the ceiling. Below the ceiling the limit climbs quickly. It reaches the ceiling only after a hold that doubles
with each refusal there, so probes for more are rare. Responses to requests sent before a cut do not count.
Refusals are never good responses, however quick: they only set the ceiling.

A host that queues requests instead of refusing them responds later. The recent mean latency is compared with
the usual latency, which follows decreases at once and increases slowly. If the recent latency is twice the
usual one, the limit loses seven tenths. This is below the start of the last climb, so each climb starts with
a shorter queue. In the end the usual latency is that of the host without a queue. Each cut also raises the
usual latency by a quarter. It falls back at once if the cut has helped. If the host is slow for other
reasons, the raise ends the cuts.
"""

import math

from msgspec.structs import replace

from fetchfleet.worker.gate.state import Limit
from fetchfleet.worker.policy.model import Range

START_LIMIT = 4
REFUSAL_CUT = 0.7
"""The share of the limit that is left after a refusal."""
HOLD_S = 30.0
"""The first hold below the ceiling; it doubles up to HOLD_CAP_S."""
HOLD_CAP_S = 240.0

LATENCY_CUT = 0.3
SLOW_FACTOR = 2.0
"""The multiple of the usual latency that counts as rising. LATENCY_CUT times this is well below 1."""
SLOW_MARGIN_MS = 20.0
MIN_SAMPLES = 24
SAMPLE_ROUNDS = 3
"""The recent mean is over MIN_SAMPLES responses, or over SAMPLE_ROUNDS times the limit if that is more."""
USUAL_RAISE = 1.25
FOLLOW_DOWN = 1.0
"""The share by which the usual latency approaches a lower recent one, per round."""
FOLLOW_UP = 0.15
"""The share by which the usual latency approaches a higher one, roughly, per doubling of the limit."""


def allowed(limit: Limit, within: Range) -> int:
    """Return how many requests may be in flight."""
    return math.floor(_current(limit, within))


def after_good_response(
    limit: Limit, within: Range, in_flight: int, latency_ms: float, sent_ms: int, now_ms: int
) -> Limit:
    """Return the limit after a good response to a request sent at sent_ms."""
    if sent_ms <= limit.cut_ms:
        return limit
    current = _current(limit, within)
    min_samples = max(MIN_SAMPLES, int(SAMPLE_ROUNDS * current))
    felt = min(limit.felt + 1, min_samples)
    recent_ms = limit.recent_ms + (latency_ms - limit.recent_ms) / felt
    usual_ms = limit.usual_ms
    if felt >= min_samples:
        share = FOLLOW_DOWN if recent_ms < usual_ms else FOLLOW_UP / current
        usual_ms = usual_ms + (recent_ms - usual_ms) * share / current if usual_ms else recent_ms
    limit = replace(limit, felt=felt, recent_ms=recent_ms, usual_ms=usual_ms)
    if in_flight * 2 <= current:
        return limit  # the limit was not in use, so the response does not justify a higher one
    if felt < min_samples or recent_ms <= usual_ms * SLOW_FACTOR + SLOW_MARGIN_MS:
        return _grown(limit, within, now_ms)
    less = max(float(within.min), current * LATENCY_CUT)
    return replace(_cut(limit, now_ms), now=less, usual_ms=usual_ms * USUAL_RAISE)


def after_refusal(limit: Limit, within: Range, in_flight: int, sent_ms: int, now_ms: int) -> Limit:
    """Return the limit after a throttle, 503 or timeout. One sent before the last cut changes nothing."""
    if sent_ms <= limit.cut_ms:
        return limit
    at = max(1, min(allowed(limit, within), in_flight))
    was_probe = limit.probes_left > 0
    hold_s = min(limit.hold_s * 2, HOLD_CAP_S) if was_probe else HOLD_S
    lower = at - 1 if was_probe else at * REFUSAL_CUT
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
    """Return the limit after a good response while more than half of the limit was in use."""
    current = _current(limit, within)
    if limit.probes_left > 1:
        return replace(limit, probes_left=limit.probes_left - 1)
    if limit.probes_left:  # two rounds of good responses at the ceiling remove it
        return replace(limit, probes_left=0, ceiling=0, hold_s=HOLD_S)
    more, below = min(float(within.max), current + 1 / current), limit.ceiling - 1.0
    if not limit.ceiling or more <= below:
        return replace(limit, now=more)
    if now_ms < limit.hold_until_ms:
        return replace(limit, now=max(float(within.min), below))
    probe = float(min(limit.ceiling, within.max))
    return replace(limit, now=probe, probes_left=2 * limit.ceiling)


def _current(limit: Limit, within: Range) -> float:
    return max(float(within.min), min(float(within.max), limit.now or START_LIMIT))
