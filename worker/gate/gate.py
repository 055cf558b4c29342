"""May this lane start a fetch now, and if not, when and why? State in, decision out. Pure."""

from enum import StrEnum
from typing import NamedTuple

from msgspec.structs import replace

from worker.backoff import exponential_s, upward_jitter_s
from worker.gate import breaker
from worker.gate.state import Breaker, GateState
from worker.policy import LanePolicy

THROTTLE_BASE_S = 1.0
THROTTLE_CURVE_CAP_S = 600.0
QUIET_MS = 60_000
"""One step of the throttle curve is forgiven for each such time without a cool-down."""


class Why(StrEnum):
    """Why a lane is shut; closed."""

    COOLING = "cooling"
    BREAKER = "breaker"
    PACING = "pacing"


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
    FAILED = "failed"
    NOTHING = "nothing"


def admit(state: GateState, policy: LanePolicy, in_flight: int, now_ms: int) -> Verdict:
    """Whether a fetch may start now. The longest wait wins."""
    shut = shut_until(state, policy, now_ms)
    if shut is not None:
        return shut
    probing = state.breaker is not Breaker.CLOSED
    if in_flight >= (1 if probing else policy.concurrency):
        return Full()
    return Go()


def shut_until(state: GateState, policy: LanePolicy, now_ms: int) -> Shut | None:
    """When the lane opens by the clock alone, None if it is open."""
    waits = [
        Shut(state.cool_until_ms, Why.COOLING),
        Shut(state.open_until_ms if state.breaker is Breaker.OPEN else 0, Why.BREAKER),
        Shut(_paced_until_ms(state, policy), Why.PACING),
    ]
    longest = max(waits, key=lambda wait: wait.until_ms)
    return longest if longest.until_ms > now_ms else None


def started(state: GateState, policy: LanePolicy, now_ms: int) -> GateState:
    """The state after a fetch was let through."""
    state = breaker.probing(state)
    if policy.rate_per_s:
        interval_ms = 1000 / policy.rate_per_s
        state = replace(state, paced_ms=max(state.paced_ms, now_ms) + interval_ms)
    return state


def saw(state: GateState, policy: LanePolicy, seen: Seen, now_ms: int) -> GateState:
    """The state after an attempt ended. A throttle counts as an answer: the host is alive."""
    if seen is Seen.NOTHING:
        return state
    return breaker.after(
        state,
        failed=seen is Seen.FAILED,
        fail_max=policy.breaker_failures,
        reset_ms=int(policy.breaker_reset_s * 1000),
        now_ms=now_ms,
    )


def throttled(
    state: GateState, policy: LanePolicy, asked_s: float | None, now_ms: int, chance: float
) -> GateState:
    """The state after the host asked for quiet: for asked_s, or by a curve where it did not say.

    The curve grows once an incident: answers that were in flight when the cool-down began are part of
    it. chance in [0, 1) only ever lengthens the wait.
    """
    if asked_s is not None:
        wait_s = upward_jitter_s(min(asked_s, policy.throttle_cap_s), chance)
        return replace(state, cool_until_ms=max(state.cool_until_ms, now_ms + _ms(wait_s)))
    if state.cool_until_ms > now_ms:
        return state
    # Counted from the end of the cool-down: the quiet in it was ours, not the host's forgiveness.
    forgiven = (now_ms - state.cool_until_ms) // QUIET_MS
    incidents = max(0, state.incidents - forgiven) + 1
    cap_s = min(THROTTLE_CURVE_CAP_S, policy.throttle_cap_s)
    wait_s = upward_jitter_s(exponential_s(incidents, min(THROTTLE_BASE_S, cap_s), cap_s), chance)
    return replace(state, incidents=incidents, cool_until_ms=now_ms + _ms(wait_s))


def _paced_until_ms(state: GateState, policy: LanePolicy) -> int:
    """GCRA: a fetch conforms when it comes no earlier than its time less the burst's worth."""
    if not policy.rate_per_s:
        return 0
    interval_ms = 1000 / policy.rate_per_s
    return -int(-(state.paced_ms - (policy.burst - 1) * interval_ms) // 1)


def _ms(wait_s: float) -> int:
    return -int(-wait_s * 1000 // 1)
