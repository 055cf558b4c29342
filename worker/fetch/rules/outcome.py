"""The outcome of an attempt, and what it says of the host. Pure."""

import msgspec

from fetchfleet.jobs.contract.entry import Hop
from fetchfleet.jobs.contract.model import Reason
from fetchfleet.worker.gate.gate import HostSignal, Observation
from fetchfleet.worker.observability import redact
from fetchfleet.worker.sink.index_entry import StoredAt, Validators


class Stored(msgspec.Struct, frozen=True, kw_only=True):
    """The whole body is at its path."""

    status: int
    at: StoredAt | None
    """Without a SHA-256 if the response has no body; None if the sink does not store such responses."""
    validators: Validators
    coding: str | None = None
    """The content coding in which the body is stored."""
    lines: int | None = None
    """How many JSON lines it has, if the fetch wants them checked."""
    unverified: bool = False
    """Whether nothing but the end of its connection shows that the body is whole."""


class Unchanged(msgspec.Struct, frozen=True, kw_only=True):
    """The host has nothing newer (304); path, size and sha256 are those of the stored body, if any."""

    status: int = 304
    path: str | None = None
    size_bytes: int | None = None
    sha256: str | None = None
    etag: str | None = None
    last_modified: str | None = None


class AlreadyExists(msgspec.Struct, frozen=True, kw_only=True):
    """A file is at the fetch's dest and stays."""

    path: str
    size_bytes: int
    status: int | None = None
    """The status of a response whose body was received all the same."""
    sha256: None = None
    etag: None = None
    last_modified: None = None


class Answered(msgspec.Struct, frozen=True, kw_only=True):
    """The host responded without a body to store. wait_s: its Retry-After."""

    status: int
    wait_s: float | None = None


class Failed(msgspec.Struct, frozen=True, kw_only=True):
    """No usable response came."""

    reason: Reason
    sent: bool = True
    """Whether the request may have reached the host."""
    final: bool = False
    """Whether another attempt would fail in the same way."""
    status: int | None = None
    line: int | None = None
    """The line of the body that is at fault."""
    note: str = ""


class Interrupted(msgspec.Struct, frozen=True, kw_only=True):
    """The worker stopped the attempt, after the request may have reached the host. No attempt is charged."""

    reason: Reason | None = None
    wait_s: float = 0.0
    note: str = ""


class Redirected(msgspec.Struct, frozen=True, kw_only=True):
    """A redirect leads to a host with other limits, or asks to wait. wait_s: its Retry-After."""

    hop: Hop
    hops: int
    status: int
    wait_s: float | None = None


AttemptOutcome = Stored | Unchanged | AlreadyExists | Answered | Failed | Interrupted | Redirected


_SIGNALS = {
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


def is_throttle(status: int, wait_s: float | None) -> bool:
    """Return whether the host asks to back off: 429 (RFC 6585 §4), or 403 or 503 with Retry-After."""
    return status == 429 or (status in {403, 503} and wait_s is not None)


def is_host_failure(status: int) -> bool:
    """Return whether the status says that the host failed: any 5xx, standard or not, but two.

    501 and 505 say what the host does not support, and will say so again.
    """
    return status >= 500 and status not in {501, 505}


def is_retried(status: int, wait_s: float | None) -> bool:
    """Return whether the same request may get another answer later; throttles are not among these.

    408 (RFC 9110 §15.5.9), 425 (RFC 8470 §5.2), a failure of the host, or 413 with Retry-After, which tells
    a temporary limit (RFC 9110 §15.5.14). 421 is none: another connection of the lane is to the same host.
    """
    return status in {408, 425} or is_host_failure(status) or (status == 413 and wait_s is not None)


def throttle_of(outcome: AttemptOutcome) -> Answered | None:
    """Return the response if it is a throttle."""
    if isinstance(outcome, Answered) and is_throttle(outcome.status, outcome.wait_s):
        return outcome
    return None


def note_of(outcome: AttemptOutcome) -> str | None:
    """Return what exactly was wrong, without secrets; None if nothing is known."""
    note = outcome.note if isinstance(outcome, Failed | Interrupted) else ""
    return redact.text(note) if note else None


def host_signal_of(outcome: AttemptOutcome) -> HostSignal:
    """Return whether the attempt counts for or against the host. A 4xx, 501 or 505 is an answer."""
    match outcome:
        case Answered(status=status, wait_s=wait_s):
            if is_throttle(status, wait_s) or status == 503:
                return HostSignal.REFUSED
            return HostSignal.FAILED if is_host_failure(status) else HostSignal.ANSWERED
        case Failed(reason=reason):
            return _SIGNALS.get(reason, HostSignal.FAILED)
        case Interrupted():
            return HostSignal.NOTHING
        case Stored() | Unchanged() | AlreadyExists() | Redirected():
            return HostSignal.ANSWERED


def observation_of(
    outcome: AttemptOutcome, sent_ms: int, in_flight: int, latency_ms: float | None, fetch_id: str = ""
) -> Observation:
    """Return what the attempt teaches the gate; latency_ms: until the head of the response came.

    A request that was not sent says nothing of its fetch: its connection failed, or the host's name.
    """
    signal = host_signal_of(outcome)
    match outcome:
        case Failed(reason=reason, sent=sent):
            fetch_id = fetch_id if sent else ""
            return Observation(signal, sent_ms, in_flight, None, reason.value, fetch_id=fetch_id)
        case Interrupted():
            return Observation(signal, sent_ms, in_flight)
        case _:
            good_ms = latency_ms if signal is HostSignal.ANSWERED else None
            throttle = throttle_of(outcome) is not None
            return Observation(signal, sent_ms, in_flight, good_ms, str(outcome.status), throttle, fetch_id)
