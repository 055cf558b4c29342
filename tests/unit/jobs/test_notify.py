"""The lanes that are handed over when many come due together."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from fetchfleet.jobs.notifications import LaneNotification
from fetchfleet.jobs.scripts.submission import (
    MAX_DUE_NOTIFICATIONS,
    WORKERS_LOOK_EVERY_S,
    DueNotifications,
)

WAKES = st.lists(
    st.builds(LaneNotification, st.text(max_size=3), st.integers(1), st.integers(-1, 1)),
    max_size=4 * MAX_DUE_NOTIFICATIONS,
)

MANY = [LaneNotification(f"host-{number}", 1, 0) for number in range(2 * MAX_DUE_NOTIFICATIONS)]


def due_now(wakes: list[LaneNotification]) -> list[LaneNotification]:
    """Return the lanes that are due already."""
    return [wake for wake in wakes if wake.due_in_ms <= 0]


@given(WAKES)
def test_some_due_lanes_and_all_later_lanes_are_handed_over(wakes: list[LaneNotification]) -> None:
    """At least one due lane is handed over if there is one. Every later lane is included."""
    chosen = DueNotifications().chosen(wakes, 0.0)

    assert len(due_now(chosen)) == min(MAX_DUE_NOTIFICATIONS, len(due_now(wakes)))
    assert Counter(chosen) <= Counter(wakes)
    assert len(wakes) - len(chosen) == len(due_now(wakes)) - len(due_now(chosen))


@given(WAKES, st.floats(0, WORKERS_LOOK_EVERY_S, exclude_max=True))
def test_one_due_lane_is_handed_over_soon_after_many(
    wakes: list[LaneNotification], since_many_s: float
) -> None:
    """The workers that many notifications have woken look for the others. Every later lane is included."""
    notifications = DueNotifications()
    notifications.chosen(MANY, 0.0)
    chosen = notifications.chosen(wakes, since_many_s)

    assert len(due_now(chosen)) == min(1, len(due_now(wakes)))
    assert chosen[len(due_now(chosen)) :] == [wake for wake in wakes if wake.due_in_ms > 0]


def test_many_due_lanes_are_handed_over_again_after_the_interval() -> None:
    """A producer may submit one chunk an hour, and all workers are idle then."""
    notifications = DueNotifications()
    notifications.chosen(MANY, 0.0)

    assert notifications.chosen(MANY, WORKERS_LOOK_EVERY_S) == MANY[:MAX_DUE_NOTIFICATIONS]


def test_many_due_lanes_are_handed_over_soon_after_few() -> None:
    """The notification of one lane wakes one worker only."""
    notifications = DueNotifications()

    assert notifications.chosen(MANY[:1], 0.0) == MANY[:1]
    assert notifications.chosen(MANY, 0.0) == MANY[:MAX_DUE_NOTIFICATIONS]
