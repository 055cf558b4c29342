"""May this lane start a fetch now, and if not, when and why? State in, decision out. Pure."""

from enum import StrEnum
from typing import NamedTuple

from msgspec.structs import replace

from fetchfleet.worker.gate import breaker, concurrency, retry_budget
from fetchfleet.worker.gate.quota import Quota
from fetchfleet.worker.gate.state import Breaker, GateState, Limit, RecordedAnswer
from fetchfleet.worker.policy.model import LanePolicy, Range
from fetchfleet.worker.util.backoff import exponential_s, upward_jitter_s

THROTTLE_BASE_S = 1.0
THROTTLE_CURVE_CAP_S = 600.0
FORGIVE_AFTER_MS = 60_000
"""One step of the throttle curve is forgiven for each such time without a cool-down."""

PAUSE_LOOK_MS = 600_000
"""A paused lane is looked at so often; resuming it wakes it at once."""

ANSWERS_KEPT = 5


class WaitReason(StrEnum):
    """Why a lane is shut; closed."""

    COOL_DOWN = "cooling"
    BREAKER = "breaker"
    RATE_LIMIT = "pacing"
    QUOTA = "quota"
    PAUSED = "paused"
    ROBOTS = "robots"


class Admit(NamedTuple):
    """A fetch may start."""


class Saturated(NamedTuple):
    """As many are in flight as may be: when one ends, ask again."""


class Closed(NamedTuple):
    """None may start before until_ms, whatever ends."""

    until_ms: int
    why: WaitReason


Admission = Admit | Saturated | Closed


class HostSignal(StrEnum):
    """What an attempt says about its host; closed."""

    ANSWERED = "answered"
    REFUSED = "refused"
    """It answers, yet it has too much to do: a throttle, a 503."""
    FAILED = "failed"
    TIMED_OUT = "timed out"
    NAMELESS = "nameless"
    """Its name does not exist."""
    NOTHING = "nothing"


class Observation(NamedTuple):
    """What an attempt has taught: what was seen, when its request was sent, with how many in flight.

    latency_ms: from the request to the head of a good answer, None without one. what: a status or a reason.
    """

    seen: HostSignal
    started_ms: int
    in_flight: int
    latency_ms: float | None = None
    what: str = ""
    throttle: bool = False


def admit(state: GateState, policy: LanePolicy, in_flight: int, now_ms: int) -> Admission:
    """Whether a fetch may start now. The longest wait wins."""
    shut = closed_until(state, policy, now_ms)
    if shut is not None:
        return shut
    if in_flight >= max_in_flight(state, policy):
        return Saturated()
    return Admit()


def max_in_flight(state: GateState, policy: LanePolicy) -> int:
    """How many may be in flight: one while a breaker is not closed, else the policy's or what was learnt."""
    if state.breaker is not Breaker.CLOSED:
        return 1
    if isinstance(policy.concurrency, int):
        return policy.concurrency
    return concurrency.allowed(state.limit, policy.concurrency)


def closed_until(state: GateState, policy: LanePolicy, now_ms: int) -> Closed | None:
    """When the lane opens by the clock alone, None if it is open."""
    if policy.paused:
        return Closed(now_ms + PAUSE_LOOK_MS, WaitReason.PAUSED)
    longest = _asked_for(state)
    if policy.quota and state.quota_until_ms > now_ms:
        longest = _longer(longest, _quota_until_ms(state), WaitReason.QUOTA)
    pace_ms, burst = _pace(state, policy)
    if pace_ms:
        longest = _longer(longest, _spaced_until_ms(state, pace_ms, burst), WaitReason.RATE_LIMIT)
    if _obeys(policy):
        longest = _longer(longest, state.robots_until_ms, WaitReason.ROBOTS)
    return Closed(*longest) if longest[0] > now_ms else None


def blocked_until_ms(state: GateState, policy: LanePolicy, now_ms: int) -> int:
    """Until when what was let through before must not go out after all; 0: it may.

    Between the two the host may have asked for quiet, or failed; pace and quota have counted it already.
    """
    if policy.paused:
        return now_ms + PAUSE_LOOK_MS
    until_ms, _ = _asked_for(state)
    return until_ms if until_ms > now_ms else 0


def _asked_for(state: GateState) -> tuple[int, WaitReason]:
    """Until when the host is to be left alone, as it said or showed by failing."""
    cooling = state.cool_until_ms, WaitReason.COOL_DOWN
    return (
        _longer(cooling, state.open_until_ms, WaitReason.BREAKER)
        if state.breaker is Breaker.OPEN
        else cooling
    )


def _longer(longest: tuple[int, WaitReason], until_ms: int, why: WaitReason) -> tuple[int, WaitReason]:
    return (until_ms, why) if until_ms > longest[0] else longest


def is_dead(state: GateState, policy: LanePolicy, now_ms: int) -> bool:
    """Whether the host has given no answer for so long that what waits for it need not wait on."""
    if state.breaker is not Breaker.OPEN:
        return False
    patience_s = policy.give_up_dns_s if state.nameless else policy.give_up_s
    return now_ms - state.down_since_ms >= patience_s * 1000


def started(state: GateState, policy: LanePolicy, now_ms: int) -> GateState:
    """The state after a fetch was let through."""
    state = retry_budget.sent(breaker.probing(state), now_ms)
    interval_ms, _ = _pace(state, policy)
    if interval_ms:
        state = replace(state, paced_ms=max(state.paced_ms, now_ms) + interval_ms)
    if now_ms < state.quota_until_ms:
        state = replace(state, quota_left=max(0, state.quota_left - 1))
    return state


def attempt_ended(
    state: GateState, policy: LanePolicy, signal: Observation, now_ms: int, chance: float
) -> GateState:
    """The state after an attempt ended. A throttle counts as an answer: the host is alive."""
    if signal.what:
        said = RecordedAnswer(now_ms, signal.what)
        state = replace(state, answers=(*state.answers[1 - ANSWERS_KEPT :], said))
    if signal.seen is HostSignal.NOTHING:
        return state
    if isinstance(policy.concurrency, Range):
        state = replace(state, limit=_learnt(state.limit, policy.concurrency, signal, now_ms))
    failed = signal.seen in {HostSignal.FAILED, HostSignal.TIMED_OUT, HostSignal.NAMELESS} or (
        signal.seen is HostSignal.REFUSED and not signal.throttle
    )
    if state.nameless is not (signal.seen is HostSignal.NAMELESS):
        state = replace(state, nameless=signal.seen is HostSignal.NAMELESS)
    rules = breaker.BreakerRules(policy.breaker_failures, policy.breaker_reset_s, policy.breaker_cap_s)
    return breaker.after_attempt(state, rules, failed=failed, now_ms=now_ms, chance=chance)


def quota_received(
    state: GateState, quota: Quota, in_flight: int, now_ms: int, at_once: int = 0
) -> GateState:
    """The state after the host said how much it will still take.

    What is in flight it may not have counted yet. No more than what is left may start in the window; it is
    spread over the window unless the lane's own pace, and the at_once fetches that may start before the next
    answer, keep within it.
    """
    window_ms = quota.window_s * 1000
    left = max(0, quota.remaining - in_flight)
    at_this_pace = retry_budget.recent(state, now_ms) / retry_budget.WINDOW_MS * window_ms
    return replace(
        state,
        quota_until_ms=now_ms + _ms(quota.window_s),
        quota_left=left,
        quota_interval_ms=0.0 if max(at_this_pace, at_once) <= left else window_ms / max(1, left),
    )


def robots_unavailable(state: GateState, policy: LanePolicy, now_ms: int, chance: float) -> GateState:
    """The state after the host did not say what its robots.txt allows: nothing, until it is asked again.

    The wait doubles with each failure in a row, as that of a retry does.
    """
    wait_s = exponential_s(state.failures, policy.retry_base_s, policy.retry_cap_s)
    return replace(state, robots_until_ms=now_ms + _ms(upward_jitter_s(wait_s, chance)))


def crawl_delay_learnt(state: GateState, delay_s: float, asked_ms: int) -> GateState:
    """The state once it is known how far apart the robots.txt wants requests to be.

    asked_ms: when it was asked for, since that was a request too; 0 if it was known to somebody.
    """
    paced_ms = max(state.paced_ms, asked_ms + delay_s * 1000) if asked_ms and delay_s else state.paced_ms
    return replace(state, crawl_delay_s=delay_s, paced_ms=paced_ms)


def _pace(state: GateState, policy: LanePolicy) -> tuple[float, int]:
    """How far apart fetches start, 0 for no pacing, and how many may start together."""
    pace_ms = 1000 / policy.rate_per_s if policy.rate_per_s else 0.0
    if _obeys(policy) and state.crawl_delay_s:
        return max(pace_ms, state.crawl_delay_s * 1000), 1
    return pace_ms, policy.burst


def _obeys(policy: LanePolicy) -> bool:
    return policy.robots == "obey"


def _learnt(learnt: Limit, within: Range, signal: Observation, now_ms: int) -> Limit:
    if signal.seen in {HostSignal.REFUSED, HostSignal.TIMED_OUT}:
        return concurrency.refused(learnt, within, signal.in_flight, signal.started_ms, now_ms)
    if signal.seen is HostSignal.ANSWERED and signal.latency_ms is not None:
        return concurrency.good(
            learnt, within, signal.in_flight, signal.latency_ms, signal.started_ms, now_ms
        )
    return learnt


def throttled(
    state: GateState, policy: LanePolicy, asked_s: float | None, now_ms: int, chance: float
) -> GateState:
    """The state after the host asked for quiet: for asked_s, or by a curve where it did not say.

    The curve grows once an incident: answers that were in flight when the cool-down began are part of
    it. It does not grow while there is concurrency to give up instead: a limit that is found by trying
    is refused now and then. chance in [0, 1) only ever lengthens the wait.
    """
    if asked_s is not None:
        wait_s = upward_jitter_s(min(asked_s, policy.throttle_cap_s), chance)
        until_ms = max(state.cool_until_ms, now_ms + _ms(wait_s))
        return replace(state, cool_until_ms=until_ms, cool_since_ms=now_ms)
    if state.cool_until_ms > now_ms:
        return state
    # Counted from the end of the cool-down: the quiet in it was ours, not the host's forgiveness.
    forgiven = (now_ms - state.cool_until_ms) // FORGIVE_AFTER_MS
    incidents = max(0, state.incidents - forgiven) + (0 if _can_yield(state, policy) else 1)
    cap_s = min(THROTTLE_CURVE_CAP_S, policy.throttle_cap_s)
    wait_s = upward_jitter_s(exponential_s(incidents, min(THROTTLE_BASE_S, cap_s), cap_s), chance)
    until_ms = now_ms + _ms(wait_s)
    return replace(state, incidents=incidents, cool_until_ms=until_ms, cool_since_ms=now_ms)


def _can_yield(state: GateState, policy: LanePolicy) -> bool:
    within = policy.concurrency
    return isinstance(within, Range) and concurrency.allowed(state.limit, within) > within.min


def _quota_until_ms(state: GateState) -> int:
    """Until when the host's quota holds the next fetch back: after the last start, by the window's end."""
    if not state.quota_left:
        return state.quota_until_ms
    return min(state.traffic_ms - int(-state.quota_interval_ms // 1), state.quota_until_ms)


def _spaced_until_ms(state: GateState, interval_ms: float, burst: int) -> int:
    """GCRA: a fetch conforms when it comes no earlier than its time less the burst's worth."""
    return -int(-(state.paced_ms - (burst - 1) * interval_ms) // 1)


def _ms(wait_s: float) -> int:
    return -int(-wait_s * 1000 // 1)
