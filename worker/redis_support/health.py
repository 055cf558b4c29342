"""The Redis errors of a running worker: their log lines, and when Redis last failed the lanes."""

import re
from collections.abc import Callable, Hashable

from redis.exceptions import BusyLoadingError, RedisError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from structlog.typing import FilteringBoundLogger

from fetchfleet.jobs.redis_errors import is_of, is_refusal
from fetchfleet.worker.observability import events
from fetchfleet.worker.observability.repeats import RECOVERY_S, Repeats, Trouble
from fetchfleet.worker.redis_support.key_repair import KeyRepair, is_key_conflict
from fetchfleet.worker.util.clock import mono_s

NO_ANSWER = "no answer"


def kind_of(error: object) -> Hashable:
    """Return what errors of one cause have in common, whichever call met them.

    A Redis that is away refuses, drops and delays connections, one after the other: that is one kind. Other
    errors differ by their type and first word, which is Redis's own code (MISCONF, NOREPLICAS).
    """
    if is_refusal(error):
        return "refusal", str(error)
    if is_of(error, BusyLoadingError):
        return "loading"
    if isinstance(error, RedisConnectionError | RedisTimeoutError | OSError):
        return NO_ANSWER
    return type(error).__name__, str(error).partition(" ")[0]


_CODE = re.compile(r"[A-Z]{3,} ")
"""The code of an error that says something about Redis (BUSY, MISCONF); that of a failed call has none."""


def concerns_all(error: object) -> bool:
    """Return whether other calls fail for the same cause: not if only what one call meets is at fault."""
    if not isinstance(error, RedisError | OSError) or is_key_conflict(error):
        return False
    return type(error) is not ResponseError or _CODE.match(str(error)) is not None


class RedisErrorReporter:
    """Logs errors, each kind at once and then once a minute, and the end of the trouble.

    One for a worker process, since its parts share one Redis.
    """

    def __init__(
        self, log: FilteringBoundLogger, now_s: Callable[[], float] = mono_s, recovery_s: float = RECOVERY_S
    ) -> None:
        self._log = log
        self._now_s = now_s
        self._repeats = Repeats()
        self._trouble = Trouble(recovery_s)

    def __call__(self, error: object) -> None:
        """Log the error, a refusal (password, ACL) at level error, unless one of its kind was just logged."""
        now_s, kind = self._now_s(), kind_of(error)
        self._trouble.failed(now_s)
        left_out = self._repeats.admit(kind, now_s)
        if left_out is None:
            return
        if is_refusal(error):
            events.redis_refusal(error, left_out, self._log)
        else:
            events.redis_trouble(error, left_out, self._log)

    def answered(self) -> None:
        """Note that Redis answers; log the end of a trouble once no call has failed for a while."""
        ended = self._trouble.succeeded(self._now_s())
        if ended is not None:
            self._repeats.forget()
            events.redis_back(ended, self._log)


class RedisHealth:
    """Receives the Redis errors that lanes meet. One for a worker process. Its start counts as one."""

    def __init__(self, errors: RedisErrorReporter, key_repair: KeyRepair) -> None:
        self._errors = errors
        self._key_repair = key_repair
        self._failed_s = mono_s()

    @property
    def well_for_s(self) -> float:
        """Seconds since Redis last failed; a call that fails alone is no failure of Redis."""
        return mono_s() - self._failed_s

    def report(self, error: object) -> None:
        """Log the error, and have a conflicting key repaired soon."""
        if is_key_conflict(error):
            self._key_repair.check_soon()
        elif concerns_all(error):
            self._failed_s = mono_s()
        self._errors(error)

    def answered(self) -> None:
        """Note that Redis answers."""
        self._errors.answered()
