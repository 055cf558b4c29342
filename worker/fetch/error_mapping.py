"""Foreign errors become ours here and nowhere else.

worker/errors.py defines the project's own errors. Those of worker/body/decoders.py and
worker/body/json_lines.py get their reasons here, too.
"""

import errno
import ssl
from typing import TypeVar

import httpx

from fetchfleet.jobs.contract.model import Reason
from fetchfleet.worker.body.decoders import (
    CorruptError,
    CutShortError,
    InflatedError,
    UnknownCodingError,
)
from fetchfleet.worker.body.json_lines import BadLineError, CutLineError
from fetchfleet.worker.errors import (
    BadAnswerError,
    BadDestError,
    BodyFileChangedError,
    DigestMismatchError,
    EgressRefusedError,
    ExistsError,
    FirstByteTimeoutError,
    NameServerError,
    NameTimeoutError,
    NoBodyFileError,
    NoSuchNameError,
    OverlongBodyError,
    TlsError,
    TlsTimeoutError,
    TooSlowError,
    TruncatedBodyError,
    UnreadableBodyFileError,
    UnresolvedError,
)
from fetchfleet.worker.fetch.rules.decide import DISK_PAUSE_S
from fetchfleet.worker.fetch.rules.outcome import AttemptOutcome, Failed, Interrupted

E = TypeVar("E", bound=BaseException)


_BEFORE_SENDING = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.PoolTimeout,
    TlsError,
    UnresolvedError,
    NoBodyFileError,
)
_FINAL = (
    EgressRefusedError,
    OverlongBodyError,
    InflatedError,
    UnknownCodingError,
    BadLineError,
    BadDestError,
    ExistsError,
    NoBodyFileError,
    httpx.LocalProtocolError,
)

_HOPELESS = frozenset(
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
"""OpenSSL's names for what is a matter of how either side is set up: the next handshake ends like this one.

What is not here (a record garbled on its way, an internal error of the host) is tried again.
"""

_REASONS: tuple[tuple[type[BaseException], Reason], ...] = (
    (EgressRefusedError, Reason.EGRESS_REFUSED),
    (NoSuchNameError, Reason.DNS_NXDOMAIN),
    (NameServerError, Reason.DNS_SERVFAIL),
    (NameTimeoutError, Reason.DNS_TIMEOUT),
    (UnresolvedError, Reason.DNS),
    (OverlongBodyError, Reason.TOO_LARGE),
    (InflatedError, Reason.TOO_LARGE),
    (TruncatedBodyError, Reason.TRUNCATED),
    (CutShortError, Reason.TRUNCATED),
    (CutLineError, Reason.TRUNCATED),
    (CorruptError, Reason.BAD_ENCODING),
    (UnknownCodingError, Reason.BAD_ENCODING),
    (BadLineError, Reason.BAD_LINE),
    (DigestMismatchError, Reason.DIGEST_MISMATCH),
    (BadDestError, Reason.BAD_DEST),
    (ExistsError, Reason.EXISTS),
    (BadAnswerError, Reason.PROTOCOL),
    (NoBodyFileError, Reason.NO_BODY_FILE),
    (BodyFileChangedError, Reason.NO_BODY_FILE),
    (TooSlowError, Reason.TOO_SLOW),
    (TlsTimeoutError, Reason.TLS_TIMEOUT),
    (TlsError, Reason.TLS),
    (FirstByteTimeoutError, Reason.FIRST_BYTE_TIMEOUT),
    (httpx.ConnectTimeout, Reason.CONNECT_TIMEOUT),
    (httpx.PoolTimeout, Reason.POOL_TIMEOUT),
    (httpx.ReadTimeout, Reason.READ_TIMEOUT),
    (httpx.WriteTimeout, Reason.WRITE_TIMEOUT),
    (httpx.ConnectError, Reason.CONNECT),
    (httpx.ReadError, Reason.READ),
    (httpx.WriteError, Reason.WRITE),
    (httpx.ProtocolError, Reason.PROTOCOL),
    (TimeoutError, Reason.TOTAL_TIMEOUT),
)

_DEST_ERRNOS = frozenset(
    {errno.EEXIST, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTDIR, errno.ENOTEMPTY}
)
"""The name is at fault; every other error of the disk is nobody's."""


def outcome_of(error: Exception, *, status: int | None) -> AttemptOutcome | None:
    """What an error of the exchange or the disk means; None for one that nobody foresaw: a bug of ours.

    status: of the answer, if its head had come; then a broken protocol is a body cut short.
    """
    if isinstance(error, OSError) and not isinstance(error, TimeoutError | ssl.SSLError):
        return _disk(error)
    if isinstance(error, UnreadableBodyFileError):
        return Interrupted(reason=Reason.DISK, wait_s=DISK_PAUSE_S, note=str(error))
    reason = _reason(error, status)
    if reason is None:
        return None
    return Failed(
        reason=reason,
        sent=not isinstance(error, _BEFORE_SENDING),
        final=isinstance(error, _FINAL) or _is_hopeless(_cause(error, ssl.SSLError)),
        status=status,
        line=error.line if isinstance(error, BadLineError) else None,
        note=str(error),
    )


def is_of_the_disk(error: Exception) -> bool:
    """Whether the disk of the out folder did not take a body: the network's OSErrors were mapped below us."""
    if not isinstance(error, OSError) or isinstance(error, TimeoutError):
        return False
    return error.errno not in _DEST_ERRNOS


def _disk(error: OSError) -> AttemptOutcome:
    if error.errno in _DEST_ERRNOS:
        return Failed(reason=Reason.BAD_DEST, final=True, note=str(error.strerror))
    return Interrupted(reason=Reason.DISK, wait_s=DISK_PAUSE_S, note=str(error))


def _reason(error: Exception, status: int | None) -> Reason | None:
    if _cause(error, ssl.SSLError):
        return Reason.TLS
    if isinstance(error, httpx.RemoteProtocolError) and status is not None:
        return Reason.TRUNCATED
    for kind, reason in _REASONS:
        if isinstance(error, kind):
            return reason
    return None


def _is_hopeless(error: ssl.SSLError | None) -> bool:
    return isinstance(error, ssl.SSLCertVerificationError) or getattr(error, "reason", None) in _HOPELESS


def _cause(error: BaseException | None, kind: type[E]) -> E | None:
    """The error of that kind that is behind this one, at whatever depth."""
    while error is not None:
        if isinstance(error, kind):
            return error
        error = error.__cause__ or _wrapped(error)
    return None


def _wrapped(error: BaseException) -> BaseException | None:
    """httpcore2's pool cuts the chain of causes; the error below is still its error's argument."""
    first = error.args[0] if error.args else None
    return first if isinstance(first, BaseException) else None
