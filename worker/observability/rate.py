"""How fast a count grows."""

from collections import deque

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
