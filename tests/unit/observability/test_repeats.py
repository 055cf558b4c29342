"""The repetition of log lines of a lasting condition, and the end of a disturbance."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fetchfleet.worker.observability.repeats import (
    EVERY_S,
    MAX_CONDITIONS,
    MAX_RECOVERY_S,
    RECOVERY_S,
    EndedTrouble,
    Repeats,
    Trouble,
)

STEPS = st.lists(st.tuples(st.integers(0, 9000), st.integers(0, 5)), max_size=200)


@given(STEPS)
def test_each_condition_is_logged_at_once_then_once_a_minute_and_nothing_is_lost(
    steps: list[tuple[int, int]],
) -> None:
    """The counts of the lines add up to the number of reports."""
    repeats, now_s = Repeats(), 0.0
    reports: dict[int, int] = {}
    lines: dict[int, list[float]] = {}
    counted: dict[int, int] = {}
    for wait_ms, condition in steps:
        now_s += wait_ms / 1000
        reports[condition] = reports.get(condition, 0) + 1
        left_out = repeats.admit(condition, now_s)
        if left_out is not None:
            lines.setdefault(condition, []).append(now_s)
            counted[condition] = counted.get(condition, 0) + 1 + left_out
    final = {condition: repeats.admit(condition, now_s + 2 * EVERY_S) for condition in reports}

    assert lines.keys() == reports.keys()
    for at in lines.values():
        assert all(later - earlier >= EVERY_S for earlier, later in itertools.pairwise(at))
    assert {condition: counted[condition] + (final[condition] or 0) for condition in reports} == reports


def test_a_flood_of_different_conditions_is_bounded() -> None:
    """Those above the bound count as one. The bound is free again later."""
    repeats = Repeats()
    written = [place for place in range(3 * MAX_CONDITIONS) if repeats.admit(place, 0.0) is not None]

    assert len(written) == MAX_CONDITIONS + 1
    assert repeats.admit("another", 1.0) is None
    assert repeats.admit("another", EVERY_S) == 0


def test_a_returning_condition_is_logged_at_once() -> None:
    """Its line has no count of the earlier occurrence."""
    repeats = Repeats()
    repeats.admit("down", 0.0)
    repeats.admit("down", 1.0)
    repeats.forget()

    assert repeats.admit("down", 2.0) == 0


def test_a_trouble_lasts_from_its_first_failure_to_the_first_success_after_the_last() -> None:
    """It ends once no failure has occurred for some time."""
    trouble = Trouble()
    for at_s in (10.0, 11.0, 12.0):
        trouble.failed(at_s)
    early = [trouble.succeeded(at_s) for at_s in (13.0, 14.0, 13.0 + RECOVERY_S - 0.1)]
    ended = trouble.succeeded(13.0 + RECOVERY_S)

    assert early == [None] * 3
    assert ended == EndedTrouble(lasted_s=3.0, failed=3)
    assert trouble.succeeded(20.0) is None


def test_a_success_between_failures_does_not_end_the_trouble() -> None:
    """One loop may succeed while another fails."""
    trouble = Trouble()
    ended = []
    for second in range(100):
        trouble.failed(float(second))
        ended.append(trouble.succeeded(second + 0.5))
    last = [trouble.succeeded(float(second)) for second in range(100, 110)]

    assert set(ended) == {None}
    assert [found for found in last if found] == [EndedTrouble(lasted_s=99.5, failed=100)]


@pytest.mark.parametrize("period_s", [1, 7, 15, 30])
def test_intermittent_trouble_is_logged_less_and_less_often(period_s: int) -> None:
    """Redis is away half of each period. An hour of that has few beginnings and ends."""
    trouble = Trouble()
    ends = 0
    for tick in range(36_000):
        now_s = tick / 10
        if now_s % period_s < period_s / 2:
            trouble.failed(now_s)
        elif trouble.succeeded(now_s):
            ends += 1

    assert ends <= 5


def test_troubles_that_are_far_apart_each_end_soon() -> None:
    """The required calm time is short again."""
    trouble = Trouble()
    for start_s in (0.0, 1.0 + RECOVERY_S + MAX_RECOVERY_S, 1000.0):
        trouble.failed(start_s)
        trouble.succeeded(start_s + 1)
        assert trouble.succeeded(start_s + 1 + RECOVERY_S) == EndedTrouble(lasted_s=1.0, failed=1)
