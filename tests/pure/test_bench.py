"""What the bench makes of its runs."""

from hypothesis import given
from hypothesis import strategies as st

from scripts.measure.figures import MB, Run, of_bodies, with_ratios


def test_the_figure_is_the_median_and_the_peak_the_largest() -> None:
    """One slow round does not count, one large one does; a program is all its processes."""
    runs = [Run(2.0, [3 * MB]), Run(4.0, [5 * MB, 2 * MB]), Run(90.0, [6 * MB])]

    assert {"mb_per_s": 25.0, "peak_rss_mb": 7.0, "largest_rss_mb": 6.0} == of_bodies(runs, 100 * MB)


@given(st.floats(1, 1e4), st.floats(1, 1e4))
def test_a_ratio_says_how_often_the_first_did_what_the_other_did(own: float, other: float) -> None:
    """And stands beside the other's figure only."""
    found = with_ratios({"a": {"per_s": own}, "b": {"per_s": other}}, "a", "per_s")

    assert {"per_s": own} == found["a"]
    assert round(own / other, 2) == found["b"]["a_is_times"]
