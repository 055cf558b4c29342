"""What became of an attempt, and what it says of the host. Pure."""

import msgspec

from fetchfleet.jobs.contract.entry import Hop
from fetchfleet.jobs.contract.model import Reason
from fetchfleet.worker.gate.gate import Seen, Signal


class Stored(msgspec.Struct, frozen=True, kw_only=True):
    """The body came whole and is at its path; coding: it is kept coded so; lines: its records.

    unverified: it is whole as far as anybody can tell. offset, length: of its record, if path is a segment.
    """

    status: int
    path: str | None
    size_bytes: int
    sha256: str | None
    etag: str | None = None
    last_modified: str | None = None
    coding: str | None = None
    lines: int | None = None
    unverified: bool = False
    offset: int | None = None
    length: int | None = None


class Unchanged(msgspec.Struct, frozen=True, kw_only=True):
    """The host has nothing newer (304); path, size and sha256 are those of what is here, if it is."""

    status: int = 304
    path: str | None = None
    size_bytes: int | None = None
    sha256: str | None = None
    etag: str | None = None
    last_modified: str | None = None


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """A file stands at the fetch's dest, and stays; status: of an answer whose body came all the same."""

    path: str
    size_bytes: int
    status: int | None = None
    sha256: None = None
    etag: None = None
    last_modified: None = None


class Answered(msgspec.Struct, frozen=True, kw_only=True):
    """The host answered, without a body for us. wait_s is what its Retry-After asks for."""

    status: int
    wait_s: float | None = None


class Broke(msgspec.Struct, frozen=True, kw_only=True):
    """No usable answer came. sent: the request may have reached the host. final: trying again is vain.

    line: of the body, where that line is at fault.
    """

    reason: Reason
    sent: bool = True
    final: bool = False
    status: int | None = None
    line: int | None = None
    note: str = ""


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """We stopped it ourselves, after the request may have reached the host: nobody's fault."""

    reason: Reason | None = None
    wait_s: float = 0.0
    note: str = ""


class Moved(msgspec.Struct, frozen=True, kw_only=True):
    """A redirect leads where other limits hold."""

    hop: Hop
    hops: int
    status: int


Happened = Stored | Unchanged | Found | Answered | Broke | Held | Moved


def is_throttle(status: int, wait_s: float | None) -> bool:
    """429 (RFC 6585 §4), or 503 that says when to come back (RFC 9110 §15.6.4)."""
    return status == 429 or (status == 503 and wait_s is not None)


def asks_for_quiet(happened: Happened) -> Answered | None:
    """The answer, if it is a throttle."""
    if isinstance(happened, Answered) and is_throttle(happened.status, happened.wait_s):
        return happened
    return None


def seen_of(happened: Happened) -> Seen:
    """Whether the attempt counts for or against the host: a 4xx is an answer, our own faults nothing."""
    match happened:
        case Answered(status=status, wait_s=wait_s):
            if is_throttle(status, wait_s) or status == 503:
                return Seen.REFUSED
            return Seen.FAILED if status >= 500 else Seen.ANSWERED
        case Broke(reason=reason):
            return _BROKEN_SAYS.get(reason, Seen.FAILED)
        case Held():
            return Seen.NOTHING
        case Stored() | Unchanged() | Found() | Moved():
            return Seen.ANSWERED


def signal_of(happened: Happened, started_ms: int, in_flight: int, latency_ms: float | None) -> Signal:
    """What the attempt teaches the gate; latency_ms: until the head of the answer came."""
    seen = seen_of(happened)
    match happened:
        case Broke(reason=reason):
            what = reason.value
        case Held():
            what = ""
        case _:
            what = str(happened.status)
    good = latency_ms if seen is Seen.ANSWERED and not isinstance(happened, Broke) else None
    throttle = asks_for_quiet(happened) is not None
    return Signal(seen, started_ms, in_flight, good, what, throttle)


_BROKEN_SAYS = {
    Reason.BAD_DEST: Seen.ANSWERED,
    Reason.BAD_ENCODING: Seen.ANSWERED,
    Reason.BAD_LINE: Seen.ANSWERED,
    Reason.CONNECT_TIMEOUT: Seen.TIMED_OUT,
    Reason.DEADLINE: Seen.TIMED_OUT,
    Reason.DIGEST_MISMATCH: Seen.ANSWERED,
    Reason.DNS_NXDOMAIN: Seen.NAMELESS,
    Reason.EGRESS_REFUSED: Seen.NOTHING,
    Reason.EXISTS: Seen.ANSWERED,
    Reason.FIRST_BYTE_TIMEOUT: Seen.TIMED_OUT,
    Reason.INTERNAL: Seen.NOTHING,
    Reason.NO_BODY_FILE: Seen.NOTHING,
    Reason.POOL_TIMEOUT: Seen.NOTHING,
    Reason.READ_TIMEOUT: Seen.TIMED_OUT,
    Reason.REDIRECT_REFUSED: Seen.ANSWERED,
    Reason.ROBOTS_DISALLOWED: Seen.ANSWERED,
    Reason.TLS_TIMEOUT: Seen.TIMED_OUT,
    Reason.TOO_LARGE: Seen.ANSWERED,
    Reason.TOO_MANY_REDIRECTS: Seen.ANSWERED,
    Reason.TOO_SLOW: Seen.TIMED_OUT,
    Reason.TOTAL_TIMEOUT: Seen.TIMED_OUT,
    Reason.WRITE_TIMEOUT: Seen.TIMED_OUT,
}
