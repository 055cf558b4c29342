"""What a worker says of trouble with Redis: what passes is a warning, what must be mended an error."""

from collections.abc import Callable
from typing import Any

from redis.exceptions import AuthenticationError, NoPermissionError

from fetchfleet.worker.observability import events
from fetchfleet.worker.util.clock import mono_s

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
