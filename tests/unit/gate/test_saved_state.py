"""The saved state of a gate: the lane continues with any value in Redis."""

from typing import Any

import msgspec
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fetchfleet.worker.gate import concurrency, gate
from fetchfleet.worker.gate.gate import HostSignal, Observation, WaitReason
from fetchfleet.worker.gate.quota import Quota
from fetchfleet.worker.gate.saved_state import bounded
from fetchfleet.worker.gate.state import MAX_SAVED_BYTES, Breaker, GateState, Limit, from_json, to_json
from fetchfleet.worker.inspect.explain import lane_state, local_time
from fetchfleet.worker.inspect.snapshot import LaneSnapshot
from fetchfleet.worker.policy.model import LanePolicy, Range

NOW_MS = 1_700_000_000_000
FRESH = GateState()
LONGEST_MS = 24 * 3600 * 1100 + 1
"""A day, the longest wait of any policy, with its jitter."""

POLICIES = st.sampled_from(
    [
        LanePolicy(),
        LanePolicy(rate_per_s=0.5, burst=3, robots="obey"),
        LanePolicy(concurrency=Range(), throttle_cap_s=86_400, breaker_failures=1),
    ]
)
INTS = st.sampled_from([-(2**63), -1, 0, 1, NOW_MS, NOW_MS + 10**12, 2**53, 2**63 - 1]) | st.integers(
    -(2**63), 2**63 - 1
)
FLOATS = st.sampled_from([-1e308, -1.0, -0.0, 5e-324, 1e300, 1e308]) | st.floats(
    allow_nan=False, allow_infinity=False
)
ANY = st.recursive(INTS | FLOATS | st.text(max_size=50) | st.booleans() | st.none(), st.lists, max_leaves=8)


def fields_of(
    kind: type[msgspec.Struct], **others: st.SearchStrategy[Any]
) -> st.SearchStrategy[dict[str, Any]]:
    """Return JSON objects with any numbers in the fields of a struct."""
    numbers = {
        field.name: INTS if field.type is int else FLOATS
        for field in msgspec.structs.fields(kind)
        if field.type in {int, float}
    }
    return st.fixed_dictionaries({}, optional={**numbers, **others})


SAVED = fields_of(
    GateState,
    breaker=st.sampled_from([*Breaker]),
    failed=st.lists(INTS, max_size=3),
    nameless=st.booleans(),
    last_failure=st.text(max_size=300),
    limit=fields_of(Limit),
    answers=st.lists(st.tuples(INTS, st.text(max_size=50)), max_size=7),
    closed=st.lists(st.tuples(st.sampled_from([*WaitReason, "bored"]), INTS, INTS), max_size=12),
)


def worked(state: GateState, policy: LanePolicy) -> GateState:
    """Return the state after every possible event."""
    for signal in HostSignal:
        seen = Observation(signal, NOW_MS, 3, 5.0, "200", throttle=False, fetch_id="x")
        state = gate.attempt_ended(gate.started(state, policy, NOW_MS), policy, seen, NOW_MS, 0.5)
    state = gate.quota_received(state, Quota(5, 60.0), 1, NOW_MS)
    state = gate.robots_unavailable(state, policy, NOW_MS, 0.5, 30.0)
    state = gate.crawl_delay_received(state, 10.0, NOW_MS)
    return gate.throttled(state, policy, None, NOW_MS, 0.5)


@settings(max_examples=60)
@given(SAVED, POLICIES)
@example({"paced_ms": 1e303, "limit": {"felt": -1, "now": 1e300}}, LanePolicy(rate_per_s=1.0))
@example({"breaker": "open", "down_since_ms": -1, "failures": -5, "opens": 2**63 - 1}, LanePolicy())
def test_with_any_saved_state_the_lane_opens_in_time(saved: dict[str, Any], policy: LanePolicy) -> None:
    """No wait exceeds those that the policy allows, and the next saved state can be read."""
    state = bounded(from_json(msgspec.json.encode(saved)), policy, NOW_MS)
    closed = gate.closed_until(state, policy, NOW_MS)
    lane = LaneSnapshot("a.example", 0, 1, "", 0.0)
    _, until_ms, why = lane_state(lane, state, policy, NOW_MS, retry_ms=None, has_workers=True)
    after = worked(state, policy)

    assert closed is None or closed.until_ms <= NOW_MS + LONGEST_MS
    assert why
    assert until_ms is None or local_time(until_ms)
    assert len(state.last_failure) <= gate.MAX_FAILURE_CHARS
    assert not gate.is_dead(state, policy, NOW_MS) or saved["down_since_ms"] > 0
    assert from_json(to_json(after)) == after


@settings(max_examples=60)
@given(st.dictionaries(st.sampled_from([*GateState.__struct_fields__, "x"]), ANY) | ANY | st.binary())
def test_garbage_yields_a_fresh_or_a_bounded_state(saved: Any) -> None:
    """Another program may have written it."""
    text = saved if isinstance(saved, bytes) else msgspec.json.encode(saved)
    state = bounded(from_json(text), LanePolicy(), NOW_MS)

    assert from_json(to_json(worked(state, LanePolicy()))) != FRESH


def test_an_oversized_state_becomes_a_fresh_one() -> None:
    """No saved state is that large."""
    text = b'{"nameless":true' + b" " * MAX_SAVED_BYTES + b"}"

    assert from_json(text) == FRESH


@given(
    POLICIES,
    st.lists(
        st.tuples(st.sampled_from([*HostSignal]), st.integers(0, 60_000), st.sampled_from("abc")), max_size=30
    ),
)
def test_a_valid_state_is_read_unchanged(
    policy: LanePolicy, events: list[tuple[HostSignal, int, str]]
) -> None:
    """A lane that moves to another worker loses nothing."""
    state, now_ms = FRESH, NOW_MS
    for signal, later_ms, fetch_id in events:
        now_ms += later_ms
        if gate.closed_until(state, policy, now_ms) is None:
            state = gate.started(state, policy, now_ms)
        seen = Observation(signal, now_ms, 1, 5.0, "read", fetch_id=fetch_id, note=200 * fetch_id)
        state = gate.attempt_ended(state, policy, seen, now_ms, 0.99)
        if signal is HostSignal.REFUSED:
            state = gate.throttled(state, policy, 10.0 if fetch_id == "a" else None, now_ms, 0.99)

    assert bounded(from_json(to_json(state)), policy, now_ms) == state
    assert to_json(bounded(state, policy, now_ms)) == to_json(state)


def test_a_higher_rate_ends_the_wait_of_a_lower_one() -> None:
    """The pace after now is that of the current policy."""
    state = FRESH
    for _ in range(3):
        state = gate.started(state, LanePolicy(rate_per_s=0.001), NOW_MS)
    closed = gate.closed_until(state, LanePolicy(rate_per_s=10.0), NOW_MS)

    assert closed is not None
    assert closed.until_ms == NOW_MS + 100
    assert concurrency.allowed(state.limit, Range()) == concurrency.START_LIMIT
