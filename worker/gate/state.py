"""What a lane remembers of its host. Saved with the lane, so that it outlives its owner."""

from enum import StrEnum

import msgspec


class Breaker(StrEnum):
    """pybreaker's three states."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class GateState(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """All times are Unix ms by Redis's clock.

    cool_until_ms: until then the host has asked for quiet (reactive).
    paced_ms: the theoretical arrival time of GCRA (proactive).
    incidents: throttles without a stated wait, in a row.
    breaker, failures, open_until_ms: the breaker, its failures in a row, when it lets a probe through.
    """

    cool_until_ms: int = 0
    paced_ms: float = 0.0
    incidents: int = 0
    breaker: Breaker = Breaker.CLOSED
    failures: int = 0
    open_until_ms: int = 0


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
