"""The bounds of a state that was saved with its lane. Pure.

Redis is not trusted, and the policy may have changed since. No time lies further ahead than this policy and
the longest wait that a host can ask for allow; no number makes an arithmetic fail.
"""

import math

from msgspec.structs import replace

from fetchfleet.worker.gate.concurrency import HOLD_CAP_S, ROUNDS
from fetchfleet.worker.gate.gate import ANSWERS_KEPT
from fetchfleet.worker.gate.quota import MAX_WINDOW_S
from fetchfleet.worker.gate.robots_rules import MAX_CRAWL_DELAY_S
from fetchfleet.worker.gate.state import Breaker, GateState, Limit, RecordedAnswer
from fetchfleet.worker.policy.model import BOUNDS, LanePolicy
from fetchfleet.worker.util.backoff import upward_jitter_s

MAX_IN_A_ROW = 1000
"""Of throttles, openings and unavailable robots.txt files: their waits have long reached their caps."""

MAX_FAILURES = 1_000_000
"""Of a host that has failed for long: each probe that fails counts."""

MAX_TRAFFIC = 1e7
MAX_RETRIES_AHEAD_MS = 3_600_000
"""How far ahead retries are spaced out."""

MAX_LATENCY_MS = 24 * 3600 * 1000.0
MAX_FELT = ROUNDS * BOUNDS["concurrency"].most
MAX_ANSWER_CHARS = 40


def bounded(state: GateState, policy: LanePolicy, now_ms: int) -> GateState:
    """Return the state with every number within its bounds; a state of this version is changed by none."""

    def ahead(until_ms: int, longest_s: float) -> int:
        return _within(until_ms, now_ms + math.ceil(upward_jitter_s(longest_s, 1.0) * 1000))

    longest_s = max(policy.throttle_cap_s, policy.retry_cap_s)
    down_since_ms = state.down_since_ms
    if state.breaker is not Breaker.CLOSED and not 0 < down_since_ms <= now_ms:
        down_since_ms = now_ms
    return replace(
        state,
        cool_until_ms=ahead(state.cool_until_ms, policy.throttle_cap_s),
        cool_since_ms=_within(state.cool_since_ms, now_ms),
        # The gate bounds the pace ahead of now, by the policy of the moment.
        paced_ms=_part(state.paced_ms, math.inf),
        incidents=_within(state.incidents, MAX_IN_A_ROW),
        quota_until_ms=ahead(state.quota_until_ms, MAX_WINDOW_S),
        quota_left=max(0, state.quota_left),
        quota_interval_ms=_part(state.quota_interval_ms, MAX_WINDOW_S * 1000),
        failures=_within(
            state.failures, policy.breaker_failures if state.breaker is Breaker.CLOSED else MAX_FAILURES
        ),
        failed=state.failed[-policy.breaker_failures :],
        open_until_ms=ahead(state.open_until_ms, max(policy.breaker_reset_s, policy.breaker_cap_s)),
        opens=_within(state.opens, MAX_IN_A_ROW),
        down_since_ms=_within(down_since_ms, now_ms),
        robots_until_ms=ahead(state.robots_until_ms, longest_s),
        robots_failures=_within(state.robots_failures, MAX_IN_A_ROW),
        crawl_delay_s=_part(state.crawl_delay_s, MAX_CRAWL_DELAY_S),
        traffic=_part(state.traffic, MAX_TRAFFIC),
        traffic_ms=_within(state.traffic_ms, now_ms),
        retry_ms=_part(state.retry_ms, float(now_ms + MAX_RETRIES_AHEAD_MS)),
        limit=state.limit if state.limit == Limit() else _limit(state.limit, now_ms),
        answers=tuple(
            RecordedAnswer(_within(answer.at_ms, now_ms), answer.what[:MAX_ANSWER_CHARS])
            for answer in state.answers[-ANSWERS_KEPT:]
        ),
    )


def _limit(limit: Limit, now_ms: int) -> Limit:
    most = int(BOUNDS["concurrency"].most)
    return Limit(
        now=_part(limit.now, float(most)),
        ceiling=_within(limit.ceiling, most),
        hold_until_ms=_within(limit.hold_until_ms, now_ms + int(HOLD_CAP_S * 1000)),
        hold_s=_part(limit.hold_s, HOLD_CAP_S),
        probes_left=_within(limit.probes_left, 2 * most),
        cut_ms=_within(limit.cut_ms, now_ms),
        usual_ms=_part(limit.usual_ms, MAX_LATENCY_MS),
        recent_ms=_part(limit.recent_ms, MAX_LATENCY_MS),
        felt=_within(limit.felt, int(MAX_FELT)),
    )


def _within(value: int, most: int) -> int:
    return max(0, min(value, most))


def _part(value: float, most: float) -> float:
    # The same object if it is within: a default is not saved again.
    return value if 0.0 <= value <= most else max(0.0, min(value, most))
