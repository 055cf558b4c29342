"""How long most of some waits were, and the longest: of the last few thousand. Pure."""

import math
from collections import deque
from collections.abc import Sequence

MOST = 4096
"""Of more figures than that the last ones stand for all: memory is bounded, whatever the pace."""


class Recent:
    """The last figures that were added, MOST at most."""

    def __init__(self) -> None:
        self._kept: deque[float] = deque(maxlen=MOST)
        self.add = self._kept.append

    def taken(self) -> list[float]:
        """What has been added since the last call, in order of size."""
        taken = sorted(self._kept)
        self._kept.clear()
        return taken


def percentile(ordered: Sequence[float], share: float) -> float | None:
    """The smallest of the figures that at least this share (0 to 1) of them do not exceed; None of none.

    By nearest rank: it is always one that was measured. ordered: from the smallest on.
    """
    if not ordered:
        return None
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


RATE_OVER_S = 5.0


class Rate:
    """A count's growth a second over the last few seconds."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def add(self, at_s: float, count: int) -> float:
        """The rate after the count was seen at at_s."""
        self._seen.append((at_s, count))
        while len(self._seen) > 2 and at_s - self._seen[0][0] > RATE_OVER_S:
            self._seen.popleft()
        (first_s, first), (last_s, last) = self._seen[0], self._seen[-1]
        return max(0.0, (last - first) / (last_s - first_s)) if last_s > first_s else 0.0
