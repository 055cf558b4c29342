"""The two clocks of a worker: its own monotonic one, and Redis's, which all workers share."""

import time

mono_s = time.monotonic


class RedisClock:
    """Redis's Unix time between two looks at it, carried on by our monotonic clock.

    Every reply that holds Redis's time is a look; the wall clock of this machine is never asked.
    """

    def __init__(self) -> None:
        self._offset_ms: float | None = None

    def sync(self, redis_ms: int) -> None:
        """Take over the time that a reply has just brought."""
        self._offset_ms = redis_ms - mono_s() * 1000

    def now_ms(self) -> int:
        """Unix ms by Redis's clock; `sync` must have been called."""
        assert self._offset_ms is not None, "the clock was read before Redis's time was known"
        return int(mono_s() * 1000 + self._offset_ms)
