"""The state of a host as its lane knows it. Saved with the lane, so that it outlives its owner. Pure."""

import math
from collections.abc import Callable
from enum import StrEnum

import msgspec


class Breaker(StrEnum):
    """pybreaker's three states."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class Limit(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The learned number of requests that the host takes at once (worker/gate/concurrency.py)."""

    now: float = 0.0
    """0 before anything was learned."""
    ceiling: int = 0
    """With so many in flight the host refused; 0 for never."""
    hold_until_ms: int = 0
    """Until then the ceiling is not tried."""
    hold_s: float = 0.0
    probes_left: int = 0
    """Good answers at the ceiling that would lift it."""
    cut_ms: int = 0
    """When the limit was last cut."""
    usual_ms: float = 0.0
    """The usual latency."""
    recent_ms: float = 0.0
    """The recent latency."""
    felt: int = 0
    """How many answers since the last cut the recent latency is from."""


class RecordedAnswer(msgspec.Struct, frozen=True, array_like=True):
    """One answer of the host: when, and its status, or the reason for which none came."""

    at_ms: int
    what: str


class GateState(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """All times are Unix ms by Redis's clock."""

    cool_until_ms: int = 0
    """Until then the host has asked to back off."""
    cool_since_ms: int = 0
    paced_ms: float = 0.0
    """The theoretical arrival time of GCRA."""
    incidents: int = 0
    """Throttles in a row without a stated wait."""
    quota_until_ms: int = 0
    """When the window of the host's own quota ends."""
    quota_left: int = 0
    """How many requests may start in that window."""
    quota_interval_ms: float = 0.0
    """How far apart they start."""
    breaker: Breaker = Breaker.CLOSED
    failures: int = 0
    """In a row: each connection that failed, and each fetch that failed otherwise, counted once."""
    failed: tuple[int, ...] = ()
    """The fetches among them, by the CRC-32 of their IDs; none while the breaker is not closed."""
    open_until_ms: int = 0
    """When the breaker lets a probe through."""
    opens: int = 0
    """How often in a row the breaker has opened."""
    down_since_ms: int = 0
    """When it opened first."""
    nameless: bool = False
    """Whether the host's name does not exist."""
    robots_until_ms: int = 0
    """Until then the host's robots.txt is not available, so nothing is allowed."""
    robots_failures: int = 0
    """How often in a row it was not available."""
    crawl_delay_s: float = 0.0
    traffic: float = 0.0
    """Requests in the window before traffic_ms, older ones fading."""
    traffic_ms: int = 0
    retry_ms: float = 0.0
    """Of the retry budget (worker/gate/retry_budget.py)."""
    limit: Limit = Limit()
    """Adaptive concurrency."""
    answers: tuple[RecordedAnswer, ...] = ()
    """The last few, the newest last."""


TRAFFIC_WINDOW_MS = 10_000
"""How long a request counts as recent traffic, on average."""


def recent_traffic(state: GateState, now_ms: int) -> float:
    """Return the number of requests in the window before now, older ones fading."""
    return state.traffic * math.exp(-max(0, now_ms - state.traffic_ms) / TRAFFIC_WINDOW_MS)


def request_sent(state: GateState, now_ms: int) -> GateState:
    """Return the state after a request went out."""
    return msgspec.structs.replace(state, traffic=recent_traffic(state, now_ms) + 1, traffic_ms=now_ms)


def reset(state: GateState) -> GateState:
    """Return the state without what keeps the host waiting: the fleet treats it as one that is well.

    Breaker, cool-down, quota, learned concurrency and the wait for a robots.txt end. What was sent still
    counts for the policy's rate and for the retry budget, and the last answers stay.
    """
    return GateState(
        paced_ms=state.paced_ms,
        crawl_delay_s=state.crawl_delay_s,
        traffic=state.traffic,
        traffic_ms=state.traffic_ms,
        retry_ms=state.retry_ms,
        answers=state.answers,
    )


def resettable(state: GateState, now_ms: int) -> list[str]:
    """Return what a reset would end, by the names that logs and commands use."""
    ends = {
        "breaker": state.breaker is not Breaker.CLOSED or state.failures > 0,
        "cool_down": state.cool_until_ms > now_ms or state.incidents > 0,
        "quota": state.quota_until_ms > now_ms,
        "concurrency": state.limit != Limit(),
        "robots": state.robots_until_ms > now_ms or state.robots_failures > 0,
    }
    return [name for name, holds in ends.items() if holds]


_decoder = msgspec.json.Decoder(GateState)

to_json: Callable[[GateState], bytes] = msgspec.json.Encoder().encode
"""Encode a state."""

MAX_SAVED_BYTES = 64 * 1024
"""No state that was saved is larger."""


def from_json(text: bytes) -> GateState:
    """Decode a state; return a fresh one if it cannot be read. Its numbers are as they were saved."""
    try:
        return _decoder.decode(text) if 0 < len(text) <= MAX_SAVED_BYTES else GateState()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return GateState()
