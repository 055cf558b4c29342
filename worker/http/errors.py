"""Foreign errors become ours here and nowhere else.

HttpError
├── BadAnswerError       a broken protocol that the client below us lets pass
├── BadDestError         the body cannot be put where the caller wants it
│   └── InTheWayError    something stands there that is no file or folder of ours
├── BodyFileChangedError the file that was being sent is not the one that was opened
├── DigestMismatchError  the body is not the one the caller named
├── EgressRefusedError   an address that may not be dialled
├── ExistsError          a file stands where the caller wants none replaced
├── NoBodyFileError      the file that is to be sent cannot be had
├── OverlongBodyError    more than may be taken
├── TooSlowError         the body comes too slowly to be waited for
├── TruncatedBodyError   the body ended before its Content-Length
├── UnreadableBodyFileError the disk does not give the file that is being sent
└── UnresolvedError      a host name without an address
    └── NoSuchNameError  there is no such name

What worker/decoding.py and worker/records.py refuse gets its reason here, too.
"""

import errno
import ssl

import httpcore2
import httpx

from jobs.model import Reason
from worker.decide import DISK_PAUSE_S, Broke, Happened, Held
from worker.decoding import CorruptError, CutShortError, InflatedError, UnknownCodingError
from worker.records import BadLineError, CutLineError


class HttpError(Exception):
    """What our side of an exchange refuses."""


class EgressRefusedError(HttpError):
    """The address may not be dialled; the message names the rule."""


class UnresolvedError(HttpError):
    """The host name has no address, or the resolver did not say."""


class NoSuchNameError(UnresolvedError):
    """The resolver says that there is no such name."""


class OverlongBodyError(HttpError):
    """The body is larger than may be taken."""


class TruncatedBodyError(HttpError):
    """The body ended before its Content-Length."""


class DigestMismatchError(HttpError):
    """The body is not the one whose sha256 the caller gave."""


class BadDestError(HttpError):
    """The body cannot be put where the caller wants it."""


class InTheWayError(BadDestError):
    """Something stands in the way in the out folder; the message names it and says what it is."""


class ExistsError(HttpError):
    """A file stands where the body was to go, and is not to be replaced."""


class NoBodyFileError(HttpError):
    """The file that is to be sent is not there, or is none; trying again would be vain."""


class BodyFileChangedError(HttpError):
    """The file was changed while it was sent."""


class UnreadableBodyFileError(HttpError):
    """The disk of the file that is being sent does not give it; the message names the file."""


class TooSlowError(HttpError):
    """The body comes below the rate that the policy asks for."""


class BadAnswerError(HttpError):
    """The answer breaks the protocol in a way that the client below us lets pass."""


TO_HTTPX: dict[type[Exception], type[httpx.TransportError]] = {
    getattr(httpcore2, name): getattr(httpx, name)
    for name in (
        "ConnectError",
        "ConnectTimeout",
        "LocalProtocolError",
        "PoolTimeout",
        "ReadError",
        "ReadTimeout",
        "RemoteProtocolError",
        "UnsupportedProtocol",
        "WriteError",
        "WriteTimeout",
    )
}
"""httpcore2's errors under the names that httpx's users know."""

_BEFORE_SENDING = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.PoolTimeout,
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

_REASONS: tuple[tuple[type[BaseException], Reason], ...] = (
    (EgressRefusedError, Reason.EGRESS_REFUSED),
    (NoSuchNameError, Reason.DNS_NXDOMAIN),
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


def happened(error: Exception, *, status: int | None) -> Happened | None:
    """What an error of the exchange or the disk means; None for one that nobody foresaw: a bug of ours.

    status: of the answer, if its head had come; then a broken protocol is a body cut short.
    """
    if isinstance(error, OSError) and not isinstance(error, TimeoutError):
        return _disk(error)
    if isinstance(error, UnreadableBodyFileError):
        return Held(reason=Reason.DISK, wait_s=DISK_PAUSE_S, note=str(error))
    reason = _reason(error, status)
    if reason is None:
        return None
    return Broke(
        reason=reason,
        sent=not isinstance(error, _BEFORE_SENDING),
        final=isinstance(error, _FINAL) or _cause(error, ssl.SSLCertVerificationError),
        status=status,
        line=error.line if isinstance(error, BadLineError) else None,
        note=str(error),
    )


def is_of_the_disk(error: Exception) -> bool:
    """Whether the disk of the out folder did not take a body: the network's OSErrors were mapped below us."""
    if not isinstance(error, OSError) or isinstance(error, TimeoutError):
        return False
    return error.errno not in _DEST_ERRNOS


def _disk(error: OSError) -> Happened:
    if error.errno in _DEST_ERRNOS:
        return Broke(reason=Reason.BAD_DEST, final=True, note=str(error.strerror))
    return Held(reason=Reason.DISK, wait_s=DISK_PAUSE_S, note=str(error))


def _reason(error: Exception, status: int | None) -> Reason | None:
    if _cause(error, ssl.SSLError):
        return Reason.TLS
    if isinstance(error, httpx.RemoteProtocolError) and status is not None:
        return Reason.TRUNCATED
    for kind, reason in _REASONS:
        if isinstance(error, kind):
            return reason
    return None


def _cause(error: BaseException | None, kind: type[BaseException]) -> bool:
    """Whether an error of that kind is behind this one, at whatever depth."""
    while error is not None:
        if isinstance(error, kind):
            return True
        error = error.__cause__ or _wrapped(error)
    return False


def _wrapped(error: BaseException) -> BaseException | None:
    """httpcore2's pool cuts the chain of causes; the error below is still its error's argument."""
    first = error.args[0] if error.args else None
    return first if isinstance(first, BaseException) else None
