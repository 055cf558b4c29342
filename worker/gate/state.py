"""What a lane remembers of its host. Saved with the lane, so that it outlives its owner. Pure."""

from enum import StrEnum

import msgspec


class Breaker(StrEnum):
    """pybreaker's three states."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class Limit(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What has been learnt of how many fetches the host takes at once (worker/gate/concurrency.py).

    now: how many, 0 before anything was learnt. ceiling: with so many in flight it refused, 0 for never.
    hold_until_ms, hold_s: until when, and for how long, the ceiling is not tried. probes_left: good answers
    at the ceiling that would lift it. cut_ms: the last cut. usual_ms, recent_ms: latency; felt: from how many
    answers since the last cut.
    """

    now: float = 0.0
    ceiling: int = 0
    hold_until_ms: int = 0
    hold_s: float = 0.0
    probes_left: int = 0
    cut_ms: int = 0
    usual_ms: float = 0.0
    recent_ms: float = 0.0
    felt: int = 0


class RecordedAnswer(msgspec.Struct, frozen=True, array_like=True):
    """One answer of the host, or what came instead: when, and a status or a reason."""

    at_ms: int
    what: str


class GateState(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """All times are Unix ms by Redis's clock.

    cool_until_ms: until then the host has asked for quiet (reactive), since cool_since_ms.
    paced_ms: the theoretical arrival time of GCRA (proactive).
    incidents: throttles without a stated wait, in a row.
    quota_until_ms, quota_left, quota_interval_ms: the host's own quota: until when how many may start, and
    how far apart.
    breaker, failures, open_until_ms: the breaker, its failures in a row, when it lets a probe through.
    opens, down_since_ms: how often in a row it has opened, and since when; nameless: for want of a name.
    robots_until_ms: until then nobody could say what the host's robots.txt allows, so nothing is.
    crawl_delay_s: how far apart it wants requests to be.
    traffic, traffic_ms, retry_ms: the retry budget (worker/gate/retry_budget.py).
    limit: adaptive concurrency. answers: the last few, the newest last.
    """

    cool_until_ms: int = 0
    cool_since_ms: int = 0
    paced_ms: float = 0.0
    incidents: int = 0
    quota_until_ms: int = 0
    quota_left: int = 0
    quota_interval_ms: float = 0.0
    breaker: Breaker = Breaker.CLOSED
    failures: int = 0
    open_until_ms: int = 0
    opens: int = 0
    down_since_ms: int = 0
    nameless: bool = False
    robots_until_ms: int = 0
    crawl_delay_s: float = 0.0
    traffic: float = 0.0
    traffic_ms: int = 0
    retry_ms: float = 0.0
    limit: Limit = Limit()
    answers: tuple[RecordedAnswer, ...] = ()


_decoder = msgspec.json.Decoder(GateState)


def to_json(state: GateState) -> bytes:
    """The state as it is saved."""
    return msgspec.json.encode(state)


def from_json(text: bytes) -> GateState:
    """The state that was saved; a fresh one for what cannot be read: the host will teach us again."""
    try:
        return _decoder.decode(text) if text else GateState()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return GateState()
