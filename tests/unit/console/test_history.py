"""The small charts of the front page."""

from hypothesis import given
from hypothesis import strategies as st

from fetchfleet.worker.console.pages.history import HEIGHT, MAX_GAP_MS, WIDTH, ChartLines, History, Sample


def history_of(*at_ms: int) -> History:
    """Return a history with samples at these times."""
    history = History()
    for at in at_ms:
        history.add(Sample(at, 10.0, 1000.0, 5))
    return history


@given(st.lists(st.integers(0, 400_000), max_size=60), st.integers(0, 500_000))
def test_points_lie_in_the_chart(times: list[int], now_ms: int) -> None:
    """Whatever the times are, and in whatever order they come."""
    points = history_of(*times).lines(now_ms).backlog.split()
    pairs = [tuple(map(float, point.split(","))) for point in points]

    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in pairs)
    assert pairs == sorted(pairs, key=lambda pair: pair[0])


def test_a_line_ends_at_a_gap_between_samples() -> None:
    """No line crosses a time without samples."""
    late_ms = 10_000 + 2 * MAX_GAP_MS
    history = history_of(2000, 4000, 6000, 8000, late_ms, late_ms + 2000)

    assert ChartLines() == history.lines(late_ms + 2000)  # a line needs three samples


def test_samples_of_one_moment_count_once() -> None:
    """Several viewers ask at the same time."""
    history = history_of(1000, 1000, 1500, 3000, 5000)

    assert 3 == len(history.lines(5000).finished.split())


def test_a_clock_that_went_back_begins_a_new_line() -> None:
    """Redis may be replaced by one whose clock is behind."""
    history = history_of(100_000, 102_000, 104_000, 1000)

    assert ChartLines() == history.lines(1000)
