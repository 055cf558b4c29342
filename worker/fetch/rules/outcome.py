"""The outcome of an attempt, and its signal about the host. Pure."""

import msgspec

from fetchfleet.jobs.contract.entry import Hop
from fetchfleet.jobs.contract.result import Reason
from fetchfleet.worker.gate.gate import HostSignal, Observation
from fetchfleet.worker.observability import redact
from fetchfleet.worker.sink.index_entry import StoredAt, Validators


class Stored(msgspec.Struct, frozen=True, kw_only=True):
    """The complete body is stored."""

    status: int
    at: StoredAt | None
    """The location; without a SHA-256 if no body was sent, None if the sink does not store such responses."""
    validators: Validators
    coding: str | None = None
    """The content coding in which the body is stored; None if it has none."""
    lines: int | None = None
    """The number of JSON lines, if the fetch has them checked."""
    unverified: bool = False
    """True if only the end of the connection shows that the body is complete."""


class Unchanged(msgspec.Struct, frozen=True, kw_only=True):
    """The host has no newer body (304)."""

    status: int = 304
    path: str | None = None
    """The path of the stored body, if the sink has it; its size and digest follow."""
    size_bytes: int | None = None
    sha256: str | None = None
    etag: str | None = None
    last_modified: str | None = None


class AlreadyExists(msgspec.Struct, frozen=True, kw_only=True):
    """The fetch's dest exists and is not replaced."""

    path: str
    size_bytes: int
    status: int | None = None
    """The status of the response, if the file was created while its body was received."""
    sha256: None = None
    etag: None = None
    last_modified: None = None


class Answered(msgspec.Struct, frozen=True, kw_only=True):
    """The host responded without a body to store."""

    status: int
    wait_s: float | None = None
    """The Retry-After, if the response has one."""


class Failed(msgspec.Struct, frozen=True, kw_only=True):
    """The attempt ended without a usable response."""

    reason: Reason
    sent: bool = True
    """True if the request may have reached the host."""
    final: bool = False
    """True if another attempt would fail in the same way."""
    status: int | None = None
    """The status of the response, if its head was received."""
    line: int | None = None
    """The number of the invalid line of the body, for `bad_line`."""
    note: str = ""
    """The details, for logs and results; it may hold secrets until `note_of` redacts it."""


class Interrupted(msgspec.Struct, frozen=True, kw_only=True):
    """The worker stopped the attempt, after the request may have reached the host. No attempt is charged."""

    reason: Reason | None = None
    wait_s: float = 0.0
    """The time before the next attempt."""
    note: str = ""


class Redirected(msgspec.Struct, frozen=True, kw_only=True):
    """A redirect leads to another lane, or must wait."""

    hop: Hop
    """The next request."""
    hops: int
    """The number of redirects, this one included."""
    status: int
    wait_s: float | None = None
    """The Retry-After, if the response has one."""


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
    Reason.STATUS_REFUSED: HostSignal.ANSWERED,
    Reason.TLS_TIMEOUT: HostSignal.TIMED_OUT,
    Reason.TOO_LARGE: HostSignal.ANSWERED,
    Reason.TOO_MANY_REDIRECTS: HostSignal.ANSWERED,
    Reason.TOO_SLOW: HostSignal.TIMED_OUT,
    Reason.TOO_SMALL: HostSignal.ANSWERED,
    Reason.TOTAL_TIMEOUT: HostSignal.TIMED_OUT,
    Reason.TYPE_REFUSED: HostSignal.ANSWERED,
    Reason.WRITE_TIMEOUT: HostSignal.TIMED_OUT,
    Reason.X_ROBOTS_REFUSED: HostSignal.ANSWERED,
}


def is_throttle(status: int, wait_s: float | None) -> bool:
    """Return whether the host asks to back off: 429 (RFC 6585 §4), or 403 or 503 with Retry-After."""
    return status == 429 or (status in {403, 503} and wait_s is not None)


def is_host_failure(status: int) -> bool:
    """Return whether the status is a failure of the host: any code from 500 on but 501 and 505.

    Those two name a feature that the host does not support, so a retry gets the same response.
    """
    return status >= 500 and status not in {501, 505}


def is_retried(status: int, wait_s: float | None) -> bool:
    """Return whether to retry the request after this status, other than a throttle.

    True for 408 (RFC 9110 §15.5.9), 425 (RFC 8470 §5.2), a failure of the host, and 413 with Retry-After: a
    temporary limit (RFC 9110 §15.5.14). False for 421: every connection of the lane is to the same host.
    """
    return status in {408, 425} or is_host_failure(status) or (status == 413 and wait_s is not None)


def throttle_of(outcome: AttemptOutcome) -> Answered | None:
    """Return the outcome if it is a throttle, else None."""
    if isinstance(outcome, Answered) and is_throttle(outcome.status, outcome.wait_s):
        return outcome
    return None


def note_of(outcome: AttemptOutcome) -> str | None:
    """Return the details of a failure or an interruption, without secrets; None if there are none."""
    note = outcome.note if isinstance(outcome, Failed | Interrupted) else ""
    return redact.text(note) if note else None


def host_signal_of(outcome: AttemptOutcome) -> HostSignal:
    """Return the signal of the attempt about its host. A 4xx, 501 or 505 shows a working host.

    The status decides whether its body is stored or not, so a fetch that accepts a 503 hides no failing host.
    """
    match outcome:
        case Answered(status=status, wait_s=wait_s):
            return HostSignal.REFUSED if is_throttle(status, wait_s) else _signal_of_status(status)
        case Failed(reason=reason, status=status):
            signal = _SIGNALS.get(reason, HostSignal.FAILED)
            return _signal_of_status(status) if signal is HostSignal.ANSWERED else signal
        case Interrupted():
            return HostSignal.NOTHING
        case Stored(status=status) | AlreadyExists(status=status):
            return _signal_of_status(status)
        case Unchanged() | Redirected():
            return HostSignal.ANSWERED


def _signal_of_status(status: int | None) -> HostSignal:
    if status == 503:
        return HostSignal.REFUSED
    return HostSignal.FAILED if status is not None and is_host_failure(status) else HostSignal.ANSWERED


def observation_of(
    outcome: AttemptOutcome, sent_ms: int, in_flight: int, latency_ms: float | None, fetch_id: str = ""
) -> Observation:
    """Return the observation for the gate.

    latency_ms: from the request to the head of the response. fetch_id: left out of the observation if the
    request was not sent, as the fetch is then not the cause: the connection or the name resolution failed.
    """
    signal = host_signal_of(outcome)
    match outcome:
        case Failed(reason=reason, sent=sent):
            cause = fetch_id if sent else ""
            note = note_of(outcome) or ""
            return Observation(signal, sent_ms, in_flight, None, reason.value, fetch_id=cause, note=note)
        case Interrupted():
            return Observation(signal, sent_ms, in_flight)
        case _:
            good_ms = latency_ms if signal is HostSignal.ANSWERED else None
            throttle = throttle_of(outcome) is not None
            return Observation(signal, sent_ms, in_flight, good_ms, str(outcome.status), throttle, fetch_id)
