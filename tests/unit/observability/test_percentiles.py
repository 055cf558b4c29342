"""What stands for many figures."""

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fetchfleet.worker.observability.percentiles import MOST, Recent, percentile

figures = st.lists(st.floats(0, 1e6), min_size=1, max_size=200).map(sorted)
shares = st.floats(0, 1)


@pytest.mark.parametrize(
    ("ordered", "share", "expected"),
    [
        ([], 0.5, None),
        ([7], 0, 7),
        ([7], 1, 7),
        ([1, 2], 0.5, 1),
        ([1, 2, 3], 0.5, 2),
        (range(1, 101), 0.5, 50),
        (range(1, 101), 0.99, 99),
        (range(1, 102), 0.99, 100),
        (range(1, 101), 1, 100),
    ],
)
def test_a_percentile_is_by_nearest_rank(ordered: list[float], share: float, expected: float | None) -> None:
    """Always a figure that was measured."""
    assert expected == percentile(ordered, share)


@given(figures, shares)
def test_enough_figures_do_not_exceed_it_and_too_few_are_below_it(ordered: list[float], share: float) -> None:
    """Which is what a percentile says."""
    found = percentile(ordered, share)

    assert found in ordered
    assert sum(figure <= found for figure in ordered) >= share * len(ordered)
    assert sum(figure < found for figure in ordered) <= share * len(ordered)


@given(figures, shares, shares)
def test_a_larger_share_has_no_smaller_percentile(ordered: list[float], one: float, other: float) -> None:
    """From the least of them to the greatest."""
    low, high = (percentile(ordered, share) for share in sorted((one, other)))

    assert ordered[0] <= (low or 0) <= (high or 0) <= ordered[-1]


@given(figures)
def test_the_half_is_the_low_median(ordered: list[float]) -> None:
    """By somebody else's code."""
    assert statistics.median_low(ordered) == percentile(ordered, 0.5)


@given(st.lists(st.floats(0, 1), max_size=50))
def test_what_was_taken_is_in_order_and_taken_once(added: list[float]) -> None:
    """Each interval has its own figures."""
    recent = Recent()
    for figure in added:
        recent.add(figure)

    assert sorted(added) == recent.taken()
    assert [] == recent.taken()


def test_of_too_many_the_last_stand_for_all() -> None:
    """However fast they come, memory is bounded."""
    recent = Recent()
    for figure in range(3 * MOST):
        recent.add(figure)

    assert list(range(2 * MOST, 3 * MOST)) == recent.taken()
