"""The minimum rate of a body."""

from hypothesis import given
from hypothesis import strategies as st

from fetchfleet.worker.body.min_rate import MinRate, RateWindow, after

RATE = MinRate(bytes_per_s=100, window_s=10)
PIECES = st.lists(st.tuples(st.integers(0, 5000), st.floats(0, 20)), max_size=50)


def window_after(rate: MinRate, pieces: list[tuple[int, float]]) -> RateWindow | None:
    """Return the last window, None if the body was given up."""
    window: RateWindow | None = RateWindow()
    for size_bytes, waited_s in pieces:
        if window is None:
            break
        window = after(window, rate, size_bytes, waited_s)
    return window


def test_no_verdict_precedes_the_end_of_a_window() -> None:
    """A host may start slowly."""
    assert RateWindow(0, 9.5) == window_after(RATE, [(0, 9.5)])


def test_a_fast_window_is_followed_by_another() -> None:
    """Earlier speed does not count later."""
    assert RateWindow() == window_after(RATE, [(900, 5), (100, 5)])
    assert window_after(RATE, [(1_000_000, 10), (999, 10)]) is None


def test_a_long_wait_requires_more_bytes() -> None:
    """The rate counts, even if a piece arrives long after the end of its window."""
    assert window_after(RATE, [(1500, 15)]) == RateWindow()
    assert window_after(RATE, [(1499, 15)]) is None


@given(PIECES)
def test_without_a_floor_no_body_is_too_slow(pieces: list[tuple[int, float]]) -> None:
    """0 disables the check."""
    assert window_after(MinRate(0, 10), pieces) is not None


@given(PIECES.filter(bool), st.floats(0.1, 1000), st.floats(0.01, 100))
def test_a_body_above_the_floor_is_not_given_up(
    pieces: list[tuple[int, float]], bytes_per_s: float, window_s: float
) -> None:
    """It holds for any pieces."""
    enough = [(int(bytes_per_s * waited_s) + 1, waited_s) for _, waited_s in pieces]

    assert window_after(MinRate(bytes_per_s, window_s), enough) is not None


@given(PIECES, st.floats(0.1, 1000), st.floats(0.01, 100))
def test_a_body_that_trickles_for_two_windows_is_given_up(
    pieces: list[tuple[int, float]], bytes_per_s: float, window_s: float
) -> None:
    """It holds at any position of the slow part in a window."""
    trickle = [(0, window_s / 4)] * 9

    assert window_after(MinRate(bytes_per_s, window_s), pieces + trickle) is None
