"""A Redis that cannot be reached, said in one sentence."""

from collections.abc import Iterator
from contextlib import contextmanager

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from fetchfleet.worker.errors import ForeseenError
from fetchfleet.worker.observability import redact


class UnreachableRedisError(ForeseenError):
    """No Redis at the URL, or none that lets us in."""


@contextmanager
def redis_at(redis_url: str) -> Iterator[None]:
    """For what asks Redis and nobody else: trouble on the way to it is an UnreachableRedisError."""
    try:
        yield
    except (RedisConnectionError, RedisTimeoutError, OSError) as error:
        where = redact.url(redis_url).partition("?")[0]
        said = str(error).rstrip(".")
        raise UnreachableRedisError(
            f"cannot reach Redis at {where} (--redis, FETCHFLEET_REDIS_URL): {said}{_remedy(redis_url, said)}"
        ) from error


def _remedy(redis_url: str, said: str) -> str:
    """For what the error itself does not say."""
    if "unable to get" in said or "certificate in certificate chain" in said:
        return "; name a CA of your own by ssl_ca_certs=/path/ca.pem in the URL"
    # What hangs up on our first words may be waiting for a TLS handshake.
    hung_up = "closed by server" in said or "reset by peer" in said
    return "; if it speaks TLS, say rediss://" if hung_up and redis_url.startswith("redis://") else ""
