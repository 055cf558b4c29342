"""When Redis last failed this worker's lanes."""

from fetchfleet.worker.redis_support.errors import RedisErrorReporter
from fetchfleet.worker.redis_support.key_repair import KeyRepair, is_key_conflict
from fetchfleet.worker.util.clock import mono_s


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
