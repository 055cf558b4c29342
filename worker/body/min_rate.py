"""Whether a body comes too slowly to be waited for. Pure: what came and how long it took are arguments.

Only the time spent waiting for the host counts: a slow disk of ours is not its fault.
"""

from typing import NamedTuple


class Floor(NamedTuple):
    """The least that a body must bring, on average over each window; 0: nothing is asked of it."""

    bytes_per_s: float
    window_s: float


class Window(NamedTuple):
    """What has come in the window that is under way."""

    size_bytes: int = 0
    waited_s: float = 0.0


def after(window: Window, floor: Floor, size_bytes: int, waited_s: float) -> Window | None:
    """The window once so much more came after such a wait; None: too slow, and to be given up."""
    seen = Window(window.size_bytes + size_bytes, window.waited_s + waited_s)
    if seen.waited_s < floor.window_s:
        return seen
    return None if seen.size_bytes < floor.bytes_per_s * seen.waited_s else Window()
