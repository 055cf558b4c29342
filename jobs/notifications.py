"""Notifications of due lanes, which scripts return and `notify` enqueues. Pure."""

from typing import NamedTuple

GRACE_MS = 3_000
"""Time after its due time until the sweep reschedules a lane that no worker has acquired."""


class LaneNotification(NamedTuple):
    """A lane that is or becomes due."""

    lane: str
    generation: int
    """Number of this notification of the lane; workers ignore an old one."""
    due_in_ms: int
    """Time until it is due; 0: now."""
