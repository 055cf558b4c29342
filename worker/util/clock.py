"""The two clocks of a worker: its own monotonic clock, and the clock of Redis, which all workers share."""

import math
import time

mono_s = time.monotonic

CLOCK_WAS_SET_MS = 2_000
"""A smaller difference is the delay of a reply; a larger one means that the clock of Redis was set back."""

PROMPT_WITHIN_S = 10.0
"""The period in which at least one reply is assumed to be prompt. Bounds how long an old offset counts."""


class RedisClock:
    """The Unix time of Redis, extrapolated from its replies with the monotonic clock.

    The wall clock of this machine is never read.
    """

    def __init__(self) -> None:
        self._offset_ms: float | None = None
        self._previous_ms = self._current_ms = -math.inf
        """The largest offsets of the previous and of the current period of PROMPT_WITHIN_S."""
        self._period_ends_s = 0.0

    def sync(self, redis_ms: int) -> None:
        """Adjust the clock to the time in a reply that has just arrived.

        The delay of a reply makes its offset too small, so the largest recent offset is the most accurate.
        Late replies alone do not set the clock back. It would jump forward with the next prompt reply, and
        could end a cool-down early.
        """
        now_s = mono_s()
        offset_ms = redis_ms - now_s * 1000
        if self._offset_ms is not None and self._offset_ms - offset_ms > CLOCK_WAS_SET_MS:
            self._previous_ms = self._current_ms = -math.inf
        if now_s >= self._period_ends_s:
            self._previous_ms, self._current_ms = self._current_ms, -math.inf
            self._period_ends_s = now_s + PROMPT_WITHIN_S
        self._current_ms = max(self._current_ms, offset_ms)
        self._offset_ms = max(self._previous_ms, self._current_ms)

    def now_ms(self) -> int:
        """Return Unix ms by the clock of Redis. Call `sync` first."""
        assert self._offset_ms is not None, "RedisClock.now_ms was called before sync"
        return int(mono_s() * 1000 + self._offset_ms)
