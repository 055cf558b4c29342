"""Redis errors: their kinds, and a Redis that cannot be reached, in one sentence.

Each command imports this: it must not import the log.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import unquote, urlsplit

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoPermissionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from fetchfleet.worker.errors import CommandError
from fetchfleet.worker.observability import redact


class UnreachableRedisError(CommandError):
    """There is no Redis at the URL, or it rejects the credentials."""


class DeniedError(CommandError):
    """Redis does not let this user do something; worker/redis_support/permissions.py says which user may.

    user: empty if it is not known. said: the message of Redis.
    """

    def __init__(self, user: str, said: str) -> None:
        super().__init__(said)
        self.user = user
        self.said = said


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
        where = redact.url(redis_url).partition("?")[0]
        said = str(error).rstrip(".")
        remedy = ""
        if "unable to get" in said or "certificate in certificate chain" in said:
            remedy = "; name a CA of your own by ssl_ca_certs=/path/ca.pem in the URL"
        elif "closed by server" in said or "reset by peer" in said:
            # A server that hangs up on the first command may expect a TLS handshake.
            remedy = "; if it speaks TLS, say rediss://" if redis_url.startswith("redis://") else ""
        raise UnreachableRedisError(
            f"cannot reach Redis at {where} (--redis, FETCHFLEET_REDIS_URL): {said}{remedy}"
        ) from error


def is_of(error: object, *kinds: type[Exception]) -> bool:
    """Whether the error or its cause is of one of the kinds; redis-py wraps errors of a new connection."""
    return isinstance(error, kinds) or isinstance(getattr(error, "__cause__", None), kinds)
