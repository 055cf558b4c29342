"""The grant of a lane: how many fetches may be in flight, whatever the time, until something changes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from fetchfleet.worker.gate.gate import (
    ADMIT,
    SATURATED,
    HostSignal,
    Observation,
    admit,
    attempt_ended,
    blocked_until_ms,
    closed_until,
    count_granted,
    grant,
    started,
)
from fetchfleet.worker.gate.state import Breaker, GateState, RecordedAttempt
from fetchfleet.worker.policy.model import LanePolicy, Range

MOMENTS_MS = st.integers(0, 2**41)
STATES = st.builds(
    GateState,
    breaker=st.sampled_from(Breaker),
    failures=st.integers(0, 2),
    nameless=st.booleans(),
    open_until_ms=MOMENTS_MS,
    cool_until_ms=st.just(0) | MOMENTS_MS,
    quota_until_ms=st.just(0) | MOMENTS_MS,
    robots_until_ms=MOMENTS_MS,
    crawl_delay_s=st.floats(0, 10),
    paced_ms=st.floats(0, 2**41),
    traffic=st.floats(0, 1000),
)
POLICIES = st.sampled_from(
    [
        *(LanePolicy(concurrency=2), LanePolicy(concurrency=Range(min=1, max=9)), LanePolicy(rate_per_s=5)),
        *(LanePolicy(robots="obey"), LanePolicy(paused=True), LanePolicy(quota=False)),
    ]
)
STEPS = st.lists(st.tuples(st.booleans(), st.integers(0, 30_000)), max_size=12)


@given(state=STATES, policy=POLICIES, in_flight=st.integers(0, 10), now_ms=MOMENTS_MS)
def test_a_grant_equals_the_verdict_of_the_gate_at_any_time(
    state: GateState, policy: LanePolicy, in_flight: int, now_ms: int
) -> None:
    """Under a grant neither the time nor a start closes the lane."""
    if granted := grant(state, policy):
        for asked in (state, started(state, policy, now_ms)):
            assert admit(asked, policy, in_flight, now_ms) is (ADMIT if in_flight < granted else SATURATED)
            assert closed_until(asked, policy, now_ms) is None
            assert not blocked_until_ms(asked, policy, now_ms)


@given(state=STATES, policy=POLICIES, steps=STEPS)
def test_events_under_a_grant_may_be_counted_later(
    state: GateState, policy: LanePolicy, steps: list[tuple[bool, int]]
) -> None:
    """Requests and good responses change no grant. Counted together they give the same state."""
    if granted := grant(state, policy):
        now_ms, one_by_one, starts, answers = 2**41, state, [], []
        for is_start, later_ms in steps:
            now_ms += later_ms
            if is_start:
                starts.append(now_ms)
                one_by_one = started(one_by_one, policy, now_ms)
            else:
                answers.append(RecordedAttempt(now_ms, "200"))
                seen = Observation(HostSignal.ANSWERED, now_ms - 9, 2, 9.0, "200", fetch_id="a")
                one_by_one = attempt_ended(one_by_one, policy, seen, now_ms, 0.5)
            assert granted == grant(one_by_one, policy)
        together = count_granted(state, starts, answers)

        assert together.traffic == pytest.approx(one_by_one.traffic)
        assert replace(together, traffic=0) == replace(one_by_one, traffic=0)


@pytest.mark.parametrize(
    ("state", "policy", "expected"),
    [
        (GateState(), LanePolicy(concurrency=3), 3),
        (GateState(traffic=5.0, retry_ms=7.0), LanePolicy(), 8),
        (GateState(failures=1), LanePolicy(), 0),
        (GateState(breaker=Breaker.HALF_OPEN), LanePolicy(), 0),
        (GateState(cool_until_ms=1), LanePolicy(), 0),
        (GateState(), LanePolicy(rate_per_s=1000), 0),
        (GateState(), LanePolicy(concurrency=Range(min=8, max=8)), 0),
        (GateState(), LanePolicy(paused=True), 0),
    ],
)
def test_only_a_lane_without_limits_of_time_has_a_grant(
    state: GateState, policy: LanePolicy, expected: int
) -> None:
    """After a failure, in a cool-down, under a rate or with an adaptive limit the gate decides."""
    assert expected == grant(state, policy)
