"""When Redis last failed this worker's lanes."""

from fetchfleet.worker.redis_support.errors import Trouble
from fetchfleet.worker.redis_support.key_repair import Foreign, is_foreign
from fetchfleet.worker.util.clock import mono_s


class RedisHealth:
    """Receives the Redis errors that lanes meet. One for a worker process. Its start counts as one."""

    def __init__(self, errors: Trouble, key_repair: Foreign) -> None:
        self._errors = errors
        self._key_repair = key_repair
        self._failed_s = mono_s()

    @property
    def well_for_s(self) -> float:
        """Seconds since Redis last failed; a conflicting key is no failure of Redis."""
        return mono_s() - self._failed_s

    def report(self, error: BaseException) -> None:
        """Log the error, and have a conflicting key repaired soon."""
        if is_foreign(error):
            self._key_repair.look_soon()
        else:
            self._failed_s = mono_s()
        self._errors(error)
