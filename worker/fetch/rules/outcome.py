"""What became of an attempt, and what it says of the host. Pure."""

import msgspec

from fetchfleet.jobs.contract.entry import Hop
from fetchfleet.jobs.contract.model import Reason
from fetchfleet.worker.gate.gate import HostSignal, Observation


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


class AlreadyExists(msgspec.Struct, frozen=True, kw_only=True):
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


class Failed(msgspec.Struct, frozen=True, kw_only=True):
    """No usable answer came. sent: the request may have reached the host. final: trying again is vain.

    line: of the body, where that line is at fault.
    """

    reason: Reason
    sent: bool = True
    final: bool = False
    status: int | None = None
    line: int | None = None
    note: str = ""


class Interrupted(msgspec.Struct, frozen=True, kw_only=True):
    """We stopped it ourselves, after the request may have reached the host: nobody's fault."""

    reason: Reason | None = None
    wait_s: float = 0.0
    note: str = ""


class Redirected(msgspec.Struct, frozen=True, kw_only=True):
    """A redirect leads where other limits hold."""

    hop: Hop
    hops: int
    status: int


AttemptOutcome = Stored | Unchanged | AlreadyExists | Answered | Failed | Interrupted | Redirected


def is_throttle(status: int, wait_s: float | None) -> bool:
    """429 (RFC 6585 §4), or 503 that says when to come back (RFC 9110 §15.6.4)."""
    return status == 429 or (status == 503 and wait_s is not None)


def throttle_of(happened: AttemptOutcome) -> Answered | None:
    """The answer, if it is a throttle."""
    if isinstance(happened, Answered) and is_throttle(happened.status, happened.wait_s):
        return happened
    return None


def host_signal_of(happened: AttemptOutcome) -> HostSignal:
    """Whether the attempt counts for or against the host: a 4xx is an answer, our own faults nothing."""
    match happened:
        case Answered(status=status, wait_s=wait_s):
            if is_throttle(status, wait_s) or status == 503:
                return HostSignal.REFUSED
            return HostSignal.FAILED if status >= 500 else HostSignal.ANSWERED
        case Failed(reason=reason):
            return _BROKEN_SAYS.get(reason, HostSignal.FAILED)
        case Interrupted():
            return HostSignal.NOTHING
        case Stored() | Unchanged() | AlreadyExists() | Redirected():
            return HostSignal.ANSWERED


def observation_of(
    happened: AttemptOutcome, started_ms: int, in_flight: int, latency_ms: float | None
) -> Observation:
    """What the attempt teaches the gate; latency_ms: until the head of the answer came."""
    seen = host_signal_of(happened)
    match happened:
        case Failed(reason=reason):
            what = reason.value
        case Interrupted():
            what = ""
        case _:
            what = str(happened.status)
    good = latency_ms if seen is HostSignal.ANSWERED and not isinstance(happened, Failed) else None
    throttle = throttle_of(happened) is not None
    return Observation(seen, started_ms, in_flight, good, what, throttle)


_BROKEN_SAYS = {
    Reason.BAD_DEST: HostSignal.ANSWERED,
    Reason.BAD_ENCODING: HostSignal.ANSWERED,
    Reason.BAD_LINE: HostSignal.ANSWERED,
    Reason.CONNECT_TIMEOUT: HostSignal.TIMED_OUT,
    Reason.DEADLINE: HostSignal.TIMED_OUT,
    Reason.DIGEST_MISMATCH: HostSignal.ANSWERED,
    Reason.DNS_NXDOMAIN: HostSignal.NAMELESS,
    Reason.EGRESS_REFUSED: HostSignal.NOTHING,
    Reason.EXISTS: HostSignal.ANSWERED,
    Reason.FIRST_BYTE_TIMEOUT: HostSignal.TIMED_OUT,
    Reason.INTERNAL: HostSignal.NOTHING,
    Reason.NO_BODY_FILE: HostSignal.NOTHING,
    Reason.POOL_TIMEOUT: HostSignal.NOTHING,
    Reason.READ_TIMEOUT: HostSignal.TIMED_OUT,
    Reason.REDIRECT_REFUSED: HostSignal.ANSWERED,
    Reason.ROBOTS_DISALLOWED: HostSignal.ANSWERED,
    Reason.TLS_TIMEOUT: HostSignal.TIMED_OUT,
    Reason.TOO_LARGE: HostSignal.ANSWERED,
    Reason.TOO_MANY_REDIRECTS: HostSignal.ANSWERED,
    Reason.TOO_SLOW: HostSignal.TIMED_OUT,
    Reason.TOTAL_TIMEOUT: HostSignal.TIMED_OUT,
    Reason.WRITE_TIMEOUT: HostSignal.TIMED_OUT,
}
