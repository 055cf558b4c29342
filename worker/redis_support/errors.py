"""Errors of commands about Redis: what failed, at which URL, and how to continue.

Every command imports this module, so it must not import structlog.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from urllib.parse import unquote, urlsplit

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoPermissionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from fetchfleet.jobs.errors import FleetUnreachableError
from fetchfleet.worker.errors import UNREACHABLE, CommandError
from fetchfleet.worker.observability import redact


class UnreachableRedisError(CommandError):
    """No Redis replies at the URL, or it rejects the credentials."""


class DeniedError(CommandError):
    """Redis denies this user a command or key. worker/redis_support/permissions.py names the user to use."""

    def __init__(self, user: str, message: str) -> None:
        super().__init__(message)
        self.user = user
        """The name of the user; empty if unknown."""
        self.message = message
        """The error message of Redis."""


class UnreachableFleetError(CommandError):
    """Redis has not replied for --redis-patience seconds. The message says how to continue."""

    exit_code = UNREACHABLE


NextCommand = Callable[[FleetUnreachableError], str]
"""Returns the command that continues after the error."""


@contextmanager
def followed_at(redis_url: str, next_command: NextCommand | None = None) -> Iterator[None]:
    """Turn FleetUnreachableError within the block into UnreachableFleetError.

    next_command: returns the command to continue with; None if the same command can be repeated.
    """
    try:
        yield
    except FleetUnreachableError as error:
        command = next_command(error) if next_command else None
        remedy = f"continue with: {command}" if command else "repeat the command when Redis is back"
        # An error without a cause means that Redis replies, but no worker took a message of the inbox.
        message = _unreachable(redis_url, error.__cause__) if error.__cause__ else str(error)
        raise UnreachableFleetError(f"{message}\n{remedy}") from error


@contextmanager
def redis_at(redis_url: str) -> Iterator[None]:
    """Turn errors of Redis within the block into errors of a command.

    Raises UnreachableRedisError for a connection error, and DeniedError for a denied command or key. The
    block must not use files or other sockets: every OSError counts as one of Redis.
    """
    try:
        yield
    except NoPermissionError as error:
        raise DeniedError(unquote(urlsplit(redis_url).username or "default"), str(error)) from error
    except (RedisConnectionError, RedisTimeoutError, OSError) as error:
        raise UnreachableRedisError(_unreachable(redis_url, error)) from error


def _unreachable(redis_url: str, error: BaseException) -> str:
    where = redact.url(redis_url).partition("?")[0]
    message = str(error).rstrip(".")
    remedy = ""
    if "unable to get" in message or "certificate in certificate chain" in message:
        remedy = "; add ssl_ca_certs=/path/ca.pem to the URL"
    elif "closed by server" in message or "reset by peer" in message:
        # A server that closes the connection at the first command may expect a TLS handshake.
        remedy = "; if the server expects TLS, use rediss://" if redis_url.startswith("redis://") else ""
    return f"cannot reach Redis at {where} (--redis, FETCHFLEET_REDIS_URL): {message}{remedy}"
