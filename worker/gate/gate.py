"""May this lane start a fetch now, and if not, when and why? State in, decision out. Pure."""

from enum import StrEnum
from typing import NamedTuple

from msgspec.structs import replace

from fetchfleet.worker.gate import breaker, concurrency, retry_budget
from fetchfleet.worker.gate.quota import Quota
from fetchfleet.worker.gate.state import Breaker, GateState, Limit, Said
from fetchfleet.worker.policy.model import LanePolicy, Range
from fetchfleet.worker.util.backoff import exponential_s, upward_jitter_s

THROTTLE_BASE_S = 1.0
THROTTLE_CURVE_CAP_S = 600.0
QUIET_MS = 60_000
"""One step of the throttle curve is forgiven for each such time without a cool-down."""

PAUSE_LOOK_MS = 600_000
"""A paused lane is looked at so often; resuming it wakes it at once."""

ANSWERS_KEPT = 5


class Why(StrEnum):
    """Why a lane is shut; closed."""

    COOLING = "cooling"
    BREAKER = "breaker"
    PACING = "pacing"
    QUOTA = "quota"
    PAUSED = "paused"
    ROBOTS = "robots"


class Go(NamedTuple):
    """A fetch may start."""


class Full(NamedTuple):
    """As many are in flight as may be: when one ends, ask again."""


class Shut(NamedTuple):
    """None may start before until_ms, whatever ends."""

    until_ms: int
    why: Why


Verdict = Go | Full | Shut


class Seen(StrEnum):
    """What an attempt says about its host; closed."""

    ANSWERED = "answered"
    REFUSED = "refused"
    """It answers, yet it has too much to do: a throttle, a 503."""
    FAILED = "failed"
    TIMED_OUT = "timed out"
    NAMELESS = "nameless"
    """Its name does not exist."""
    NOTHING = "nothing"


class Signal(NamedTuple):
    """What an attempt has taught: what was seen, when its request was sent, with how many in flight.

    latency_ms: from the request to the head of a good answer, None without one. what: a status or a reason.
    """

    seen: Seen
    started_ms: int
    in_flight: int
    latency_ms: float | None = None
    what: str = ""
    throttle: bool = False


def admit(state: GateState, policy: LanePolicy, in_flight: int, now_ms: int) -> Verdict:
    """Whether a fetch may start now. The longest wait wins."""
    shut = shut_until(state, policy, now_ms)
    if shut is not None:
        return shut
    if in_flight >= room(state, policy):
        return Full()
    return Go()


def room(state: GateState, policy: LanePolicy) -> int:
    """How many may be in flight: one while a breaker is not closed, else the policy's or what was learnt."""
    if state.breaker is not Breaker.CLOSED:
        return 1
    if isinstance(policy.concurrency, int):
        return policy.concurrency
    return concurrency.allowed(state.limit, policy.concurrency)


def shut_until(state: GateState, policy: LanePolicy, now_ms: int) -> Shut | None:
    """When the lane opens by the clock alone, None if it is open."""
    if policy.paused:
        return Shut(now_ms + PAUSE_LOOK_MS, Why.PAUSED)
    longest = _asked_for(state)
    if policy.quota and state.quota_until_ms > now_ms:
        longest = _longer(longest, _quota_until_ms(state), Why.QUOTA)
    pace_ms, burst = _pace(state, policy)
    if pace_ms:
        longest = _longer(longest, _spaced_until_ms(state, pace_ms, burst), Why.PACING)
    if _obeys(policy):
        longest = _longer(longest, state.robots_until_ms, Why.ROBOTS)
    return Shut(*longest) if longest[0] > now_ms else None


def held_up_until(state: GateState, policy: LanePolicy, now_ms: int) -> int:
    """Until when what was let through before must not go out after all; 0: it may.

    Between the two the host may have asked for quiet, or failed; pace and quota have counted it already.
    """
    if policy.paused:
        return now_ms + PAUSE_LOOK_MS
    until_ms, _ = _asked_for(state)
    return until_ms if until_ms > now_ms else 0


def _asked_for(state: GateState) -> tuple[int, Why]:
    """Until when the host is to be left alone, as it said or showed by failing."""
    cooling = state.cool_until_ms, Why.COOLING
    return _longer(cooling, state.open_until_ms, Why.BREAKER) if state.breaker is Breaker.OPEN else cooling


def _longer(longest: tuple[int, Why], until_ms: int, why: Why) -> tuple[int, Why]:
    return (until_ms, why) if until_ms > longest[0] else longest


def dead(state: GateState, policy: LanePolicy, now_ms: int) -> bool:
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


def saw(state: GateState, policy: LanePolicy, signal: Signal, now_ms: int, chance: float) -> GateState:
    """The state after an attempt ended. A throttle counts as an answer: the host is alive."""
    if signal.what:
        said = Said(now_ms, signal.what)
        state = replace(state, answers=(*state.answers[1 - ANSWERS_KEPT :], said))
    if signal.seen is Seen.NOTHING:
        return state
    if isinstance(policy.concurrency, Range):
        state = replace(state, limit=_learnt(state.limit, policy.concurrency, signal, now_ms))
    failed = signal.seen in {Seen.FAILED, Seen.TIMED_OUT, Seen.NAMELESS} or (
        signal.seen is Seen.REFUSED and not signal.throttle
    )
    if state.nameless is not (signal.seen is Seen.NAMELESS):
        state = replace(state, nameless=signal.seen is Seen.NAMELESS)
    rules = breaker.Rules(policy.breaker_failures, policy.breaker_reset_s, policy.breaker_cap_s)
    return breaker.after(state, rules, failed=failed, now_ms=now_ms, chance=chance)


def told(state: GateState, quota: Quota, in_flight: int, now_ms: int, at_once: int = 0) -> GateState:
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


def kept_out(state: GateState, policy: LanePolicy, now_ms: int, chance: float) -> GateState:
    """The state after the host did not say what its robots.txt allows: nothing, until it is asked again.

    The wait doubles with each failure in a row, as that of a retry does.
    """
    wait_s = exponential_s(state.failures, policy.retry_base_s, policy.retry_cap_s)
    return replace(state, robots_until_ms=now_ms + _ms(upward_jitter_s(wait_s, chance)))


def spaced(state: GateState, delay_s: float, asked_ms: int) -> GateState:
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


def _learnt(learnt: Limit, within: Range, signal: Signal, now_ms: int) -> Limit:
    if signal.seen in {Seen.REFUSED, Seen.TIMED_OUT}:
        return concurrency.refused(learnt, within, signal.in_flight, signal.started_ms, now_ms)
    if signal.seen is Seen.ANSWERED and signal.latency_ms is not None:
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
    forgiven = (now_ms - state.cool_until_ms) // QUIET_MS
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
