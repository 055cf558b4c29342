"""The two clocks of a worker: its own monotonic one, and Redis's, which all workers share."""

import time

mono_s = time.monotonic

CLOCK_WAS_SET_MS = 2_000
DRIFT_MS = 0.5
"""How much of a later look is believed: two clocks that drift apart still find together."""


class RedisClock:
    """Redis's Unix time between two looks at it, carried on by our monotonic clock.

    Every reply that holds Redis's time is a look; the wall clock of this machine is never asked.
    """

    def __init__(self) -> None:
        self._offset_ms: float | None = None

    def sync(self, redis_ms: int) -> None:
        """Take over the time that a reply has just brought.

        A reply is always somewhat late, so the earliest clock of several looks is the truest; only a
        difference that no delay explains is a clock that was set.
        """
        look_ms = redis_ms - mono_s() * 1000
        known_ms = look_ms if self._offset_ms is None else self._offset_ms
        late_ms = known_ms - look_ms
        if late_ms < 0 or late_ms > CLOCK_WAS_SET_MS:
            self._offset_ms = look_ms
        else:
            self._offset_ms = known_ms - min(late_ms, DRIFT_MS)

    def now_ms(self) -> int:
        """Unix ms by Redis's clock; `sync` must have been called."""
        assert self._offset_ms is not None, "the clock was read before Redis's time was known"
        return int(mono_s() * 1000 + self._offset_ms)
