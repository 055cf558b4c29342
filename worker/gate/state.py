"""The state of a gate: what a lane knows of its host. Saved with the lane for its next owner. Pure."""

import math
from collections.abc import Callable
from enum import StrEnum

import msgspec


class Breaker(StrEnum):
    """The state of a circuit breaker. The values are those of pybreaker."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class Limit(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The learned concurrency limit of a host (worker/gate/concurrency.py). Times are Unix ms."""

    now: float = 0.0
    """The current limit; 0 until it changes for the first time."""
    ceiling: int = 0
    """The number of fetches in flight at which the host refused; 0 if it has not."""
    hold_until_ms: int = 0
    """The time when the ceiling may be tried again."""
    hold_s: float = 0.0
    """The length of the last hold."""
    probes_left: int = 0
    """Good responses at the ceiling that are missing until it is removed; 0 if it is not being tried."""
    cut_ms: int = 0
    """The time when the limit was last reduced."""
    usual_ms: float = 0.0
    """The usual latency; 0 if not known yet."""
    recent_ms: float = 0.0
    """The mean latency of recent good responses."""
    felt: int = 0
    """The number of responses in recent_ms since the last cut."""


class RecordedAttempt(msgspec.Struct, frozen=True, array_like=True):
    """The outcome of one attempt, for operators."""

    at_ms: int
    """The time when the attempt ended, in Unix ms."""
    outcome: str
    """The status of the response, or the reason none was received."""


class ClosedPeriod(msgspec.Struct, frozen=True, array_like=True):
    """A period in which the lane was closed. Times are Unix ms."""

    why: str
    """The reason: a value of WaitReason."""
    from_ms: int
    until_ms: int
    """In the future while the lane is closed."""


class GateState(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The state of a gate. Times are Unix ms by the clock of Redis; 0 means never or none."""

    cool_until_ms: int = 0
    """End of the cool-down that a throttle began."""
    cool_since_ms: int = 0
    """Start of that cool-down."""
    paced_ms: float = 0.0
    """The rate limit: theoretical arrival time of GCRA."""
    incidents: int = 0
    """Throttles in a row without Retry-After: the step on the throttle curve."""
    quota_until_ms: int = 0
    """End of the window of the quota that the host declared."""
    quota_left: int = 0
    """Requests that may still start in that window."""
    quota_interval_ms: float = 0.0
    """Minimum time between two starts in that window; 0 for none."""
    breaker: Breaker = Breaker.CLOSED
    failures: int = 0
    """Failures in a row. Each failed connection counts, and each fetch that failed otherwise counts once."""
    failed: tuple[int, ...] = ()
    """CRC-32 of the IDs of the fetches in `failures`; empty while the breaker is not closed."""
    open_until_ms: int = 0
    """The time when the open breaker lets a probe through."""
    opens: int = 0
    """The number of times in a row that the breaker has opened."""
    down_since_ms: int = 0
    """The time when the breaker first opened in that row."""
    nameless: bool = False
    """True if the name of the host did not exist in DNS at the last attempt."""
    last_failure: str = ""
    """The last failure that counted against the host, without secrets; empty after a good response."""
    robots_until_ms: int = 0
    """The time when robots.txt is requested again. No fetch is allowed before."""
    robots_failures: int = 0
    """The number of times in a row that robots.txt was unavailable."""
    crawl_delay_s: float = 0.0
    """Crawl-delay of robots.txt."""
    traffic: float = 0.0
    """Recent requests as of traffic_ms; their weight decays exponentially (TRAFFIC_WINDOW_MS)."""
    traffic_ms: int = 0
    """The time when `traffic` was computed."""
    retry_ms: float = 0.0
    """The retry budget (worker/gate/retry_budget.py): theoretical arrival time of GCRA."""
    limit: Limit = Limit()
    """Adaptive concurrency."""
    answers: tuple[RecordedAttempt, ...] = ()
    """The last few outcomes, oldest first."""
    closed: tuple[ClosedPeriod, ...] = ()
    """The last few closed periods, oldest first (worker/gate/waits.py)."""


TRAFFIC_WINDOW_MS = 10_000
"""The time constant of the decay of recent traffic."""


def recent_traffic(state: GateState, now_ms: int) -> float:
    """Return the number of recent requests, each with a weight that decays exponentially with its age."""
    return state.traffic * math.exp(-max(0, now_ms - state.traffic_ms) / TRAFFIC_WINDOW_MS)


def request_sent(state: GateState, now_ms: int) -> GateState:
    """Return the state after a request was sent."""
    return msgspec.structs.replace(state, traffic=recent_traffic(state, now_ms) + 1, traffic_ms=now_ms)


def reset(state: GateState) -> GateState:
    """Return the state after an operator's reset: the host counts as healthy.

    Breaker, cool-down, quota, learned concurrency and the wait for robots.txt end. The requests sent so far
    still count for the rate limit and the retry budget. The recorded answers and closed periods stay.
    """
    return GateState(
        paced_ms=state.paced_ms,
        crawl_delay_s=state.crawl_delay_s,
        traffic=state.traffic,
        traffic_ms=state.traffic_ms,
        retry_ms=state.retry_ms,
        answers=state.answers,
        closed=state.closed,
    )


def resettable(state: GateState, now_ms: int) -> list[str]:
    """Return the parts of the state that a reset would change, by their names in logs and commands."""
    changes = {
        "breaker": state.breaker is not Breaker.CLOSED or state.failures > 0,
        "cool_down": state.cool_until_ms > now_ms or state.incidents > 0,
        "quota": state.quota_until_ms > now_ms,
        "concurrency": state.limit != Limit(),
        "robots": state.robots_until_ms > now_ms or state.robots_failures > 0,
    }
    return [name for name, changed in changes.items() if changed]


_decoder = msgspec.json.Decoder(GateState)

to_json: Callable[[GateState], bytes] = msgspec.json.Encoder().encode
"""Encode a state."""

MAX_SAVED_BYTES = 64 * 1024
"""A larger text was not written by a worker."""


def from_json(text: bytes) -> GateState:
    """Decode a state; return a new one if the text is malformed. `bounded` checks the numbers."""
    try:
        return _decoder.decode(text) if 0 < len(text) <= MAX_SAVED_BYTES else GateState()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return GateState()
