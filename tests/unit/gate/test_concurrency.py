"""Adaptive concurrency: the limit of a host is found, kept, and found again."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from fetchfleet.worker.gate import concurrency
from fetchfleet.worker.gate.state import Limit
from fetchfleet.worker.policy.model import LanePolicy, Range
from tests.support.host_model import HostModel, Simulation, Times

NOW_MS = 1_700_000_000_000
WITHIN = Range(min=2, max=20)
POLICY = LanePolicy(concurrency=Range(min=1, max=64))
USED = 1000
"""More in flight than any limit: it is really used."""

RANGES = st.integers(1, 100).flatmap(
    lambda low: st.builds(Range, min=st.just(low), max=st.integers(low, 200))
)
LIMITS = st.builds(
    Limit,
    now=st.floats(0, 300),
    ceiling=st.integers(0, 300),
    hold_until_ms=st.integers(0, 2 * NOW_MS),
    hold_s=st.floats(0, 600),
    probes_left=st.integers(0, 600),
    cut_ms=st.integers(0, 2 * NOW_MS),
    usual_ms=st.floats(0, 1e6),
    recent_ms=st.floats(0, 1e6),
    felt=st.integers(0, 1000),
)
ANSWERS = st.lists(
    st.tuples(st.booleans(), st.integers(0, 300), st.floats(0, 1e6), st.integers(0, 60_000)), max_size=60
)


def evenly(mean_s: float) -> Times:
    return lambda chance: mean_s * chance.uniform(0.7, 1.3)


def unevenly(mean_s: float) -> Times:
    return lambda chance: mean_s * chance.expovariate(1)


def good(
    state: Limit, times: int, latency_ms: float = 100, in_flight: int = USED, within: Range = WITHIN
) -> Limit:
    """Return the limit after that many good responses to requests that were sent just now."""
    for number in range(1, times + 1):
        at_ms = max(NOW_MS, state.cut_ms) + number
        state = concurrency.after_good_response(state, within, in_flight, latency_ms, at_ms, at_ms)
    return state


def refused(state: Limit, at_ms: int, in_flight: int = USED, within: Range = WITHIN) -> Limit:
    return concurrency.after_refusal(state, within, in_flight, at_ms, at_ms)


@pytest.mark.parametrize(
    ("within", "first"), [(Range(), 4), (Range(min=6), 6), (Range(max=3), 3), (Range(min=2, max=2), 2)]
)
def test_a_new_host_begins_with_four_within_the_bounds(within: Range, first: int) -> None:
    """It has no learned limit yet."""
    assert first == concurrency.allowed(Limit(), within)


@given(LIMITS, RANGES, ANSWERS)
def test_the_limit_is_never_outside_its_bounds(
    state: Limit, within: Range, answers: list[tuple[bool, int, float, int]]
) -> None:
    """It holds for any saved state and any outcomes, also after a policy change."""
    now_ms = NOW_MS
    for is_good, in_flight, latency_ms, pause_ms in answers:
        now_ms += pause_ms
        if is_good:
            state = concurrency.after_good_response(state, within, in_flight, latency_ms, now_ms - 1, now_ms)
        else:
            state = concurrency.after_refusal(state, within, in_flight, now_ms - 1, now_ms)

        assert within.min <= concurrency.allowed(state, within) <= within.max


@given(LIMITS, RANGES, st.integers(0, 300), st.floats(0, 1e6))
def test_an_unused_limit_does_not_grow(
    state: Limit, within: Range, in_flight: int, latency_ms: float
) -> None:
    """Responses at half the limit do not prove more."""
    before = concurrency.allowed(state, within)
    after = concurrency.after_good_response(
        state, within, min(in_flight, before // 2), latency_ms, 3 * NOW_MS, 3 * NOW_MS
    )

    assert before == concurrency.allowed(after, within)


def test_a_round_of_good_responses_adds_one() -> None:
    """Four responses at a limit of four, then five at five, give or take the fraction."""
    assert [4, 5, 6] == [concurrency.allowed(good(Limit(), times), WITHIN) for times in (0, 5, 10)]


def test_responses_to_requests_before_a_cut_do_not_cut_again() -> None:
    """Eight refusals of one burst are one incident."""
    once = refused(Limit(now=10.0), NOW_MS)
    more = once
    for late_ms in range(1, 9):
        more = concurrency.after_refusal(more, WITHIN, USED, NOW_MS - late_ms, NOW_MS + late_ms)

    assert 7 == concurrency.allowed(once, WITHIN)
    assert once == more


def test_good_responses_to_requests_before_a_cut_do_not_undo_it() -> None:
    """The host accepted them among too many."""
    cut = refused(Limit(now=10.0), NOW_MS)
    after = cut
    for late_ms in range(1, 9):
        after = concurrency.after_good_response(
            after, WITHIN, USED, 100.0, NOW_MS - late_ms, NOW_MS + late_ms
        )

    assert cut == after


@given(LIMITS, RANGES, st.lists(st.integers(0, 300), max_size=30))
def test_refusals_never_raise_the_limit(state: Limit, within: Range, in_flights: list[int]) -> None:
    """A host that refuses within a millisecond is not a fast host."""
    for number, in_flight in enumerate(in_flights):
        after = refused(state, NOW_MS + number, in_flight, within)
        assert concurrency.allowed(after, within) <= concurrency.allowed(state, within)
        assert (state.usual_ms, state.recent_ms) == (after.usual_ms, after.recent_ms)
        state = after


def test_the_ceiling_is_tried_again_after_its_hold() -> None:
    """The host refused ten: nine are reached quickly, ten after half a minute."""
    cut = refused(Limit(now=10.0), NOW_MS, 10)
    climbed = good(cut, 200)
    probing = concurrency.after_good_response(
        climbed, WITHIN, USED, 100.0, cut.hold_until_ms, cut.hold_until_ms
    )

    assert NOW_MS + 30_000 == cut.hold_until_ms
    assert 9 == concurrency.allowed(climbed, WITHIN)
    assert 10 == concurrency.allowed(probing, WITHIN)


def test_each_refusal_at_the_ceiling_doubles_the_hold_and_costs_one() -> None:
    """The search costs next to nothing."""
    state, now_ms = refused(Limit(now=10.0), NOW_MS, 10), NOW_MS
    holds: list[tuple[int, float]] = []
    for _ in range(5):
        state = good(state, 200)
        now_ms = state.hold_until_ms
        state = concurrency.after_good_response(state, WITHIN, USED, 100.0, now_ms, now_ms)
        state = refused(state, now_ms + 1, 10)
        holds.append((concurrency.allowed(state, WITHIN), state.hold_s))

    assert [(9, 60.0), (9, 120.0), (9, 240.0), (9, 240.0), (9, 240.0)] == holds


def test_two_rounds_of_good_responses_lift_the_ceiling() -> None:
    """The host accepts more than before. The next hold is short."""
    probing = replace(refused(Limit(now=10.0), NOW_MS, 10), now=10.0, probes_left=20)
    lifted = good(probing, 20)

    assert (0, 0, concurrency.HOLD_S) == (lifted.ceiling, lifted.probes_left, lifted.hold_s)
    assert 11 == concurrency.allowed(good(lifted, 11), WITHIN)


def test_rising_latency_cuts_the_limit() -> None:
    """It must be three times the usual for long enough. One slow response has no effect."""
    usual = good(Limit(now=10.0), 60, within=Range(max=12))
    once = good(usual, 1, 1000.0, within=Range(max=12))
    long = good(usual, 40, 300.0, within=Range(max=12))

    assert concurrency.allowed(usual, WITHIN) == concurrency.allowed(once, WITHIN)
    assert concurrency.allowed(long, WITHIN) < 0.5 * concurrency.allowed(usual, WITHIN)


def test_a_permanently_slower_host_is_not_held_down() -> None:
    """Cuts that do not help stop. The new latency becomes the usual one within some hundred responses."""
    slow = good(good(Limit(now=10.0), 60), 400, 500.0)

    assert 10 <= concurrency.allowed(slow, WITHIN)
    assert 2 * slow.usual_ms > 500.0 - concurrency.SLOW_MARGIN_MS


@given(LIMITS)
def test_a_limit_is_read_back_unchanged(state: Limit) -> None:
    """The limit outlives its worker."""
    assert state == msgspec.json.decode(msgspec.json.encode(state), type=Limit)


SERVICE = [evenly(0.3), evenly(3.0), unevenly(1.0)]


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("service_s", SERVICE, ids=["300ms", "3s", "uneven"])
def test_the_limit_of_a_host_is_found_within_a_minute_and_kept(status: int, service_s: Times) -> None:
    """The host accepts twelve at once. Minutes 2 to 10 use twelve with hardly a refusal."""
    lane = Simulation(HostModel(capacity=12, service_s=service_s, status=status), POLICY)
    lane.run(60)
    found = lane.limit
    lane.run(60)
    steady = lane.run(480)

    assert 10 <= found <= 12
    assert steady.mean_limit >= 0.8 * 12
    assert steady.refused_share < 0.02


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("service_s", SERVICE, ids=["300ms", "3s", "uneven"])
def test_a_lower_limit_is_found_within_a_minute(status: int, service_s: Times) -> None:
    """The limit falls from twelve to four after five quiet minutes, and cool-downs do not accumulate."""
    lane = Simulation(HostModel(capacity=12, service_s=service_s, status=status), POLICY)
    lane.run(300)
    lane.host.capacity = 4
    lane.run(60)
    found = lane.limit
    lane.run(60)
    steady = lane.run(300)

    assert 2 <= found <= 4
    assert steady.mean_limit >= 0.8 * 4
    assert steady.refused_share < 0.02
    assert lane.state.incidents <= 1


@pytest.mark.parametrize("status", [429, 503])
def test_a_higher_limit_is_found_within_minutes(status: int) -> None:
    """The limit climbs from four to forty: a hold, then one round for each further request."""
    lane = Simulation(HostModel(capacity=4, service_s=evenly(1.0), status=status), POLICY)
    lane.run(600)
    lane.host.capacity = 40
    lane.run(360)

    assert lane.limit >= 38
    assert lane.run(120).refused_share < 0.02


def test_throughput_is_close_to_the_host_s_capacity() -> None:
    """Twelve at once for one second each are twelve a second. The search costs a tenth at most."""
    lane = Simulation(HostModel(capacity=12, service_s=evenly(1.0), status=429), POLICY)
    lane.run(120)
    steady = lane.run(480)

    assert (steady.ended - steady.refused) / 480 >= 0.9 * 12


@pytest.mark.parametrize(
    "service_s", [evenly(0.3), evenly(1.0), unevenly(1.0)], ids=["300ms", "1s", "uneven"]
)
def test_a_host_that_queues_is_not_flooded(service_s: Times) -> None:
    """It serves twelve and queues the rest: the limit stays below three times as many."""
    lane = Simulation(HostModel(capacity=12, service_s=service_s, status=None), POLICY)
    seen = [(lane.run(2).mean_limit, lane.limit) for _ in range(300)]

    assert max(peak for _, peak in seen) <= 3 * 12
    assert sum(mean for mean, _ in seen[30:]) / 270 <= 2 * 12
    assert sum(mean for mean, _ in seen[30:]) / 270 >= 0.8 * 12


def test_a_model_of_a_host_is_repeatable() -> None:
    """The same seed gives the same history."""
    stories = [
        Simulation(HostModel(capacity=5, service_s=unevenly(1.0)), POLICY, seed=7).run(60) for _ in range(2)
    ]

    assert stories[0] == stories[1]
