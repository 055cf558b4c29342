"""Which lanes are handed over when many come due together."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from fetchfleet.jobs.notifications import LaneNotification
from fetchfleet.jobs.scripts.submission import HINTS, hints

WAKES = st.lists(
    st.builds(LaneNotification, st.text(max_size=3), st.integers(1), st.integers(-1, 1)), max_size=4 * HINTS
)


def due_now(wakes: list[LaneNotification]) -> list[LaneNotification]:
    """Those that are due already."""
    return [wake for wake in wakes if wake.due_in_ms <= 0]


@given(WAKES)
def test_a_few_of_those_that_are_due_and_all_that_are_due_later(wakes: list[LaneNotification]) -> None:
    """None is made up, at least one is handed over if any is due, and none is due later unseen."""
    chosen = hints(wakes)

    assert len(due_now(chosen)) == min(HINTS, len(due_now(wakes)))
    assert Counter(chosen) <= Counter(wakes)
    assert len(wakes) - len(chosen) == len(due_now(wakes)) - len(due_now(chosen))
