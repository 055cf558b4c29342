"""Bounds the numbers of a gate state that was read from Redis. Pure.

Redis is not trusted, and the policy may have changed since the state was saved. Afterwards no time is later
than the policy and the longest wait of a host allow, and no number overflows.
"""

import math

from msgspec.structs import replace

from fetchfleet.worker.gate.concurrency import HOLD_CAP_S, SAMPLE_ROUNDS
from fetchfleet.worker.gate.gate import ANSWERS_KEPT, MAX_FAILURE_CHARS, WaitReason
from fetchfleet.worker.gate.quota import MAX_WINDOW_S
from fetchfleet.worker.gate.robots_rules import MAX_CRAWL_DELAY_S
from fetchfleet.worker.gate.state import Breaker, GateState, Limit, RecordedAttempt
from fetchfleet.worker.gate.waits import MAX_PERIODS
from fetchfleet.worker.policy.model import BOUNDS, LanePolicy
from fetchfleet.worker.util.backoff import upward_jitter_s

MAX_IN_A_ROW = 1000
"""The maximum count of throttles, openings or failed robots.txt requests. Waits reach their caps earlier."""

MAX_FAILURES = 1_000_000
"""The maximum failure count of a host whose breaker is not closed. Each failed probe counts."""

MAX_TRAFFIC = 1e7
MAX_RETRIES_AHEAD_MS = 3_600_000
"""The maximum delay that the retry budget imposes."""

MAX_LATENCY_MS = 24 * 3600 * 1000.0
MAX_SAMPLES = SAMPLE_ROUNDS * BOUNDS["concurrency"].maximum
MAX_ANSWER_CHARS = 40
MAX_CLOSED_S = 24 * 3600.0
"""The maximum time for which a closed period may last from now on."""

_REASONS = frozenset(WaitReason)


def bounded(state: GateState, policy: LanePolicy, now_ms: int) -> GateState:
    """Return the state with every number within its bounds. A state written by this version stays equal."""

    def until(until_ms: int, longest_s: float) -> int:
        return _clamped(until_ms, now_ms + math.ceil(upward_jitter_s(longest_s, 1.0) * 1000))

    longest_s = max(policy.throttle_cap_s, policy.retry_cap_s)
    down_since_ms = state.down_since_ms
    if state.breaker is not Breaker.CLOSED and not 0 < down_since_ms <= now_ms:
        down_since_ms = now_ms
    return replace(
        state,
        cool_until_ms=until(state.cool_until_ms, policy.throttle_cap_s),
        cool_since_ms=_clamped(state.cool_since_ms, now_ms),
        # The gate itself bounds this time by the policy in force (_paced_ms).
        paced_ms=_clamped_float(state.paced_ms, math.inf),
        incidents=_clamped(state.incidents, MAX_IN_A_ROW),
        quota_until_ms=until(state.quota_until_ms, MAX_WINDOW_S),
        quota_left=max(0, state.quota_left),
        quota_interval_ms=_clamped_float(state.quota_interval_ms, MAX_WINDOW_S * 1000),
        failures=_clamped(
            state.failures, policy.breaker_failures if state.breaker is Breaker.CLOSED else MAX_FAILURES
        ),
        failed=state.failed[-policy.breaker_failures :],
        open_until_ms=until(state.open_until_ms, max(policy.breaker_reset_s, policy.breaker_cap_s)),
        opens=_clamped(state.opens, MAX_IN_A_ROW),
        down_since_ms=_clamped(down_since_ms, now_ms),
        last_failure=state.last_failure[:MAX_FAILURE_CHARS],
        robots_until_ms=until(state.robots_until_ms, longest_s),
        robots_failures=_clamped(state.robots_failures, MAX_IN_A_ROW),
        crawl_delay_s=_clamped_float(state.crawl_delay_s, MAX_CRAWL_DELAY_S),
        traffic=_clamped_float(state.traffic, MAX_TRAFFIC),
        traffic_ms=_clamped(state.traffic_ms, now_ms),
        retry_ms=_clamped_float(state.retry_ms, float(now_ms + MAX_RETRIES_AHEAD_MS)),
        limit=state.limit if state.limit == Limit() else _limit(state.limit, now_ms),
        answers=tuple(
            RecordedAttempt(_clamped(answer.at_ms, now_ms), answer.outcome[:MAX_ANSWER_CHARS])
            for answer in state.answers[-ANSWERS_KEPT:]
        ),
        closed=tuple(
            replace(period, until_ms=until(period.until_ms, MAX_CLOSED_S))
            for period in state.closed[-MAX_PERIODS:]
            if period.why in _REASONS and 0 <= period.from_ms <= min(now_ms, period.until_ms)
        ),
    )


def _limit(limit: Limit, now_ms: int) -> Limit:
    maximum = int(BOUNDS["concurrency"].maximum)
    return Limit(
        now=_clamped_float(limit.now, float(maximum)),
        ceiling=_clamped(limit.ceiling, maximum),
        hold_until_ms=_clamped(limit.hold_until_ms, now_ms + int(HOLD_CAP_S * 1000)),
        hold_s=_clamped_float(limit.hold_s, HOLD_CAP_S),
        probes_left=_clamped(limit.probes_left, 2 * maximum),
        cut_ms=_clamped(limit.cut_ms, now_ms),
        usual_ms=_clamped_float(limit.usual_ms, MAX_LATENCY_MS),
        recent_ms=_clamped_float(limit.recent_ms, MAX_LATENCY_MS),
        felt=_clamped(limit.felt, int(MAX_SAMPLES)),
    )


def _clamped(value: int, maximum: int) -> int:
    return max(0, min(value, maximum))


def _clamped_float(value: float, maximum: float) -> float:
    # Returns the same object if possible: msgspec omits a default by identity.
    return value if 0.0 <= value <= maximum else max(0.0, min(value, maximum))
