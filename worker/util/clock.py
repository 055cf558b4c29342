"""The two clocks of a worker: its own monotonic clock, and Redis's clock, which all workers share."""

import time

mono_s = time.monotonic

CLOCK_WAS_SET_MS = 2_000
DRIFT_MS = 0.5
"""How far one late reply may move the offset, so that clocks that drift apart are followed."""


class RedisClock:
    """Redis's Unix time, estimated between its replies by the monotonic clock.

    The wall clock of this machine is never read.
    """

    def __init__(self) -> None:
        self._offset_ms: float | None = None

    def sync(self, redis_ms: int) -> None:
        """Take over the time of a reply that has just come.

        Replies come late by different amounts, so the largest offset seen is the most accurate. A difference
        beyond CLOCK_WAS_SET_MS means that Redis's clock was set.
        """
        offset_ms = redis_ms - mono_s() * 1000
        known_ms = offset_ms if self._offset_ms is None else self._offset_ms
        late_ms = known_ms - offset_ms
        if late_ms < 0 or late_ms > CLOCK_WAS_SET_MS:
            self._offset_ms = offset_ms
        else:
            self._offset_ms = known_ms - min(late_ms, DRIFT_MS)

    def now_ms(self) -> int:
        """Return Unix ms by Redis's clock; `sync` must have been called."""
        assert self._offset_ms is not None, "the clock was read before Redis's time was known"
        return int(mono_s() * 1000 + self._offset_ms)
