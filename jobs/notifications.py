"""Notifications about lanes that are due: the data that scripts return and that `notify` enqueues. Pure."""

from typing import NamedTuple

GRACE_MS = 3_000
"""How long after its due time a lane may go without a worker before the sweep schedules it again."""


class LaneNotification(NamedTuple):
    """One lane to hand to a worker: under which generation, and in how many ms."""

    lane: str
    generation: int
    due_in_ms: int
