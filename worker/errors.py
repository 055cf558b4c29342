"""Exit codes, and the exceptions of the worker."""

FAILED = 1
BAD_USE = 2
UNREACHABLE = 3
INTERRUPTED = 130


class CommandError(Exception):
    """An expected error: the command prints its message, without a traceback, and exits with `exit_code`."""

    exit_code = FAILED

    def __init__(self, message: str, exit_code: int | None = None) -> None:
        super().__init__(message)
        if exit_code is not None:
            self.exit_code = exit_code


class FetchError(Exception):
    """Ends an attempt of a fetch; worker/fetch/error_mapping.py gives each its reason."""


class ForeignHostError(Exception):
    """A bug: connections of one host, with its TLS settings, were to be used for another host."""

    def __init__(self, host: str, connections_of: str) -> None:
        super().__init__(f"{host!r} was to be requested on connections of {connections_of!r}")


# --- No connection -----------------------------------------------------------


class ConnectError(FetchError):
    """No connection to the host could be opened."""


class EgressRefusedError(ConnectError):
    """The address must not be dialled; the message names the rule."""


class UnresolvedError(ConnectError):
    """The host name has no address, or the resolver gave none."""


class NoSuchNameError(UnresolvedError):
    """The nameserver answered that the name does not exist or has no address."""


class NameServerError(UnresolvedError):
    """The nameserver failed, refused the query or is unreachable."""


class NameTimeoutError(UnresolvedError):
    """The nameserver did not answer in time."""


class TlsError(ConnectError):
    """The TLS handshake failed; its argument is the error below, if that says anything."""


class TlsTimeoutError(TlsError):
    """The TLS handshake did not end in time."""


class ConnectTimeoutError(ConnectError):
    """The host did not accept a connection in time."""


class PoolTimeoutError(ConnectError):
    """No connection, or stream of one, became free in time."""


# --- The connection breaks ---------------------------------------------------


class ConnectionBrokenError(FetchError):
    """An open connection failed; its cause is the error below, if there is one."""


class ReadError(ConnectionBrokenError):
    """The host reset the connection, or the network failed, before the response was complete."""


class WriteError(ConnectionBrokenError):
    """The request could not be sent."""


class ReadTimeoutError(ConnectionBrokenError):
    """The response stopped arriving."""


class WriteTimeoutError(ConnectionBrokenError):
    """The host did not take a piece of the request body in time."""


# --- The response breaks the protocol ----------------------------------------


class ProtocolError(FetchError):
    """The host did not answer the request as HTTP demands."""


class FirstByteTimeoutError(ProtocolError):
    """The request was sent, and no byte of a response came in time."""


class BadAnswerError(ProtocolError):
    """The response is complete as HTTP frames it, and contradicts itself or the request."""


class RemoteProtocolError(ProtocolError):
    """The response cannot be read as HTTP, or its connection ended before it was complete."""


class InvalidRequestError(ProtocolError):
    """The request cannot be written as HTTP; a retry would fail too."""


# --- The response's body -----------------------------------------------------


class BodyError(FetchError):
    """The response's body is not one to store."""


class OverlongBodyError(BodyError):
    """The body exceeds the size limit."""


class TruncatedBodyError(BodyError):
    """The body ended before its Content-Length."""


class DigestMismatchError(BodyError):
    """The body does not have the digest that the caller or the host named."""


class TooSlowError(BodyError):
    """The body arrives below the policy's minimum rate."""


# --- The file that a request sends -------------------------------------------


class RequestBodyError(FetchError):
    """The request's body file cannot be sent."""


class NoBodyFileError(RequestBodyError):
    """The file does not exist or is not a regular file; a retry would fail too."""


class BodyFileChangedError(RequestBodyError):
    """The file changed while it was being sent."""


class UnreadableBodyFileError(RequestBodyError):
    """The disk failed to read the file; the message names it."""


# --- The place of the body ---------------------------------------------------


class DestinationError(FetchError):
    """The body cannot be stored where it belongs."""


class BadDestError(DestinationError):
    """The fetch's `dest` cannot be used."""


class InTheWayError(BadDestError):
    """Something in the out folder blocks the path; the message names it and its kind."""


class ExistsError(DestinationError):
    """A file exists at the destination and must not be replaced."""
