"""How many fetches are claimed at a time."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.ahead import AHEAD_MS, MOST_ROOMS, Claimed, how_many

ROOM = 8
NOW_MS = 1_700_000_000_000


def claims(pace_per_s: float, waiting: int = 1_000_000) -> list[int]:
    """What each of twenty claims brings while fetches begin at that pace."""
    last, now_ms, brought = Claimed(), float(NOW_MS), []
    for _ in range(20):
        count = min(how_many(last, ROOM, int(now_ms)), waiting)
        last = Claimed(count, int(now_ms))
        brought.append(count)
        now_ms += count / pace_per_s * 1000
    return brought


def test_at_first_as_many_are_claimed_as_may_run_at_once() -> None:
    """Nothing is known yet of how quickly they begin."""
    assert how_many(Claimed(), ROOM, NOW_MS) == ROOM


@pytest.mark.parametrize(
    ("pace_per_s", "most"), [(0.1, ROOM), (10, ROOM), (16, ROOM), (32, 16), (75, 32), (10_000, 64)]
)
def test_the_quicker_they_begin_the_more_are_claimed(pace_per_s: float, most: int) -> None:
    """As many as begin in half a second, and never more than some rooms full."""
    assert max(claims(pace_per_s)) == most


def test_a_host_that_has_become_slow_is_claimed_less_for() -> None:
    """Half as many each time, down to what may run at once."""
    last = Claimed(64, NOW_MS)
    assert how_many(last, ROOM, NOW_MS + AHEAD_MS + 1) == 32
    assert how_many(Claimed(9, NOW_MS), ROOM, NOW_MS + AHEAD_MS + 1) == ROOM


def test_a_claim_that_brought_little_is_no_reason_to_claim_more() -> None:
    """Hardly anything waits: when much comes at once, nobody has asked for all of it."""
    assert claims(10_000, waiting=1) == [1] * 20


@given(st.integers(0, 10_000), st.integers(-1000, 100_000), st.integers(1, 1000))
def test_as_many_as_may_run_are_always_claimed(count: int, lasted_ms: int, room: int) -> None:
    """And never more than so many times that, whatever the clock says."""
    found = how_many(Claimed(count, NOW_MS), room, NOW_MS + lasted_ms)

    assert room <= found <= room * MOST_ROOMS
