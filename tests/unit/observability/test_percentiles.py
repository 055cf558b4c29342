"""Percentiles of measurements."""

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fetchfleet.worker.observability.percentiles import MAX_SAMPLES, Recent, percentile

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
    """The result is one of the measurements."""
    assert expected == percentile(ordered, share)


@given(figures, shares)
def test_a_percentile_has_the_defining_share_of_measurements_below_it(
    ordered: list[float], share: float
) -> None:
    """The percentile is one of the measurements, by the definition of the nearest rank."""
    found = percentile(ordered, share)

    assert found in ordered
    assert sum(figure <= found for figure in ordered) >= share * len(ordered)
    assert sum(figure < found for figure in ordered) <= share * len(ordered)


@given(figures, shares, shares)
def test_a_larger_share_has_no_smaller_percentile(ordered: list[float], one: float, other: float) -> None:
    """Every percentile lies between the smallest and the largest measurement."""
    low, high = (percentile(ordered, share) for share in sorted((one, other)))

    assert ordered[0] <= (low or 0) <= (high or 0) <= ordered[-1]


@given(figures)
def test_the_half_is_the_low_median(ordered: list[float]) -> None:
    """Compared with `statistics.median_low`."""
    assert statistics.median_low(ordered) == percentile(ordered, 0.5)


@given(st.lists(st.floats(0, 1), max_size=50))
def test_measurements_are_returned_in_order_and_once(added: list[float]) -> None:
    """Each interval has its own measurements."""
    recent = Recent()
    for figure in added:
        recent.add(figure)

    assert sorted(added) == recent.pop_sorted()
    assert [] == recent.pop_sorted()


def test_the_last_measurements_are_kept() -> None:
    """Memory is bounded at any rate."""
    recent = Recent()
    for figure in range(3 * MAX_SAMPLES):
        recent.add(figure)

    assert list(range(2 * MAX_SAMPLES, 3 * MAX_SAMPLES)) == recent.pop_sorted()
