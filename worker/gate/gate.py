"""Decides whether a lane may start a fetch now, and if not, when and why. State in, decision out. Pure."""

import math
from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple

from msgspec.structs import replace

from fetchfleet.worker.gate import breaker, concurrency
from fetchfleet.worker.gate.quota import Quota
from fetchfleet.worker.gate.state import (
    TRAFFIC_WINDOW_MS,
    Breaker,
    GateState,
    RecordedAttempt,
    recent_traffic,
    request_sent,
)
from fetchfleet.worker.policy.model import LanePolicy, Range
from fetchfleet.worker.util.backoff import exponential_s, upward_jitter_s

THROTTLE_BASE_S = 1.0
"""The first cool-down of a host that throttles without Retry-After; it doubles up to the cap."""
THROTTLE_CURVE_CAP_S = 600.0
FORGIVE_AFTER_MS = 60_000
"""Each period of this length without a cool-down undoes one doubling of the throttle curve."""

PAUSE_LOOK_MS = 600_000
"""The interval at which a paused lane is checked. The end of a pause makes the lane due at once."""

ANSWERS_KEPT = 5
"""The number of recent answers in the state, for operators."""

MAX_FAILURE_CHARS = 200
"""The maximum length of the last failure in the state."""


class WaitReason(StrEnum):
    """The reason a lane is closed. The values appear in logs and in the status."""

    COOL_DOWN = "cooling"
    """The host asked the client to back off."""
    BREAKER = "breaker"
    """The circuit breaker is open."""
    RATE_LIMIT = "pacing"
    """The policy's rate limit, or the crawl delay of robots.txt."""
    QUOTA = "quota"
    """The quota that the host declared in RateLimit fields."""
    PAUSED = "paused"
    """An operator or the policy file paused the host."""
    ROBOTS = "robots"
    """robots.txt is unavailable."""


class Admit(NamedTuple):
    """A fetch may start."""


class Saturated(NamedTuple):
    """No fetch may start before one in flight ends: the concurrency limit is reached."""


class Closed(NamedTuple):
    """No fetch may start before a point in time."""

    until_ms: int
    """The time to ask again, in Unix ms."""
    why: WaitReason


Admission = Admit | Saturated | Closed

ADMIT, SATURATED = Admit(), Saturated()


class HostSignal(StrEnum):
    """The meaning of an attempt for its host."""

    ANSWERED = "answered"
    """The host works. Its response may still be an error, such as a 404."""
    REFUSED = "refused"
    """The host responded that it is overloaded: a throttle or a 503."""
    FAILED = "failed"
    """The connection or the exchange failed, or the host responded with a failure such as a 500."""
    TIMED_OUT = "timed out"
    """No response, or not all of it, within a timeout of the policy."""
    NAMELESS = "nameless"
    """The name of the host does not exist in DNS."""
    NOTHING = "nothing"
    """The attempt says nothing about the host."""


class Observation(NamedTuple):
    """The result of one attempt, as far as it concerns its host."""

    signal: HostSignal
    sent_ms: int
    """The time when the request was sent, in Unix ms."""
    in_flight: int
    """The number of fetches in flight when the attempt ended."""
    latency_ms: float | None = None
    """The time from the request to the head of a good response; None without a good response."""
    outcome: str = ""
    """The status of the response, or the reason none was received."""
    throttle: bool = False
    """True if the response asked to back off (429, or 403 or 503 with Retry-After)."""
    fetch_id: str = ""
    """The fetch whose request was sent; empty if no request was sent, or one for robots.txt."""
    note: str = ""
    """The details of a failure, without secrets."""

    @property
    def failure(self) -> str:
        """The failure in words: `status 500`, or the reason with its note."""
        if self.outcome.isdecimal():
            return f"status {self.outcome}"
        return (f"{self.outcome}, {self.note}" if self.note else self.outcome)[:MAX_FAILURE_CHARS]


def admit(state: GateState, policy: LanePolicy, in_flight: int, now_ms: int) -> Admission:
    """Decide whether a fetch may start now."""
    closed = closed_until(state, policy, now_ms)
    if closed is not None:
        return closed
    return admit_to_open(state, policy, in_flight)


def admit_to_open(state: GateState, policy: LanePolicy, in_flight: int) -> Admit | Saturated:
    """Decide whether a fetch may start in a lane that `closed_until` leaves open."""
    return SATURATED if in_flight >= max_in_flight(state, policy) else ADMIT


def needs_clock(state: GateState, policy: LanePolicy) -> bool:
    """Return whether `closed_until` may close the lane. If False, the lane is open at any time."""
    return bool(
        state.cool_until_ms
        or state.breaker is Breaker.OPEN
        or policy.rate_per_s
        or policy.paused
        or state.quota_until_ms
        or (policy.robots == "obey" and (state.crawl_delay_s or state.robots_until_ms))
    )


def max_in_flight(state: GateState, policy: LanePolicy) -> int:
    """Return the limit of fetches in flight.

    It is one while the breaker is not closed. Else it is that of the policy, or the learned one within the
    range of the policy.
    """
    if state.breaker is not Breaker.CLOSED:
        return 1
    if isinstance(policy.concurrency, int):
        return policy.concurrency
    return concurrency.allowed(state.limit, policy.concurrency)


def closed_until(state: GateState, policy: LanePolicy, now_ms: int) -> Closed | None:
    """Return when and why the lane opens, or None if it is open now. The longest of all waits counts."""
    if policy.paused:
        return Closed(now_ms + PAUSE_LOOK_MS, WaitReason.PAUSED)
    until_ms, why = _host_closed_until(state)
    if policy.quota and state.quota_until_ms > now_ms:
        # The next fetch is due an interval after the last start, or when the window ends.
        quota_ms = state.quota_until_ms
        if state.quota_left:
            quota_ms = min(state.traffic_ms + math.ceil(state.quota_interval_ms), quota_ms)
        if quota_ms > until_ms:
            until_ms, why = quota_ms, WaitReason.QUOTA
    interval_ms, burst = _spacing(state, policy)
    if interval_ms:
        # GCRA: a fetch conforms if it is at most (burst - 1) intervals before its theoretical arrival time.
        conforms_ms = math.ceil(_paced_ms(state, interval_ms, burst, now_ms) - (burst - 1) * interval_ms)
        if conforms_ms > until_ms:
            until_ms, why = conforms_ms, WaitReason.RATE_LIMIT
    if policy.robots == "obey" and state.robots_until_ms > until_ms:
        until_ms, why = state.robots_until_ms, WaitReason.ROBOTS
    return Closed(until_ms, why) if until_ms > now_ms else None


def blocked_until_ms(state: GateState, policy: LanePolicy, now_ms: int) -> int:
    """Return the time until which an admitted fetch must wait after all, in Unix ms; 0 if it may start.

    The host may have throttled or failed since the fetch was admitted. Rate limit and quota are not checked:
    they have counted the fetch already.
    """
    if policy.paused:
        return now_ms + PAUSE_LOOK_MS
    until_ms, _ = _host_closed_until(state)
    return until_ms if until_ms > now_ms else 0


def _host_closed_until(state: GateState) -> tuple[int, WaitReason]:
    """Return the later end (Unix ms) of the cool-down and the open breaker, and which of them it is."""
    if state.breaker is Breaker.OPEN and state.open_until_ms > state.cool_until_ms:
        return state.open_until_ms, WaitReason.BREAKER
    return state.cool_until_ms, WaitReason.COOL_DOWN


def is_dead(state: GateState, policy: LanePolicy, now_ms: int) -> bool:
    """Return whether the host has been down for give_up_s (or give_up_dns_s), so its waiting fetches fail."""
    if state.breaker is not Breaker.OPEN:
        return False
    give_up_s = policy.give_up_dns_s if state.nameless else policy.give_up_s
    return now_ms - state.down_since_ms >= give_up_s * 1000


def started(state: GateState, policy: LanePolicy, now_ms: int) -> GateState:
    """Return the state after a request was let through."""
    if state.breaker is Breaker.OPEN:
        state = breaker.probing(state)
    state = request_sent(state, now_ms)
    if not needs_clock(state, policy):
        return state
    interval_ms, burst = _spacing(state, policy)
    if interval_ms:
        paced_ms = max(_paced_ms(state, interval_ms, burst, now_ms), now_ms) + interval_ms
        state = replace(state, paced_ms=paced_ms)
    if now_ms < state.quota_until_ms:
        state = replace(state, quota_left=max(0, state.quota_left - 1))
    return state


def is_wary(state: GateState, policy: LanePolicy, now_ms: int) -> bool:
    """Return whether a fetch in flight may not have further requests at once, as the host has throttled.

    Adaptive concurrency has learned from the throttle how many requests the host takes.
    """
    return isinstance(policy.concurrency, int) and now_ms < state.cool_until_ms + FORGIVE_AFTER_MS


def is_healthy(state: GateState, policy: LanePolicy) -> bool:
    """Return whether a good response changes nothing in the state but `answers` (see `answered`)."""
    return (
        state.breaker is Breaker.CLOSED
        and not state.failures
        and not state.nameless
        and isinstance(policy.concurrency, int)
    )


def grant(state: GateState, policy: LanePolicy) -> int:
    """Return the grant: how many fetches may be in flight until the state or the policy changes.

    A host has a grant if it is healthy and no limit depends on the clock. Starts and good responses then
    change no decision, and `count_granted` counts them later. 0 means no grant: call `admit`, `started` and
    `attempt_ended` for each fetch.
    """
    limit = policy.concurrency
    if not isinstance(limit, int) or needs_clock(state, policy) or not is_healthy(state, policy):
        return 0
    return limit


def count_granted(state: GateState, starts_ms: Sequence[int], ended: Sequence[RecordedAttempt]) -> GateState:
    """Return the state after the requests and good responses made under a grant, each in order."""
    traffic, traffic_ms = state.traffic, state.traffic_ms
    for at_ms in starts_ms:
        traffic = traffic * math.exp(-max(0, at_ms - traffic_ms) / TRAFFIC_WINDOW_MS) + 1
        traffic_ms = at_ms
    recent = (*state.answers, *ended)[-ANSWERS_KEPT:]
    return replace(state, traffic=traffic, traffic_ms=traffic_ms, answers=recent)


def answered(state: GateState, outcome: str, now_ms: int) -> GateState:
    """Return the state with one more recorded attempt. outcome: a status, or the reason for no response."""
    return replace(state, answers=(*state.answers[1 - ANSWERS_KEPT :], RecordedAttempt(now_ms, outcome)))


def attempt_ended(
    state: GateState, policy: LanePolicy, observation: Observation, now_ms: int, chance: float
) -> GateState:
    """Return the state after an attempt. For the breaker, a throttle is a success: the host is up.

    chance: in [0, 1); lengthens the time for which the breaker opens.
    """
    if observation.outcome:
        state = answered(state, observation.outcome, now_ms)
    if observation.signal is HostSignal.NOTHING:
        return state
    within, limit = policy.concurrency, state.limit
    sent_ms, in_flight = observation.sent_ms, observation.in_flight
    if isinstance(within, Range):
        if observation.signal in {HostSignal.REFUSED, HostSignal.TIMED_OUT}:
            limit = concurrency.after_refusal(limit, within, in_flight, sent_ms, now_ms)
        elif observation.signal is HostSignal.ANSWERED and observation.latency_ms is not None:
            limit = concurrency.after_good_response(
                limit, within, in_flight, observation.latency_ms, sent_ms, now_ms
            )
        state = replace(state, limit=limit)
    failed = observation.signal in {HostSignal.FAILED, HostSignal.TIMED_OUT, HostSignal.NAMELESS} or (
        observation.signal is HostSignal.REFUSED and not observation.throttle
    )
    nameless = observation.signal is HostSignal.NAMELESS
    if state.nameless is not nameless:
        state = replace(state, nameless=nameless)
    if failed:
        state = replace(state, last_failure=observation.failure)
    elif state.last_failure and state.breaker is not Breaker.OPEN:
        state = replace(state, last_failure="")
    rules = breaker.BreakerRules(policy.breaker_failures, policy.breaker_reset_s, policy.breaker_cap_s)
    return breaker.after_attempt(
        state, rules, failed=failed, now_ms=now_ms, chance=chance, fetch_id=observation.fetch_id
    )


def quota_received(
    state: GateState, quota: Quota, in_flight: int, now_ms: int, at_once: int = 0
) -> GateState:
    """Return the state after a response with the quota of the host.

    The in_flight requests are subtracted, because the host may not have counted them. The rest may start in
    the window. Starts are spread over the window, unless both the recent rate and at_once stay within the
    quota. at_once: the fetches that may start before the next response.
    """
    window_ms = quota.window_s * 1000
    left = max(0, quota.remaining - in_flight)
    expected = recent_traffic(state, now_ms) / TRAFFIC_WINDOW_MS * window_ms
    return replace(
        state,
        quota_until_ms=now_ms + math.ceil(window_ms),
        quota_left=left,
        quota_interval_ms=0.0 if max(expected, at_once) <= left else window_ms / max(1, left),
    )


def robots_unavailable(
    state: GateState, policy: LanePolicy, now_ms: int, chance: float, asked_s: float | None = None
) -> GateState:
    """Return the state after robots.txt was unavailable: the lane is closed until the next request for it.

    The wait doubles each time in a row, by the retry keys of the policy. asked_s: the Retry-After of the
    response, a minimum for the wait. chance: in [0, 1); lengthens the wait.
    """
    failures = state.robots_failures + 1
    wait_s = exponential_s(max(failures, state.failures), policy.retry_base_s, policy.retry_cap_s)
    wait_s = max(wait_s, min(asked_s or 0.0, policy.throttle_cap_s))
    until_ms = now_ms + math.ceil(upward_jitter_s(wait_s, chance) * 1000)
    return replace(state, robots_until_ms=until_ms, robots_failures=failures)


def crawl_delay_received(state: GateState, delay_s: float, asked_ms: int) -> GateState:
    """Return the state with the crawl delay of robots.txt; 0 for none.

    asked_ms: when robots.txt was requested, which counts as a start; 0 if it came from the cache.
    """
    paced_ms = max(state.paced_ms, asked_ms + delay_s * 1000) if asked_ms and delay_s else state.paced_ms
    return replace(state, crawl_delay_s=delay_s, paced_ms=paced_ms, robots_failures=0)


def _spacing(state: GateState, policy: LanePolicy) -> tuple[float, int]:
    """Return the time between starts in ms (0 without a rate limit), and how many may start together."""
    interval_ms = 1000 / policy.rate_per_s if policy.rate_per_s else 0.0
    if policy.robots == "obey" and state.crawl_delay_s:
        return max(interval_ms, state.crawl_delay_s * 1000), 1
    return interval_ms, policy.burst


def _paced_ms(state: GateState, interval_ms: float, burst: int, now_ms: int) -> float:
    """Return the theoretical arrival time of GCRA, at most a full burst at the current rate from now.

    A saved time may exceed that if the rate was lower before.
    """
    return min(state.paced_ms, now_ms + burst * interval_ms)


def throttled(
    state: GateState, policy: LanePolicy, asked_s: float | None, now_ms: int, chance: float
) -> GateState:
    """Return the state after a throttle: a cool-down of asked_s, or by the curve if that is None.

    The curve grows once per incident. Throttles of requests that were in flight when the cool-down began
    belong to the same incident. With adaptive concurrency above its minimum the curve does not grow, because
    the limit shrinks instead and its probes are occasionally refused. chance: in [0, 1); lengthens the wait.
    """
    if asked_s is not None:
        wait_s = upward_jitter_s(min(asked_s, policy.throttle_cap_s), chance)
        until_ms = max(state.cool_until_ms, now_ms + math.ceil(wait_s * 1000))
        return replace(state, cool_until_ms=until_ms, cool_since_ms=now_ms)
    if state.cool_until_ms > now_ms:
        return state
    # Counted from the end of the cool-down, during which the host received no request to throttle.
    forgiven = (now_ms - state.cool_until_ms) // FORGIVE_AFTER_MS
    incidents, within = max(0, state.incidents - forgiven), policy.concurrency
    if not isinstance(within, Range) or concurrency.allowed(state.limit, within) <= within.min:
        incidents += 1
    cap_s = min(THROTTLE_CURVE_CAP_S, policy.throttle_cap_s)
    wait_s = upward_jitter_s(exponential_s(incidents, min(THROTTLE_BASE_S, cap_s), cap_s), chance)
    until_ms = now_ms + math.ceil(wait_s * 1000)
    return replace(state, incidents=incidents, cool_until_ms=until_ms, cool_since_ms=now_ms)
