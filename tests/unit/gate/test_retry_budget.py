"""The retry budget: a failing host gets first requests and few retries."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fetchfleet.worker.gate import retry_budget
from fetchfleet.worker.gate.retry_budget import FLOOR, FLOOR_MS, SHARE
from fetchfleet.worker.gate.state import TRAFFIC_WINDOW_MS, GateState, recent_traffic, request_sent

NOW_MS = 1_700_000_000_000

STEPS = st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 20), st.integers(0, 5)), max_size=40)
"""Steps: the ms since the previous one, the requests sent, and the requests failed."""


def sent(state: GateState, count: int, now_ms: int) -> GateState:
    for _ in range(count):
        state = request_sent(state, now_ms)
    return state


def retries_ms(steps: list[tuple[int, int, int]]) -> tuple[list[tuple[int, int]], float]:
    """Return the time of each request for a retry with its start, and the highest traffic."""
    state, now_ms, most = GateState(), NOW_MS, 0.0
    retries: list[tuple[int, int]] = []
    for pause_ms, requests, failures in steps:
        now_ms += pause_ms
        state = sent(state, requests, now_ms)
        most = max(most, recent_traffic(state, now_ms))
        for _ in range(failures):
            at_ms = retry_budget.retry_not_before_ms(state, now_ms)
            state = retry_budget.retried(state, now_ms)
            retries.append((now_ms, at_ms))
    return retries, most


def test_three_retries_start_at_once_and_the_next_after_its_share_of_the_window() -> None:
    """It holds with any traffic: a third of two seconds each."""
    retries, _ = retries_ms([(0, 0, 6)])

    assert [0, 0, 0, 667, 1333, 2000] == [at_ms - NOW_MS for _, at_ms in retries]


def test_a_busy_lane_may_retry_a_fifth_of_its_traffic() -> None:
    """A thousand requests allow two hundred retries at once, then one every twentieth of a second."""
    retries, _ = retries_ms([(0, 1000, 203)])

    assert [*[0] * 200, 50, 100, 150] == [at_ms - NOW_MS for _, at_ms in retries]


@pytest.mark.parametrize(("later_ms", "traffic"), [(0, 100.0), (10_000, 36.8), (60_000, 0.2), (-5000, 100.0)])
def test_traffic_fades_within_the_window(later_ms: int, traffic: float) -> None:
    """A clock that is set back adds nothing."""
    assert traffic == round(recent_traffic(sent(GateState(), 100, NOW_MS), NOW_MS + later_ms), 1)


@given(STEPS)
def test_no_window_has_more_retries_than_the_budget(steps: list[tuple[int, int, int]]) -> None:
    """A fifth of the highest traffic, at least the floor: at once, and again over the window."""
    retries, most = retries_ms(steps)
    times = sorted(at_ms for _, at_ms in retries)
    share = SHARE * most
    allowed = max(FLOOR, share) + max(FLOOR * TRAFFIC_WINDOW_MS / FLOOR_MS, share)

    for first, from_ms in enumerate(times):
        within = sum(at_ms < from_ms + TRAFFIC_WINDOW_MS for at_ms in times[first:])
        assert within <= math.ceil(allowed)


@given(STEPS.map(lambda steps: [(pause_ms, 0, failures) for pause_ms, _, failures in steps]))
def test_spaced_retries_keep_their_order(steps: list[tuple[int, int, int]]) -> None:
    """The fetch that failed first is retried first."""
    times = [at_ms for _, at_ms in retries_ms(steps)[0]]

    assert sorted(times) == times


@given(STEPS)
def test_no_retry_is_in_the_past(steps: list[tuple[int, int, int]]) -> None:
    """No retry is later than its turn either."""
    retries, _ = retries_ms(steps)
    longest_ms = FLOOR_MS / FLOOR * (len(retries) + 1)

    assert all(asked_ms <= at_ms <= asked_ms + longest_ms for asked_ms, at_ms in retries)


def test_a_retry_with_a_longer_back_off_delays_no_other() -> None:
    """Its place in the budget is that of its request."""
    state = retry_budget.retried(GateState(), NOW_MS)

    assert NOW_MS == retry_budget.retry_not_before_ms(state, NOW_MS)
