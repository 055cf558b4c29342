"""The state of a held lane: events under its grant, and the size of its claims."""

import pytest

from fetchfleet.worker.gate.state import Breaker, GateState, RecordedAttempt
from fetchfleet.worker.lanes.lane import Lane, claim_size
from fetchfleet.worker.policy.model import LanePolicy
from fetchfleet.worker.util.clock import RedisClock

NOW_MS = 1_700_000_000_000


def held(state: GateState | None = None) -> Lane:
    clock = RedisClock()
    clock.sync(NOW_MS)
    return Lane("a.test", 1, LanePolicy(concurrency=2), state or GateState(), clock)


async def test_events_under_a_grant_are_part_of_the_gate() -> None:
    """The gate counts as unsaved until its state is taken for saving."""
    lane = held()
    assert lane.gate_is_saved

    lane.count_start(NOW_MS)
    lane.count_answer(200, NOW_MS + 5)

    assert not lane.gate_is_saved
    lane.gate_to_save()
    assert lane.gate_is_saved
    assert (1.0, NOW_MS) == (lane.gate.traffic, lane.gate.traffic_ms)
    assert (RecordedAttempt(NOW_MS + 5, "200"),) == lane.gate.answers


async def test_a_change_of_the_gate_or_of_the_policy_changes_the_grant() -> None:
    """Events before the change are counted in the next state."""
    lane = held()
    assert 2 == lane.grant

    lane.count_start(NOW_MS)
    lane.gate = GateState(breaker=Breaker.HALF_OPEN)
    assert (0, 1.0) == (lane.grant, lane.gate.traffic)
    lane.gate = GateState()
    lane.change_policy(LanePolicy(concurrency=5))
    assert 5 == lane.grant
    lane.change_policy(LanePolicy(rate_per_s=1))
    assert 0 == lane.grant


@pytest.mark.parametrize(
    ("before", "lasted_s", "expected"),
    [
        (0, 100.0, 8),
        (8, 10.0, 8),
        (8, 1.0, 8),
        (8, 0.5, 16),
        (16, 0.5, 32),
        (32, 0.001, 32),
        (8, 0.0, 8),
    ],
)
def test_a_quick_host_gets_claims_of_several_rounds(before: int, lasted_s: float, expected: int) -> None:
    """A claim is sized for a second: one round at least, four at most."""
    assert expected == claim_size(8, before, lasted_s)
