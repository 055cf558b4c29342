"""Redis errors: a Redis that cannot be reached, in one sentence, and a report of each error while running."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from redis.exceptions import AuthenticationError, NoPermissionError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from structlog.typing import FilteringBoundLogger

from fetchfleet.worker.errors import CommandError
from fetchfleet.worker.observability import events, redact
from fetchfleet.worker.util.clock import mono_s

REFUSAL_EVERY_S = 60.0
"""How often a lasting refusal is logged."""


class UnreachableRedisError(CommandError):
    """There is no Redis at the URL, or it rejects the credentials."""


@contextmanager
def redis_at(redis_url: str) -> Iterator[None]:
    """Turn connection errors within the block, which talks to Redis only, into UnreachableRedisError."""
    try:
        yield
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


class RedisErrorReporter:
    """Logs each error it is called with. One for a worker process, since its parts share one Redis."""

    def __init__(self, log: FilteringBoundLogger, now_s: Callable[[], float] = mono_s) -> None:
        self._log = log
        self._now_s = now_s
        self._refused_s: dict[str, float] = {}

    def __call__(self, error: object) -> None:
        """Log the error; log a refusal (password, ACL) as an error, and only every REFUSAL_EVERY_S."""
        if not is_of(error, AuthenticationError, NoPermissionError):
            events.redis_trouble(error, self._log)
            return
        now_s = self._now_s()
        self._refused_s = {text: at for text, at in self._refused_s.items() if now_s - at < REFUSAL_EVERY_S}
        if str(error) not in self._refused_s:
            self._refused_s[str(error)] = now_s
            events.redis_refusal(error, self._log)
