"""How many fetches are claimed at a time."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.ahead import MOST_ROOMS, Claimed, how_many

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


@pytest.mark.parametrize("pace_per_s", [0.1, 10, 30])
def test_as_many_are_claimed_as_may_run_at_once(pace_per_s: float) -> None:
    """That lasts for a while: who claims more would only keep it from others."""
    assert claims(pace_per_s) == [ROOM] * 20


@pytest.mark.parametrize("pace_per_s", [33, 100, 10_000])
def test_where_they_begin_quickly_twice_as_many_are_claimed(pace_per_s: float) -> None:
    """Once it is known that they do, and for as long as they do; and never more."""
    assert claims(pace_per_s) == [ROOM, *[2 * ROOM] * 19]


def test_a_host_that_has_become_slow_is_claimed_less_for() -> None:
    """As many as may run at once, from the next claim on."""
    assert how_many(Claimed(2 * ROOM, NOW_MS), ROOM, NOW_MS + 1000) == ROOM


def test_a_claim_that_brought_little_is_no_reason_to_claim_more() -> None:
    """Hardly anything waits: how quickly more of it would begin is not known."""
    assert how_many(Claimed(ROOM - 1, NOW_MS), ROOM, NOW_MS) == ROOM


@given(st.integers(0, 10_000), st.integers(-1000, 100_000), st.integers(1, 1000))
def test_as_many_as_may_run_are_always_claimed(brought: int, lasted_ms: int, room: int) -> None:
    """And never more than twice that, whatever the clock says."""
    found = how_many(Claimed(brought, NOW_MS), room, NOW_MS + lasted_ms)

    assert room <= found <= room * MOST_ROOMS
