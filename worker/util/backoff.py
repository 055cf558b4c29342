"""Back-off curves; chance is passed in as a fraction. Pure."""

MAX_DOUBLINGS = 1000
"""More would overflow a float."""


class Pace:
    """Spaces out what returns: least_s from now, and every_s after what returned before it."""

    def __init__(self, least_s: float, every_s: float) -> None:
        self._least_s = least_s
        self._every_s = every_s
        self._next_s = 0.0

    def wait_s(self, now_s: float) -> float:
        """Return the wait of the next one."""
        at_s = max(now_s + self._least_s, self._next_s)
        self._next_s = at_s + self._every_s
        return at_s - now_s


def exponential_s(n: int, base_s: float, cap_s: float) -> float:
    """Return base_s doubled n-1 times (n from 1), capped; any n is safe."""
    return min(base_s * 2.0 ** (min(max(n, 1), MAX_DOUBLINGS) - 1), cap_s)


def full_jitter_s(n: int, base_s: float, cap_s: float, chance: float) -> float:
    """Return a wait before the n-th retry, spread evenly from 0 to the curve; chance in [0, 1)."""
    return exponential_s(n, base_s, cap_s) * chance


def upward_jitter_s(wait_s: float, chance: float, spread: float = 0.1) -> float:
    """Return the wait or up to `spread` more, never less: Retry-After is a floor; chance in [0, 1)."""
    return wait_s * (1 + spread * chance)
