"""The parts of a wait by cause."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from fetchfleet.worker.gate import waits
from fetchfleet.worker.gate.gate import Closed, WaitReason
from fetchfleet.worker.gate.state import ClosedPeriod, GateState
from fetchfleet.worker.gate.waits import JOIN_MS, MAX_PERIODS, QUEUE, RETRY, waited_ms

times = st.integers(0, 300)
reasons = st.sampled_from(WaitReason)
periods = st.lists(st.builds(ClosedPeriod, reasons.map(lambda why: why.value), times, times), max_size=10)
retries = st.lists(st.tuples(times, times), max_size=10)


@given(queue_ms=st.floats(0, 300), submitted_ms=times, closed=periods, retry_waits=retries)
def test_the_parts_of_any_wait_add_up_to_it(
    queue_ms: float, submitted_ms: int, closed: list[ClosedPeriod], retry_waits: list[tuple[int, int]]
) -> None:
    """No part is negative. This holds for any periods that Redis may contain, also for overlapping ones."""
    queue_ms = round(queue_ms, 1)
    waited = waited_ms(queue_ms, submitted_ms, closed, retry_waits)

    assert waited.keys() <= {*WaitReason, RETRY, QUEUE}
    assert all(part >= 0 for part in waited.values())
    assert abs(sum(waited.values()) - queue_ms) < 0.06


@given(data=st.data(), submitted_ms=times, length_ms=times)
def test_each_millisecond_counts_for_the_period_in_which_it_is(
    data: st.DataObject, submitted_ms: int, length_ms: int
) -> None:
    """A closed lane precedes a retry. Milliseconds in neither are those of the queue."""
    edges = data.draw(st.lists(times, unique=True, max_size=8).map(sorted))
    closed = [
        ClosedPeriod(data.draw(reasons).value, from_ms, until_ms)
        for from_ms, until_ms in [*pairwise(edges)][::2]
    ]
    retry_edges = data.draw(st.lists(times, unique=True, max_size=8).map(sorted))
    retry_waits = [*pairwise(retry_edges)][::2]
    expected: dict[str, float] = {QUEUE: 0}
    for ms in range(submitted_ms, submitted_ms + length_ms):
        why = next((period.why for period in closed if period.from_ms <= ms < period.until_ms), None)
        if why is None:
            why = RETRY if any(start <= ms < end for start, end in retry_waits) else QUEUE
        expected[why] = expected.get(why, 0) + 1

    assert waited_ms(length_ms, submitted_ms, closed, retry_waits) == expected


looks = st.lists(
    st.tuples(st.integers(0, 200), st.none() | st.tuples(st.integers(1, 100), reasons)), max_size=40
)


@given(looks)
def test_the_periods_of_any_looks_at_a_lane_are_few_and_in_order(
    steps: list[tuple[int, tuple[int, WaitReason] | None]],
) -> None:
    """Each period ends before the next begins. Only the last one may end in the future."""
    state, now_ms = GateState(), 1000
    for pause_ms, found in steps:
        now_ms += pause_ms
        if found is None:
            state = waits.opened(state, now_ms)
        else:
            state = waits.closed(state, Closed(now_ms + found[0], found[1]), now_ms)
        assert len(state.closed) <= MAX_PERIODS
        assert all(period.from_ms <= period.until_ms for period in state.closed)
        assert all(period.until_ms <= now_ms for period in state.closed[:-1])
        assert all(one.until_ms <= other.from_ms for one, other in pairwise(state.closed))
        if found is None and state.closed:
            assert state.closed[-1].until_ms <= now_ms


def test_paced_starts_are_one_period() -> None:
    """Under a rate limit the lane opens for a moment only. A longer pause begins a new period."""
    state = GateState()
    for start_ms in range(0, 1000, 100):
        state = waits.closed(state, Closed(start_ms + 100, WaitReason.RATE_LIMIT), start_ms + 3)
    [period] = state.closed
    state = waits.closed(state, Closed(2000, WaitReason.RATE_LIMIT), 1000 + JOIN_MS + 1)

    assert (period.from_ms, period.until_ms) == (3, 1000)
    assert len(state.closed) == 2


def test_a_lane_that_opens_early_ends_its_period() -> None:
    """A pause lasts until an operator ends it, and a reset ends a cool-down."""
    paused = waits.closed(GateState(), Closed(600_000, WaitReason.PAUSED), 1000)
    resumed = waits.opened(paused, 5000)

    assert waited_ms(8000.0, 0, resumed.closed, ()) == {"paused": 4000, QUEUE: 4000.0}
    assert waits.opened(resumed, 9000) is resumed
    assert waits.closed(paused, Closed(600_000, WaitReason.PAUSED), 2000) is paused


def test_a_new_reason_begins_a_new_period() -> None:
    """The previous period ends at that time."""
    cooling = waits.closed(GateState(), Closed(9000, WaitReason.COOL_DOWN), 1000)
    both = waits.closed(cooling, Closed(12_000, WaitReason.BREAKER), 4000)

    assert waited_ms(10_000.0, 0, both.closed, [(3000, 9500)]) == {
        "cooling": 3000,
        "breaker": 6000,
        QUEUE: 1000.0,
    }
