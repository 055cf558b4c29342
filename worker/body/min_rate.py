"""Decides whether a body arrives too slowly. Pure. Bytes and waiting times are arguments.

Only the time spent waiting for the host counts, so a slow disk of the worker does not count against the host.
"""

from typing import NamedTuple


class MinRate(NamedTuple):
    """The minimum average rate of a body in each window."""

    bytes_per_s: float
    """0 for no limit."""
    window_s: float
    """The waiting time of a window."""


class RateWindow(NamedTuple):
    """The current window."""

    size_bytes: int = 0
    """The bytes received in the window."""
    waited_s: float = 0.0
    """The time spent waiting for them."""


def after(window: RateWindow, rate: MinRate, size_bytes: int, waited_s: float) -> RateWindow | None:
    """Return the window after more bytes, or None if the body arrives too slowly."""
    now = RateWindow(window.size_bytes + size_bytes, window.waited_s + waited_s)
    if now.waited_s < rate.window_s:
        return now
    return None if now.size_bytes < rate.bytes_per_s * now.waited_s else RateWindow()
