"""Back-off curves. `chance` is a random number in [0, 1), passed in by the caller. Pure."""

MAX_DOUBLINGS = 1000
"""The largest exponent: 2.0 ** 1024 overflows a float."""


class Spacing:
    """Spreads events over time: each at least min_wait_s from now, and every_s after the one before."""

    def __init__(self, min_wait_s: float, every_s: float) -> None:
        self._min_wait_s = min_wait_s
        self._every_s = every_s
        self._next_s = 0.0

    def wait_s(self, now_s: float) -> float:
        """Return the wait of the next event, and reserve its time."""
        at_s = max(now_s + self._min_wait_s, self._next_s)
        self._next_s = at_s + self._every_s
        return at_s - now_s


def exponential_s(n: int, base_s: float, cap_s: float) -> float:
    """Return the bound of the n-th retry: base_s doubled n-1 times, at most cap_s. Any n is valid."""
    return min(base_s * 2.0 ** (min(max(n, 1), MAX_DOUBLINGS) - 1), cap_s)


def full_jitter_s(n: int, base_s: float, cap_s: float, chance: float) -> float:
    """Return the wait before the n-th retry, uniform between 0 and exponential_s ("full jitter")."""
    return exponential_s(n, base_s, cap_s) * chance


def upward_jitter_s(wait_s: float, chance: float, spread: float = 0.1) -> float:
    """Return the wait plus up to the share `spread` of it. Never less, because Retry-After is a minimum."""
    return wait_s * (1 + spread * chance)
