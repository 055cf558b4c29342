"""The exit codes of commands, and the exceptions of the worker."""

import asyncio

FAILED = 1
"""Some fetches failed, or the command did."""
BAD_USE = 2
"""Arguments, settings or input are invalid."""
UNREACHABLE = 3
"""Redis has not answered for the command's patience."""
INTERRUPTED = 130
"""SIGINT or SIGTERM ended the command."""


class CommandError(Exception):
    """An expected error: a command prints only its message, then exits."""

    exit_code = FAILED
    """The exit code of the command."""

    def __init__(self, message: str, exit_code: int | None = None) -> None:
        super().__init__(message)
        if exit_code is not None:
            self.exit_code = exit_code


class FetchError(Exception):
    """An attempt of a fetch failed. worker/fetch/error_mapping.py maps each subclass to a reason."""


class ForeignHostError(Exception):
    """A bug: a request would have used the connections, and so the TLS settings, of another host."""

    def __init__(self, host: str, connections_of: str) -> None:
        super().__init__(f"request to {host!r} on connections of {connections_of!r}")


# --- No connection -----------------------------------------------------------


class ConnectError(FetchError):
    """No connection to the host was opened."""


class EgressRefusedError(ConnectError):
    """The egress policy refuses the address. The message names the rule."""


class UnresolvedError(ConnectError):
    """The host name was not resolved to an address."""


class NoSuchNameError(UnresolvedError):
    """The nameserver replied that the name does not exist or has no address."""


class NameServerError(UnresolvedError):
    """The nameserver failed, refused the query or is unreachable."""


class NameTimeoutError(UnresolvedError):
    """The nameserver did not reply in time."""


class TlsError(ConnectError):
    """The TLS handshake failed. The argument is the underlying error, if that has a message."""


class TlsTimeoutError(TlsError):
    """The TLS handshake was not complete in time."""


class ConnectTimeoutError(ConnectError):
    """The host did not accept a connection in time."""


class PoolTimeoutError(ConnectError):
    """No connection or HTTP/2 stream became free in time."""


# --- The connection breaks ---------------------------------------------------


class ConnectionBrokenError(FetchError):
    """An open connection failed. The cause is the underlying error, if there is one."""


class ReadError(ConnectionBrokenError):
    """The host reset the connection, or the network failed, before the response was complete."""


class WriteError(ConnectionBrokenError):
    """The request could not be sent."""


class ReadTimeoutError(ConnectionBrokenError):
    """No more of the response arrived in time."""


class WriteTimeoutError(ConnectionBrokenError):
    """The host did not accept a block of the request body in time."""


# --- The response breaks the protocol ----------------------------------------


class ProtocolError(FetchError):
    """The exchange violates HTTP."""


class FirstByteTimeoutError(ProtocolError):
    """The request was sent, but no byte of a response arrived in time."""


class BadAnswerError(ProtocolError):
    """The response is complete by its framing, but contradicts itself or the request."""


class RemoteProtocolError(ProtocolError):
    """The response is not valid HTTP, or the connection was closed before it was complete."""


class InvalidRequestError(ProtocolError):
    """The request cannot be expressed in HTTP. A retry would fail too."""


# --- The response's body -----------------------------------------------------


class BodyError(FetchError):
    """The body of the response must not be stored."""


class OverlongBodyError(BodyError):
    """The body exceeds the size limit."""


class UndersizedBodyError(BodyError):
    """The complete body is smaller than the fetch or the policy accepts."""

    def __init__(self, size_bytes: int, min_bytes: int) -> None:
        super().__init__(f"{size_bytes} bytes are less than accept.min_bytes {min_bytes}")


class TruncatedBodyError(BodyError):
    """The body ended before its Content-Length."""


class DigestMismatchError(BodyError):
    """The digest of the body differs from the one that the fetch or the response states."""


class ChangedBodyError(BodyError):
    """The host no longer serves ranges of the version of the body that is being received."""


class TooSlowError(BodyError):
    """The body arrives more slowly than the minimum rate of the policy."""


# --- The file that a request sends -------------------------------------------


class RequestBodyError(FetchError):
    """The body file of the request cannot be sent."""


class NoBodyFileError(RequestBodyError):
    """The file does not exist or is not a regular file. A retry would fail too."""


class BodyFileChangedError(RequestBodyError):
    """The file changed while it was being sent."""


class UnreadableBodyFileError(RequestBodyError):
    """The file cannot be read. The message names it."""


class StoringCancelledError(asyncio.CancelledError):
    """The attempt was cancelled while its whole body was on the way to an object store."""


# --- The destination of the body ---------------------------------------------


class DestinationError(FetchError):
    """The body cannot be stored at its destination."""


class BadDestError(DestinationError):
    """The `dest` of the fetch cannot be used."""


class InTheWayError(BadDestError):
    """A file, folder or link in the out folder blocks the path. The message names it."""


class ExistsError(DestinationError):
    """A file exists at the destination, and the fetch must not replace it."""

    def __init__(self, path: str) -> None:
        super().__init__(f"{path!r} exists already")
        self.path = path
