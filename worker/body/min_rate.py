"""Decides whether a body comes too slowly. Pure: bytes and waiting times are arguments.

Only time spent waiting for the host counts, so that a slow disk of the worker is not charged to it.
"""

from typing import NamedTuple


class MinRate(NamedTuple):
    """The least average rate of a body in each window."""

    bytes_per_s: float
    """0: no limit."""
    window_s: float


class RateWindow(NamedTuple):
    """The current window: bytes received, and the time spent waiting for them."""

    size_bytes: int = 0
    waited_s: float = 0.0


def after(window: RateWindow, rate: MinRate, size_bytes: int, waited_s: float) -> RateWindow | None:
    """Return the window after more bytes; None if the body comes too slowly."""
    seen = RateWindow(window.size_bytes + size_bytes, window.waited_s + waited_s)
    if seen.waited_s < rate.window_s:
        return seen
    return None if seen.size_bytes < rate.bytes_per_s * seen.waited_s else RateWindow()
