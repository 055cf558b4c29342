"""The two clocks of a worker: its own monotonic clock, and Redis's clock, which all workers share."""

import math
import time

mono_s = time.monotonic

CLOCK_WAS_SET_MS = 2_000
PROMPT_WITHIN_S = 10.0
"""One reply in this time is taken to be prompt, so that a clock that drifts or is set back is followed."""


class RedisClock:
    """Redis's Unix time, estimated between its replies by the monotonic clock.

    The wall clock of this machine is never read.
    """

    def __init__(self) -> None:
        self._offset_ms: float | None = None
        self._before_ms = self._lately_ms = -math.inf
        """The largest offsets of the last whole period of PROMPT_WITHIN_S, and of the present one."""
        self._period_ends_s = 0.0

    def sync(self, redis_ms: int) -> None:
        """Take over the time of a reply that has just come.

        Replies come late by different amounts, so the largest offset seen lately is the most accurate. Late
        replies alone do not set the clock back: it would jump again, and end a cool-down early, with the next
        prompt one. A difference beyond CLOCK_WAS_SET_MS means that Redis's clock was set.
        """
        now_s = mono_s()
        offset_ms = redis_ms - now_s * 1000
        if self._offset_ms is not None and self._offset_ms - offset_ms > CLOCK_WAS_SET_MS:
            self._before_ms = self._lately_ms = -math.inf
        if now_s >= self._period_ends_s:
            self._before_ms, self._lately_ms = self._lately_ms, -math.inf
            self._period_ends_s = now_s + PROMPT_WITHIN_S
        self._lately_ms = max(self._lately_ms, offset_ms)
        self._offset_ms = max(self._before_ms, self._lately_ms)

    def now_ms(self) -> int:
        """Return Unix ms by Redis's clock; `sync` must have been called."""
        assert self._offset_ms is not None, "the clock was read before Redis's time was known"
        return int(mono_s() * 1000 + self._offset_ms)
