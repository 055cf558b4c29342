"""Exit codes, and the exceptions of the worker."""

FAILED = 1
BAD_USE = 2
INTERRUPTED = 130


class CommandError(Exception):
    """An expected error: the command prints its message, without a traceback, and exits with `exit_code`."""

    exit_code = FAILED

    def __init__(self, message: str, exit_code: int | None = None) -> None:
        super().__init__(message)
        if exit_code is not None:
            self.exit_code = exit_code


class HttpError(Exception):
    """What our side of an exchange refuses."""


class EgressRefusedError(HttpError):
    """The address may not be dialled; the message names the rule."""


class UnresolvedError(HttpError):
    """The host name has no address, or the resolver did not say."""


class NoSuchNameError(UnresolvedError):
    """The nameserver says that there is no such name, or none with an address."""


class NameServerError(UnresolvedError):
    """The nameserver failed, refuses us, or is not there."""


class NameTimeoutError(UnresolvedError):
    """The nameserver did not answer in time."""


class TlsError(HttpError):
    """The TLS handshake failed; its argument is the error below, if that says anything."""


class TlsTimeoutError(TlsError):
    """The TLS handshake did not end in time."""


class FirstByteTimeoutError(HttpError):
    """The request is sent, and no byte of an answer came in time."""


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
