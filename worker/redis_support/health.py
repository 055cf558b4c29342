"""The Redis errors of a running worker: their log lines, and when Redis last failed the lanes."""

from collections.abc import Callable

from redis.exceptions import AuthenticationError, NoPermissionError
from structlog.typing import FilteringBoundLogger

from fetchfleet.worker.observability import events
from fetchfleet.worker.redis_support.errors import is_of
from fetchfleet.worker.redis_support.key_repair import KeyRepair, is_key_conflict
from fetchfleet.worker.util.clock import mono_s

REFUSAL_EVERY_S = 60.0
"""How often a lasting refusal is logged."""


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


class RedisHealth:
    """Receives the Redis errors that lanes meet. One for a worker process. Its start counts as one."""

    def __init__(self, errors: RedisErrorReporter, key_repair: KeyRepair) -> None:
        self._errors = errors
        self._key_repair = key_repair
        self._failed_s = mono_s()

    @property
    def well_for_s(self) -> float:
        """Seconds since Redis last failed; a conflicting key is no failure of Redis."""
        return mono_s() - self._failed_s

    def report(self, error: BaseException) -> None:
        """Log the error, and have a conflicting key repaired soon."""
        if is_key_conflict(error):
            self._key_repair.check_soon()
        else:
            self._failed_s = mono_s()
        self._errors(error)
