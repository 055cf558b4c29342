"""The Redis errors of a running worker: their log lines, and the time since the last one."""

import re
from collections.abc import Callable, Hashable

from redis.exceptions import BusyLoadingError, RedisError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from structlog.typing import FilteringBoundLogger

from fetchfleet.jobs.redis_errors import is_or_wraps, is_refusal
from fetchfleet.worker.observability import events
from fetchfleet.worker.observability.repeats import RECOVERY_S, Repeats, Trouble
from fetchfleet.worker.redis_support.key_repair import KeyRepair, is_key_conflict
from fetchfleet.worker.util.clock import mono_s

NO_ANSWER = "no answer"


def kind_of(error: object) -> Hashable:
    """Return the kind of an error: equal for errors with the same cause, whichever call failed.

    A Redis that is away refuses, drops and delays connections in turn; all of these are one kind. Other kinds
    are the type and the first word of the message, which is the error code of Redis (MISCONF, NOREPLICAS).
    """
    if is_refusal(error):
        return "refusal", str(error)
    if is_or_wraps(error, BusyLoadingError):
        return "loading"
    if isinstance(error, RedisConnectionError | RedisTimeoutError | OSError):
        return NO_ANSWER
    return type(error).__name__, str(error).partition(" ")[0]


_CODE = re.compile(r"[A-Z]{3,} ")
"""The code of an error about the state of Redis (BUSY, MISCONF). Errors about one call have none."""


def concerns_all(error: object) -> bool:
    """Return whether other calls fail too. False for an error about the keys or arguments of one call."""
    if not isinstance(error, RedisError | OSError) or is_key_conflict(error):
        return False
    return type(error) is not ResponseError or _CODE.match(str(error)) is not None


class RedisErrorReporter:
    """Logs each kind of error at once and then once a minute, and the end of the trouble.

    One for each worker process, because all of its components share one Redis.
    """

    def __init__(
        self, log: FilteringBoundLogger, now_s: Callable[[], float] = mono_s, recovery_s: float = RECOVERY_S
    ) -> None:
        self._log = log
        self._now_s = now_s
        self._repeats = Repeats()
        self._trouble = Trouble(recovery_s)

    def __call__(self, error: object) -> None:
        """Log an error, unless its kind was logged in the last minute. Refusals are `redis.refusal`."""
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
        """Note a successful call. Log `redis.back` when the trouble is over (see Trouble)."""
        ended = self._trouble.succeeded(self._now_s())
        if ended is not None:
            self._repeats.forget()
            events.redis_back(ended, self._log)


class RedisHealth:
    """Receives the Redis errors of all components. One for each worker process.

    Its creation counts as a failure of Redis.
    """

    def __init__(self, errors: RedisErrorReporter, key_repair: KeyRepair) -> None:
        self._errors = errors
        self._key_repair = key_repair
        self._failed_s = mono_s()

    @property
    def since_failure_s(self) -> float:
        """Seconds since Redis last failed. Errors that concern one call only do not count."""
        return mono_s() - self._failed_s

    def report(self, error: object) -> None:
        """Log an error. If it is a key conflict, the keys are checked soon."""
        if is_key_conflict(error):
            self._key_repair.check_soon()
        elif concerns_all(error):
            self._failed_s = mono_s()
        self._errors(error)

    def answered(self) -> None:
        """Note a successful call."""
        self._errors.answered()
