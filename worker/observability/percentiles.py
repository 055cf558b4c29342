"""Percentiles of recent measurements, histograms of all, and rates of growing counts. Pure."""

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import accumulate

MAX_SAMPLES = 4096
"""The maximum number of measurements to keep, which bounds memory. The oldest are dropped."""

RATE_OVER_S = 5.0


class Recent:
    """The measurements since the last report, at most MAX_SAMPLES."""

    def __init__(self) -> None:
        self._samples: deque[float] = deque(maxlen=MAX_SAMPLES)
        self.add = self._samples.append

    def pop_sorted(self) -> list[float]:
        """Remove all measurements and return them in ascending order."""
        samples = sorted(self._samples)
        self._samples.clear()
        return samples


def percentile(ordered: Sequence[float], share: float) -> float | None:
    """Return the percentile by nearest rank, which is one of the measurements; None without measurements.

    ordered: ascending. share: 0 to 1, such as 0.99.
    """
    if not ordered:
        return None
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


class Histogram:
    """The number of measurements up to each bound, since the start. bounds: ascending."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        """The number of measurements between two bounds; those above the last bound are the last number."""
        self.sum = 0.0

    def add(self, value: float) -> None:
        """Count a measurement."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def cumulative(self) -> Iterator[tuple[float, int]]:
        """Yield each bound, the last one infinite, with the number of measurements up to it."""
        return zip((*self.bounds, math.inf), accumulate(self.counts), strict=True)


class Rate:
    """The growth of a count per second, over about the last RATE_OVER_S seconds."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque()

    def add(self, at_s: float, count: int) -> float:
        """Add the count at at_s (monotonic) and return the rate; 0.0 after the first call."""
        self._samples.append((at_s, count))
        while len(self._samples) > 2 and at_s - self._samples[0][0] > RATE_OVER_S:
            self._samples.popleft()
        (first_s, first), (last_s, last) = self._samples[0], self._samples[-1]
        return max(0.0, (last - first) / (last_s - first_s)) if last_s > first_s else 0.0
