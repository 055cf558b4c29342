"""Map the errors of an exchange and of the disk to outcomes: the only place that does so.

The exceptions are in worker/errors.py, those of decoding in worker/body.
"""

import asyncio
import ssl

from fetchfleet.jobs.contract.entry import Entry
from fetchfleet.jobs.contract.result import Reason
from fetchfleet.worker.body.decoders import (
    CorruptError,
    CutShortError,
    InflatedError,
    UnknownCodingError,
)
from fetchfleet.worker.body.json_lines import BadLineError, CutLineError
from fetchfleet.worker.errors import (
    BadDestError,
    BodyFileChangedError,
    ChangedBodyError,
    ConnectError,
    ConnectTimeoutError,
    DigestMismatchError,
    EgressRefusedError,
    ExistsError,
    FirstByteTimeoutError,
    InTheWayError,
    InvalidRequestError,
    NameServerError,
    NameTimeoutError,
    NoBodyFileError,
    NoSuchNameError,
    OverlongBodyError,
    PoolTimeoutError,
    ProtocolError,
    ReadError,
    ReadTimeoutError,
    RemoteProtocolError,
    StoringCancelledError,
    TlsError,
    TlsTimeoutError,
    TooSlowError,
    TruncatedBodyError,
    UndersizedBodyError,
    UnreadableBodyFileError,
    UnresolvedError,
    WriteError,
    WriteTimeoutError,
)
from fetchfleet.worker.fetch.rules.outcome import AttemptOutcome, Failed, Interrupted
from fetchfleet.worker.fetch.services import FetchSession
from fetchfleet.worker.lanes import log_events
from fetchfleet.worker.lanes.parameters import LaneParameters
from fetchfleet.worker.util.file_errors import FileFault, fault_of

_BEFORE_SENDING = (ConnectError, NoBodyFileError)
"""Errors after which the host cannot have received the request."""
_FINAL = (
    EgressRefusedError,
    OverlongBodyError,
    UndersizedBodyError,
    InflatedError,
    UnknownCodingError,
    BadLineError,
    BadDestError,
    ExistsError,
    NoBodyFileError,
    InvalidRequestError,
)
"""Errors that another attempt would raise again."""

_FINAL_TLS_ERRORS = frozenset(
    {
        *("UNSUPPORTED_PROTOCOL", "TLSV1_ALERT_PROTOCOL_VERSION", "WRONG_SSL_VERSION"),
        *("SSLV3_ALERT_HANDSHAKE_FAILURE", "TLSV1_ALERT_INSUFFICIENT_SECURITY", "TLSV1_UNRECOGNIZED_NAME"),
        *("DH_KEY_TOO_SMALL", "UNSAFE_LEGACY_RENEGOTIATION_DISABLED", "WRONG_SIGNATURE_TYPE"),
        *("TLSV13_ALERT_CERTIFICATE_REQUIRED", "TLSV1_ALERT_UNKNOWN_CA", "TLSV1_ALERT_ACCESS_DENIED"),
        *("SSLV3_ALERT_BAD_CERTIFICATE", "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE"),
        *("SSLV3_ALERT_CERTIFICATE_REVOKED", "SSLV3_ALERT_CERTIFICATE_EXPIRED"),
        "SSLV3_ALERT_CERTIFICATE_UNKNOWN",
    }
)
"""OpenSSL's names for configuration errors, which every handshake with the host would raise.

Other TLS errors (a garbled record, an internal error of the host) are retried.
"""

_REASONS: tuple[tuple[type[BaseException], Reason], ...] = (
    (EgressRefusedError, Reason.EGRESS_REFUSED),
    (NoSuchNameError, Reason.DNS_NXDOMAIN),
    (NameServerError, Reason.DNS_SERVFAIL),
    (NameTimeoutError, Reason.DNS_TIMEOUT),
    (UnresolvedError, Reason.DNS),
    (OverlongBodyError, Reason.TOO_LARGE),
    (InflatedError, Reason.TOO_LARGE),
    (UndersizedBodyError, Reason.TOO_SMALL),
    (TruncatedBodyError, Reason.TRUNCATED),
    (CutShortError, Reason.TRUNCATED),
    (CutLineError, Reason.TRUNCATED),
    (CorruptError, Reason.BAD_ENCODING),
    (UnknownCodingError, Reason.BAD_ENCODING),
    (BadLineError, Reason.BAD_LINE),
    (DigestMismatchError, Reason.DIGEST_MISMATCH),
    (BadDestError, Reason.BAD_DEST),
    (ExistsError, Reason.EXISTS),
    (NoBodyFileError, Reason.NO_BODY_FILE),
    (BodyFileChangedError, Reason.NO_BODY_FILE),
    (TooSlowError, Reason.TOO_SLOW),
    (TlsTimeoutError, Reason.TLS_TIMEOUT),
    (TlsError, Reason.TLS),
    (FirstByteTimeoutError, Reason.FIRST_BYTE_TIMEOUT),
    (ConnectTimeoutError, Reason.CONNECT_TIMEOUT),
    (PoolTimeoutError, Reason.POOL_TIMEOUT),
    (ReadTimeoutError, Reason.READ_TIMEOUT),
    (WriteTimeoutError, Reason.WRITE_TIMEOUT),
    (ConnectError, Reason.CONNECT),
    (ReadError, Reason.READ),
    (WriteError, Reason.WRITE),
    (ProtocolError, Reason.PROTOCOL),
    (TimeoutError, Reason.TOTAL_TIMEOUT),
)


def disk_fault_of(error: Exception) -> FileFault | None:
    """Return the fault if the error is of the disk of the out folder, else None.

    Connections map the OSErrors of the network to FetchErrors. A TimeoutError without errno is asyncio's.
    """
    if not isinstance(error, OSError) or isinstance(error, ssl.SSLError):
        return None
    return None if isinstance(error, TimeoutError) and error.errno is None else fault_of(error)


def outcome_of(
    error: Exception,
    *,
    status: int | None,
    disk_pause_s: float = LaneParameters().disk_pause_s,
    out_refuses: bool = False,
) -> AttemptOutcome | None:
    """Return the outcome of an error; None for an error that no rule covers, which is a bug.

    status: of the response, None before its head; a protocol error after the head is a truncated body.
    disk_pause_s: the wait before the next attempt if the disk is at fault.
    out_refuses: true if the worker cannot write to its own folders either, so that a missing permission is
    not the fault of the fetch's `dest`.
    """
    fault = disk_fault_of(error)
    if isinstance(error, OSError) and fault is not None:
        if fault is FileFault.SIZE:
            note = f"{error.strerror}: larger than the file system or the worker's ulimit -f allows"
            return Failed(reason=Reason.TOO_LARGE, final=True, status=status, note=note)
        if fault is FileFault.NAME or (fault is FileFault.PERMISSION and not out_refuses):
            return Failed(reason=Reason.BAD_DEST, final=True, status=status, note=str(error.strerror))
        return Interrupted(reason=Reason.DISK, wait_s=disk_pause_s, note=str(error))
    if isinstance(error, UnreadableBodyFileError):
        return Interrupted(reason=Reason.DISK, wait_s=disk_pause_s, note=str(error))
    if isinstance(error, ChangedBodyError):
        return Interrupted(note=str(error))
    # The SSLError may be nested at any depth, as the cause or as an argument.
    tls: object = error
    while isinstance(tls, BaseException) and not isinstance(tls, ssl.SSLError):
        tls = tls.__cause__ or (tls.args[0] if tls.args else None)
    if isinstance(tls, ssl.SSLError):
        reason: Reason | None = Reason.TLS
    elif isinstance(error, RemoteProtocolError) and status is not None:
        reason = Reason.TRUNCATED
    else:
        reason = next((reason for kind, reason in _REASONS if isinstance(error, kind)), None)
    if reason is None:
        return None
    final_tls = (
        isinstance(tls, ssl.SSLCertVerificationError) or getattr(tls, "reason", None) in _FINAL_TLS_ERRORS
    )
    return Failed(
        reason=reason,
        sent=not isinstance(error, _BEFORE_SENDING),
        final=isinstance(error, _FINAL) or final_tls,
        status=status,
        line=error.line if isinstance(error, BadLineError) else None,
        note=str(error),
    )


def expired_outcome(
    session: FetchSession, cancelled: asyncio.CancelledError, reason: Reason, status: int | None
) -> AttemptOutcome:
    """Return the outcome of an attempt that reached its time limit, total_s or its deadline.

    If the whole body was received, and was on the way to an object store, the host is not at fault.
    """
    if isinstance(cancelled, StoringCancelledError):
        note = "the object store took too long"
        return Interrupted(reason=Reason.DISK, wait_s=session.services.parameters.disk_pause_s, note=note)
    missing = "no response" if status is None else "the body was not complete"
    total_s = session.lane.policy.timeouts.total_s
    limit = "by the deadline of the fetch" if reason is Reason.DEADLINE else f"within {total_s:g} s (total_s)"
    return Failed(reason=reason, final=reason is Reason.DEADLINE, status=status, note=f"{missing} {limit}")


async def failure_of(
    session: FetchSession, entry: Entry, error: Exception, status: int | None
) -> AttemptOutcome:
    """Return the outcome of an error; an error that no rule covers is logged as a bug."""
    lane, services = session.lane, session.services
    if isinstance(error, InTheWayError):
        log_events.in_the_way(lane.name, entry, error, services.repeats, services.log)
    disk, fault = services.sink.disk, disk_fault_of(error)
    out_refuses = fault is FileFault.PERMISSION and await disk.may_not_write()
    if isinstance(error, OSError) and (fault in {FileFault.DISK, FileFault.OTHER} or out_refuses):
        disk.refused(error)
    outcome = outcome_of(
        error, status=status, disk_pause_s=services.parameters.disk_pause_s, out_refuses=out_refuses
    )
    if outcome is None:
        log_events.bug(lane.name, entry, error, services.log)
        return Failed(reason=Reason.INTERNAL, status=status, note=repr(error))
    return outcome
