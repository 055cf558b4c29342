"""The part of a host's state that an operator's reset clears, and the part that it keeps."""

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import fields, replace

from fetchfleet.worker.gate import gate
from fetchfleet.worker.gate.state import Breaker, GateState, Limit, RecordedAttempt, reset, resettable
from fetchfleet.worker.policy.model import LanePolicy, Range

NOW_MS = 1_000_000
LATER_MS = NOW_MS + 60_000
TIMES = st.sampled_from([0, NOW_MS - 1, NOW_MS, LATER_MS])

STATES = st.builds(
    GateState,
    cool_until_ms=TIMES,
    paced_ms=TIMES.map(float),
    incidents=st.integers(0, 9),
    quota_until_ms=TIMES,
    quota_left=st.integers(0, 3),
    quota_interval_ms=st.sampled_from([0.0, 5000.0]),
    breaker=st.sampled_from(Breaker),
    failures=st.integers(0, 9),
    open_until_ms=TIMES,
    opens=st.integers(0, 9),
    down_since_ms=st.sampled_from([0, 1]),
    nameless=st.booleans(),
    robots_until_ms=TIMES,
    crawl_delay_s=st.sampled_from([0.0, 10.0]),
    traffic=st.sampled_from([0.0, 50.0]),
    traffic_ms=TIMES,
    retry_ms=TIMES.map(float),
    limit=st.sampled_from([Limit(), Limit(now=1.0, ceiling=2, hold_until_ms=LATER_MS)]),
    answers=st.sampled_from([(), (RecordedAttempt(1, "503"),)]),
)
POLICIES = st.builds(
    LanePolicy,
    robots=st.sampled_from(["ignore", "obey"]),
    concurrency=st.sampled_from([8, Range()]),
    rate_per_s=st.sampled_from([0.0, 2.0]),
)


@given(STATES, POLICIES)
def test_after_a_reset_only_the_policy_makes_a_host_wait(state: GateState, policy: LanePolicy) -> None:
    """Rate and crawl delay still apply. The host counts as alive, with a fresh concurrency."""
    after = reset(state)
    closed = gate.closed_until(after, policy, NOW_MS)

    assert closed is None or closed.why is gate.WaitReason.RATE_LIMIT
    assert not gate.is_dead(after, policy, NOW_MS + 10**9)
    assert gate.max_in_flight(GateState(), policy) == gate.max_in_flight(after, policy)
    assert (state.paced_ms, state.crawl_delay_s, state.answers) == (
        after.paced_ms,
        after.crawl_delay_s,
        after.answers,
    )
    assert [] == resettable(after, NOW_MS)
    assert after == reset(after)


@given(STATES, POLICIES)
def test_each_wait_that_a_reset_ends_has_a_name(state: GateState, policy: LanePolicy) -> None:
    """Each reason that comes from the host has its name."""
    names = {
        gate.WaitReason.COOL_DOWN: "cool_down",
        gate.WaitReason.BREAKER: "breaker",
        gate.WaitReason.QUOTA: "quota",
        gate.WaitReason.ROBOTS: "robots",
    }
    closed = gate.closed_until(state, policy, NOW_MS)
    if closed is not None and closed.why in names:
        assert names[closed.why] in resettable(state, NOW_MS)
    assert [] == resettable(GateState(), NOW_MS)


def test_the_fields_that_a_reset_keeps_are_a_closed_list() -> None:
    """A new field of the state is reset unless it is added here and to the function."""
    kept = {"paced_ms", "crawl_delay_s", "traffic", "traffic_ms", "retry_ms", "answers"}
    full = GateState(breaker=Breaker.OPEN, limit=Limit(now=2.0), answers=(RecordedAttempt(1, "x"),))
    numbers = [field for field in fields(GateState) if field.type in {int, float, bool}]
    full = replace(full, **{field.name: field.type(1) for field in numbers})
    after = reset(full)

    for field in fields(GateState):
        before, now = getattr(full, field.name), getattr(after, field.name)
        assert now == (before if field.name in kept else field.default), field.name
