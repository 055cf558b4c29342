"""The lanes that are handed over when many come due together."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from fetchfleet.jobs.notifications import LaneNotification
from fetchfleet.jobs.scripts.submission import MAX_DUE_NOTIFICATIONS, limit_due

WAKES = st.lists(
    st.builds(LaneNotification, st.text(max_size=3), st.integers(1), st.integers(-1, 1)),
    max_size=4 * MAX_DUE_NOTIFICATIONS,
)


def due_now(wakes: list[LaneNotification]) -> list[LaneNotification]:
    """Return the lanes that are due already."""
    return [wake for wake in wakes if wake.due_in_ms <= 0]


@given(WAKES)
def test_some_due_lanes_and_all_later_lanes_are_handed_over(wakes: list[LaneNotification]) -> None:
    """At least one due lane is handed over if there is one. Every later lane is included."""
    chosen = limit_due(wakes)

    assert len(due_now(chosen)) == min(MAX_DUE_NOTIFICATIONS, len(due_now(wakes)))
    assert Counter(chosen) <= Counter(wakes)
    assert len(wakes) - len(chosen) == len(due_now(wakes)) - len(due_now(chosen))
