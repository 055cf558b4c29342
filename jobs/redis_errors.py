"""The errors of Redis, classified: those that pass with time, and those that need an operator."""

import re
import ssl
from collections.abc import Iterator

from redis.exceptions import AuthenticationError, NoPermissionError, RedisError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from fetchfleet.jobs.compat import takes_no_writes
from fetchfleet.jobs.errors import JobsError

_TRANSIENT_CODES = re.compile(r"(?:^|\W)(BUSY|CLUSTERDOWN|LOADING|TRYAGAIN|UNBLOCKED|UNKILLABLE) ")
"""Codes of a Redis that runs a script, loads its data, or changes its role. They follow other words if a
script of an older Redis met them."""

_CUT_TLS = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)
"""A TLS connection that ended in the middle, as those to a Redis that restarts do."""

_OF_A_SOCKET = ConnectionAbortedError | ConnectionRefusedError | ConnectionResetError | TimeoutError
"""Errors of the operating system that redis-py may pass on. BrokenPipeError may be one of standard output."""


def is_transient(error: BaseException) -> bool:
    """Return whether the call that raised the error may succeed later without a change to its setup.

    Redis is away, starts, fails over, is frozen, is full of clients or is busy. False if it refuses the
    password, the user, a command, the database or the type of a key, or if TLS finds a wrong certificate.
    """
    if isinstance(error, JobsError):
        return False
    if isinstance(error.__cause__, RedisError):  # redis-py wraps what Redis says to a new connection
        error = error.__cause__
    if is_refusal(error) or any(map(_is_permanent, _chain(error))):
        return False
    if isinstance(error, ResponseError):
        return takes_no_writes(error) or _TRANSIENT_CODES.search(str(error)) is not None
    return isinstance(error, RedisConnectionError | RedisTimeoutError | _OF_A_SOCKET)


def is_refusal(error: object) -> bool:
    """Return whether Redis refuses the password, or denies its user a command or a key."""
    return is_of(error, AuthenticationError, NoPermissionError)


def is_of(error: object, *kinds: type[Exception]) -> bool:
    """Return whether the error or its cause is of one of the kinds; redis-py wraps those of a connection."""
    return isinstance(error, kinds) or isinstance(getattr(error, "__cause__", None), kinds)


def _is_permanent(error: BaseException) -> bool:
    """Return whether the operating system or TLS reports what a retry does not change."""
    if isinstance(error, ssl.SSLError):
        return not isinstance(error, _CUT_TLS)
    return isinstance(error, PermissionError)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield the error and those it was raised from: redis-py keeps an error of a socket as the context."""
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__ or found.__context__
