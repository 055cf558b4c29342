"""The recent figures of a fleet, as lines of small charts. Pure."""

from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

MAX_SAMPLES = 150
SPAN_MS = 300_000
"""The time that a chart shows."""
MIN_STEP_MS = 1000
MAX_GAP_MS = 15_000
"""The longest time between two samples of one line. Without viewers there are no samples."""
MIN_POINTS = 3
WIDTH, HEIGHT = 100, 30


class Sample(NamedTuple):
    """The figures of a fleet at a time."""

    at_ms: int
    finished_per_s: float
    received_bytes_per_s: float
    backlog: int


class ChartLines(NamedTuple):
    """The points of each chart, for the attribute `points` of SVG; empty if there are too few samples."""

    finished: str = ""
    received: str = ""
    backlog: str = ""


class History:
    """The samples of the last minutes, taken while a viewer looks."""

    def __init__(self) -> None:
        self._samples: deque[Sample] = deque(maxlen=MAX_SAMPLES)

    def add(self, sample: Sample) -> None:
        """Add a sample, unless it is as old as the last one."""
        if self._samples and sample.at_ms < self._samples[-1].at_ms:  # Redis was replaced, or its clock set
            self._samples.clear()
        if not self._samples or sample.at_ms - self._samples[-1].at_ms >= MIN_STEP_MS:
            self._samples.append(sample)

    def lines(self, now_ms: int) -> ChartLines:
        """Return the charts."""
        recent: list[Sample] = []
        for sample in reversed(self._samples):
            after_ms = recent[-1].at_ms if recent else now_ms
            if not 0 <= after_ms - sample.at_ms <= MAX_GAP_MS or sample.at_ms < now_ms - SPAN_MS:
                break
            recent.append(sample)
        recent.reverse()
        return ChartLines(
            _points(recent, now_ms, lambda of: of.finished_per_s),
            _points(recent, now_ms, lambda of: of.received_bytes_per_s),
            _points(recent, now_ms, lambda of: of.backlog),
        )


def _points(samples: Sequence[Sample], now_ms: int, value: Callable[[Sample], float]) -> str:
    if len(samples) < MIN_POINTS:
        return ""
    first_ms = samples[0].at_ms
    span_ms = max(1, now_ms - first_ms)
    largest = max(map(value, samples)) or 1
    return " ".join(
        f"{WIDTH * (of.at_ms - first_ms) / span_ms:.1f},{HEIGHT - (HEIGHT - 2) * value(of) / largest:.1f}"
        for of in samples
    )
