"""Percentiles of recent measurements, and rates of growing counts. Pure."""

import math
from collections import deque
from collections.abc import Sequence

MOST = 4096
"""Older measurements are dropped beyond this number, which bounds memory."""

RATE_OVER_S = 5.0


class Recent:
    """The last MOST measurements."""

    def __init__(self) -> None:
        self._kept: deque[float] = deque(maxlen=MOST)
        self.add = self._kept.append

    def taken(self) -> list[float]:
        """Return the measurements since the last call, in ascending order."""
        taken = sorted(self._kept)
        self._kept.clear()
        return taken


def percentile(ordered: Sequence[float], share: float) -> float | None:
    """Return the smallest measurement that at least this share (0 to 1) do not exceed; None if there is none.

    By nearest rank, so the result is one of the measurements. ordered: ascending.
    """
    if not ordered:
        return None
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


class Rate:
    """The growth of a count per second over the last RATE_OVER_S seconds."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def add(self, at_s: float, count: int) -> float:
        """Return the rate after the count was seen at at_s."""
        self._seen.append((at_s, count))
        while len(self._seen) > 2 and at_s - self._seen[0][0] > RATE_OVER_S:
            self._seen.popleft()
        (first_s, first), (last_s, last) = self._seen[0], self._seen[-1]
        return max(0.0, (last - first) / (last_s - first_s)) if last_s > first_s else 0.0
