"""Notifications about lanes that are due: the data that scripts return and that `notify` enqueues. Pure."""

from collections.abc import Sequence
from typing import NamedTuple

GRACE_MS = 3_000
"""How long after its due time a lane may go without a worker before the sweep schedules it again."""

NEXT_MS = 1_000

HINTS = 16
"""How many of the lanes that come due together are notified of."""


class LaneNotification(NamedTuple):
    """One lane to hand to a worker: under which generation, and in how many ms."""

    lane: str
    generation: int
    due_in_ms: int


def busy_within_ms(lease_ms: int) -> int:
    """Return within how many ms a held or due lane needs attention; a lane that needs it later cools down."""
    return max(lease_ms, GRACE_MS) + NEXT_MS


def hints(notifications: Sequence[LaneNotification]) -> list[LaneNotification]:
    """Return those due later, and HINTS of those due now: a worker that acquires one looks for the others."""
    now = [item for item in notifications if item.due_in_ms <= 0]
    return now[:HINTS] + [item for item in notifications if item.due_in_ms > 0]
