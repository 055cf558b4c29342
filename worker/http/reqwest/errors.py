"""pyreqwest's errors under the names that worker/fetch/error_mapping.py knows.

Its classes tell little: whatever fails before a head has come is a ConnectError, or a timeout of that name.
What the libraries below say as causes tells the rest. Their words may change, so the extra names its version.
"""

import re
import ssl

import httpx
from pyreqwest import exceptions

from fetchfleet.worker.errors import EgressRefusedError, FirstByteTimeoutError, TlsError

_CONNECTING = "client error (Connect)"
_TCP = "tcp connect error"
_NAME = "dns error"
_IN_TLS = re.compile(r"fatal alert|corrupt message|decrypt|peer is incompatible|peer misbehaved|certificate")

_HOPELESS = re.compile(
    r"peer is incompatible|alert: (HandshakeFailure|ProtocolVersion|InsufficientSecurity|UnrecognisedName"
    r"|CertificateRequired|UnknownCA|AccessDenied|BadCertificate|UnsupportedCertificate"
    r"|CertificateRevoked|CertificateExpired|CertificateUnknown)"
)
"""As OpenSSL's names in fetch/error_mapping.py: a retry cannot help."""

_ENDED_EARLY = re.compile(r"closed before message completed|end of file|unexpected EOF|close_notify")

_NOT_BEGUN = re.compile(
    r"refused stream before processing|connection error received: not a result of an error"
)
"""HTTP/2 says so of a stream (RFC 9113 §8.7), or of all after its last one (§6.8)."""

_GARBLED = re.compile(r"^(connection|stream) error detected|invalid chunk", re.IGNORECASE)
"""What came is against the protocol."""


class NotBegunError(httpx.ConnectError):
    """The host says that it has not begun with the request: nothing was done."""


UNHEARD = (httpx.RemoteProtocolError, httpx.ReadError)
"""What a host that hangs up instead of answering comes to."""


def hung_up(error: Exception) -> bool:
    """Whether the host, of all that comes to that, has closed the connection."""
    return "closed before message completed" in str(error) or "reset by peer" in str(error)


def known(error: Exception, *, head_came: bool) -> Exception:
    """The error that ours know; head_came: the answer had begun."""
    if not isinstance(error, exceptions.PyreqwestError):
        return error
    causes = _causes(error)
    said = causes[-1] if causes else error.message
    if isinstance(error, exceptions.BuilderError | exceptions.RequestPanicError):
        return httpx.LocalProtocolError(said)
    if _CONNECTING in causes:
        return _unconnected(error, causes, said)
    if isinstance(error, exceptions.RequestTimeoutError):
        late = "the body stopped coming"
        return httpx.ReadTimeout(late) if head_came else FirstByteTimeoutError("no head of an answer in time")
    if _NOT_BEGUN.search(said) and not head_came:
        return NotBegunError(said)
    if _IN_TLS.search(said):
        return httpx.ReadError(_of_tls(said))  # type: ignore[arg-type]
    return _broken(error, said)


def _causes(error: exceptions.PyreqwestError) -> list[str]:
    details = error.details if isinstance(error, exceptions.DetailedPyreqwestError) else None
    return [cause["message"] for cause in (details and details["causes"]) or ()]


def _unconnected(error: Exception, causes: list[str], said: str) -> Exception:
    """Nothing of the request was sent."""
    if _NAME in causes:
        return EgressRefusedError("a name that was not vetted is never asked for")
    if isinstance(error, exceptions.RequestTimeoutError):
        return httpx.ConnectTimeout("no connection in time")
    if _TCP in causes:
        return httpx.ConnectError(said)
    return TlsError(_of_tls(said))


def _of_tls(said: str) -> ssl.SSLError:
    """As OpenSSL would have it, so that one place decides what it means."""
    if said.startswith("invalid peer certificate"):
        return ssl.SSLCertVerificationError(1, said)
    error = ssl.SSLError(1, said)
    if _HOPELESS.search(said):
        error.reason = "SSLV3_ALERT_HANDSHAKE_FAILURE"
    return error


def _broken(error: Exception, said: str) -> Exception:
    if isinstance(error, exceptions.DecodeError) or _ENDED_EARLY.search(said) or _GARBLED.search(said):
        return httpx.RemoteProtocolError(said)
    if isinstance(error, exceptions.WriteError):
        return httpx.WriteError(said)
    return httpx.ReadError(said)
