"""Classification of Redis errors: transient ones, and those that need an operator."""

import re
import ssl
from collections.abc import Iterator

from redis.exceptions import AuthenticationError, NoPermissionError, RedisError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from fetchfleet.jobs.compat import refuses_writes
from fetchfleet.jobs.errors import JobsError

_TRANSIENT_CODES = re.compile(r"(?:^|\W)(BUSY|CLUSTERDOWN|LOADING|TRYAGAIN|UNBLOCKED|UNKILLABLE) ")
"""Codes of a Redis that runs a script, loads its data, or changes its role.

In errors of scripts before Redis 7 the code follows other text."""

_CUT_TLS = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)
"""Errors of a TLS connection that was cut off, for example because Redis restarts."""

_SOCKET_ERRORS = ConnectionAbortedError | ConnectionRefusedError | ConnectionResetError | TimeoutError
"""Errors of the operating system that redis-py does not wrap. BrokenPipeError may be of standard output."""


def is_transient(error: BaseException) -> bool:
    """Return whether the same call may succeed later without a change of configuration.

    True if Redis is unreachable, starts, fails over, is frozen or busy, or has too many clients. False if it
    refuses the password, user, command, database or type of a key, or if its certificate does not verify.
    """
    if isinstance(error, JobsError):
        return False
    if isinstance(error.__cause__, RedisError):  # redis-py wraps errors of a new connection
        error = error.__cause__
    if is_refusal(error) or any(map(_is_permanent, _chain(error))):
        return False
    if isinstance(error, ResponseError):
        return refuses_writes(error) or _TRANSIENT_CODES.search(str(error)) is not None
    return isinstance(error, RedisConnectionError | RedisTimeoutError | _SOCKET_ERRORS)


def is_refusal(error: object) -> bool:
    """Return whether Redis refuses the password, or denies its user a command or a key."""
    return is_or_wraps(error, AuthenticationError, NoPermissionError)


def is_or_wraps(error: object, *types: type[Exception]) -> bool:
    """Return whether the error or its cause has one of the types: redis-py wraps errors of a connection."""
    return isinstance(error, types) or isinstance(getattr(error, "__cause__", None), types)


def _is_permanent(error: BaseException) -> bool:
    """Return whether a retry cannot change this error of the operating system or TLS."""
    if isinstance(error, ssl.SSLError):
        return not isinstance(error, _CUT_TLS)
    return isinstance(error, PermissionError)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield the error, its cause and so on: redis-py keeps an error of a socket as the context."""
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or link.__context__
