"""A Redis that cannot be reached, said in one sentence."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from redis.exceptions import AuthenticationError, NoPermissionError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from fetchfleet.worker.errors import CommandError
from fetchfleet.worker.observability import events, redact
from fetchfleet.worker.util.clock import mono_s


class UnreachableRedisError(CommandError):
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


TOLD_AGAIN_S = 60.0
"""A refusal that lasts is told so often, not each time it is met."""


def is_of(error: object, *kinds: type[Exception]) -> bool:
    """Whether the error is of one of the kinds; redis-py wraps what a new connection meets."""
    return isinstance(error, kinds) or isinstance(getattr(error, "__cause__", None), kinds)


class Trouble:
    """Called with each error. One for a worker process: all of its parts meet the same Redis."""

    def __init__(self, log: Any, now_s: Callable[[], float] = mono_s) -> None:
        self._log = log
        self._now_s = now_s
        self._told_s: dict[str, float] = {}

    def __call__(self, error: object) -> None:
        """Say so: a refusal at once and as an error, but not again for TOLD_AGAIN_S."""
        if not is_of(error, AuthenticationError, NoPermissionError):
            events.redis_trouble(error, self._log)
        elif self._is_news(str(error)):
            events.redis_refusal(error, self._log)

    def _is_news(self, said: str) -> bool:
        now_s = self._now_s()
        self._told_s = {known: at for known, at in self._told_s.items() if now_s - at < TOLD_AGAIN_S}
        if said in self._told_s:
            return False
        self._told_s[said] = now_s
        return True
