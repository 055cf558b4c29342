"""A Redis that cannot be reached, in one sentence, and how to go on when it is back.

Each command imports this: it must not import the log.
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
    """No Redis answers at the URL, or it rejects the credentials."""


class DeniedError(CommandError):
    """Redis does not let this user do something; worker/redis_support/permissions.py says which user may.

    user: empty if it is not known. message: the message of Redis.
    """

    def __init__(self, user: str, message: str) -> None:
        super().__init__(message)
        self.user = user
        self.message = message


class UnreachableFleetError(CommandError):
    """Redis has not answered for as long as --redis-patience says; the message holds the way on."""

    exit_code = UNREACHABLE


GoOn = Callable[[FleetUnreachableError], str]
"""Makes the command that goes on where an error ended one."""


@contextmanager
def followed_at(redis_url: str, go_on: GoOn | None = None) -> Iterator[None]:
    """Turn FleetUnreachableError within the block into UnreachableFleetError."""
    try:
        yield
    except FleetUnreachableError as error:
        way_on = f"go on with: {go_on(error)}" if go_on else "repeat the command when it is back"
        # Without a cause Redis answers, and no worker has taken a message of an inbox.
        message = _unreachable(redis_url, error.__cause__) if error.__cause__ else str(error)
        raise UnreachableFleetError(f"{message}\n{way_on}") from error


@contextmanager
def redis_at(redis_url: str) -> Iterator[None]:
    """Turn errors within the block, which talks to Redis only, into errors of a command.

    Raises UnreachableRedisError for a connection error, DeniedError for a refused command or key.
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
        remedy = "; name a CA of your own by ssl_ca_certs=/path/ca.pem in the URL"
    elif "closed by server" in message or "reset by peer" in message:
        # A server that hangs up on the first command may expect a TLS handshake.
        remedy = "; if it speaks TLS, say rediss://" if redis_url.startswith("redis://") else ""
    return f"cannot reach Redis at {where} (--redis, FETCHFLEET_REDIS_URL): {message}{remedy}"
