"""The gate: concurrency, pacing, cool-down and breaker of one host."""

from collections.abc import Iterable
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from fetchfleet.worker.gate.gate import (
    FORGIVE_AFTER_MS,
    THROTTLE_CURVE_CAP_S,
    Admit,
    Closed,
    HostSignal,
    Observation,
    Saturated,
    WaitReason,
    admit,
    answered,
    attempt_ended,
    blocked_until_ms,
    closed_until,
    is_dead,
    is_healthy,
    is_wary,
    max_in_flight,
    needs_clock,
    started,
    throttled,
)
from fetchfleet.worker.gate.state import Breaker, GateState, Limit
from fetchfleet.worker.policy.model import LanePolicy, Range

NOW_MS = 1_700_000_000_000
FRESH = GateState()
PLAIN = LanePolicy(concurrency=2)
PACED = LanePolicy(rate_per_s=5)
FRAGILE = LanePolicy(concurrency=4, breaker_failures=2, breaker_reset_s=30)

CHANCES = st.floats(0, 1, exclude_max=True)
MOMENTS_MS = st.integers(0, 2**41)
STATES = st.builds(
    GateState,
    cool_until_ms=MOMENTS_MS,
    incidents=st.integers(0, 10**9),
    breaker=st.sampled_from(Breaker),
    open_until_ms=MOMENTS_MS,
    quota_until_ms=MOMENTS_MS,
    quota_left=st.integers(0, 100),
    quota_interval_ms=st.floats(0, 600_000),
    traffic_ms=MOMENTS_MS,
)


def goes(state: GateState, policy: LanePolicy, in_flight: int, now_ms: int) -> bool:
    return isinstance(admit(state, policy, in_flight, now_ms), Admit)


def cooled_ms(state: GateState, now_ms: int = NOW_MS) -> int:
    return state.cool_until_ms - now_ms


def incidents_in_a_row(count: int, pause_ms: int = 0, policy: LanePolicy = PLAIN) -> list[int]:
    """Return the lengths of cool-downs in ms, if the host throttles that long after the end of each."""
    state, now_ms, waits = FRESH, NOW_MS, []
    for _ in range(count):
        state = throttled(state, policy, None, now_ms, 0.0)
        waits.append(cooled_ms(state, now_ms))
        now_ms = state.cool_until_ms + pause_ms
    return waits


def after(
    state: GateState,
    seen: HostSignal,
    now_ms: int = NOW_MS,
    policy: LanePolicy = FRAGILE,
    *,
    throttle: bool = False,
) -> GateState:
    """Return the state after an attempt that was sent just now."""
    return attempt_ended(state, policy, Observation(seen, now_ms, 1, throttle=throttle), now_ms, 0.0)


def failed(state: GateState, times: int = 1, now_ms: int = NOW_MS) -> GateState:
    for _ in range(times):
        state = after(state, HostSignal.FAILED, now_ms)
    return state


@pytest.mark.parametrize(("in_flight", "verdict"), [(0, Admit), (1, Admit), (2, Saturated), (3, Saturated)])
def test_the_policy_limits_the_fetches_in_flight(in_flight: int, verdict: type) -> None:
    """Concurrency is 2 here."""
    assert type(admit(FRESH, PLAIN, in_flight, NOW_MS)) is verdict


def test_a_cool_down_closes_the_lane_to_its_last_ms() -> None:
    """The verdict names the first millisecond in which the lane is open."""
    state = GateState(cool_until_ms=NOW_MS)

    assert Closed(NOW_MS, WaitReason.COOL_DOWN) == admit(state, PLAIN, 0, NOW_MS - 1)
    assert goes(state, PLAIN, 0, NOW_MS)


def test_the_longest_of_several_waits_is_named() -> None:
    """A fetch that comes back then is not refused for another reason."""
    state = GateState(
        cool_until_ms=NOW_MS + 10, breaker=Breaker.OPEN, open_until_ms=NOW_MS + 20, paced_ms=NOW_MS + 15
    )

    assert Closed(NOW_MS + 20, WaitReason.BREAKER) == closed_until(state, PACED, NOW_MS)
    assert closed_until(state, PACED, NOW_MS + 20) is None


@pytest.mark.parametrize(
    ("asked_s", "chance", "wait_ms"),
    [(1.0, 0.0, 1000), (120.0, 0.0, 120_000), (120.0, 0.5, 126_000), (0.0004, 0.0, 1)],
)
def test_a_requested_wait_is_kept_and_lengthened_a_little(
    asked_s: float, chance: float, wait_ms: int
) -> None:
    """Jitter only lengthens it. A fraction of a millisecond is rounded up."""
    assert wait_ms == cooled_ms(throttled(FRESH, PLAIN, asked_s, NOW_MS, chance))


@pytest.mark.parametrize("asked_s", [3600.0, 1_000_000.0, 1e30, float("inf")])
def test_a_requested_wait_is_capped(asked_s: float) -> None:
    """The cap is 3600 s unless the policy sets another."""
    assert 3_600_000 == cooled_ms(throttled(FRESH, PLAIN, asked_s, NOW_MS, 0.0))


def test_a_requested_wait_does_not_advance_the_back_off() -> None:
    """The host named the wait, so no guess is needed."""
    assert 0 == throttled(FRESH, PLAIN, 5.0, NOW_MS, 0.0).incidents


def test_after_a_throttle_a_body_has_one_request_at_a_time_for_a_minute() -> None:
    """Adaptive concurrency has a limit that the throttle lowers instead."""
    until_ms = NOW_MS + cooled_ms(state := throttled(FRESH, PLAIN, 5.0, NOW_MS, 0.0))
    ends_ms = until_ms + FORGIVE_AFTER_MS

    assert not is_wary(FRESH, PLAIN, NOW_MS)
    assert is_wary(state, PLAIN, ends_ms - 1)
    assert not is_wary(state, PLAIN, ends_ms)
    assert not is_wary(state, LanePolicy(concurrency=Range()), ends_ms - 1)


def test_the_back_off_doubles_to_its_cap_and_stays_there() -> None:
    """A host that keeps throttling gets longer and longer cool-downs."""
    waits_s = [wait_ms // 1000 for wait_ms in incidents_in_a_row(12)]

    assert [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 600, 600] == waits_s
    assert THROTTLE_CURVE_CAP_S == waits_s[-1]


def test_responses_in_flight_belong_to_the_same_incident() -> None:
    """Eight concurrent 429 responses are one incident."""
    once = throttled(FRESH, PLAIN, None, NOW_MS, 0.0)
    more = once
    for late_ms in range(0, 1000, 100):
        more = throttled(more, PLAIN, None, NOW_MS + late_ms, 0.9)

    assert once == more


@pytest.mark.parametrize(
    ("quiet_ms", "wait_s"),
    [
        (FORGIVE_AFTER_MS - 1, 16),
        (FORGIVE_AFTER_MS, 8),
        (2 * FORGIVE_AFTER_MS, 4),
        (4 * FORGIVE_AFTER_MS, 1),
        (99 * FORGIVE_AFTER_MS, 1),
    ],
)
def test_each_minute_without_a_cool_down_takes_one_step_back(quiet_ms: int, wait_s: int) -> None:
    """The count starts at four incidents and ends at none."""
    state = GateState(incidents=4, cool_until_ms=NOW_MS - quiet_ms)

    assert wait_s * 1000 == cooled_ms(throttled(state, PLAIN, None, NOW_MS, 0.0))


def test_a_host_that_throttles_once_a_minute_stays_at_the_first_step() -> None:
    """Such a host is slow, not broken."""
    assert [1000] * 5 == incidents_in_a_row(5, pause_ms=FORGIVE_AFTER_MS)


def test_the_cap_of_the_policy_limits_the_back_off_too() -> None:
    """It holds even if it is below the base."""
    policy = LanePolicy(throttle_cap_s=0.5)

    assert [500] * 3 == incidents_in_a_row(3, policy=policy)


@given(STATES, st.none() | st.floats(0, 1e9), MOMENTS_MS, CHANCES)
def test_a_throttle_never_shortens_a_cool_down(
    state: GateState, asked_s: float | None, now_ms: int, chance: float
) -> None:
    """The lane stays closed unless the host asked for no wait at all."""
    after = throttled(state, PLAIN, asked_s, now_ms, chance)

    assert after.cool_until_ms >= max(state.cool_until_ms, now_ms)
    assert after.incidents <= state.incidents + 1


@given(STATES, st.none() | st.floats(0, 1e9), MOMENTS_MS, CHANCES)
def test_jitter_lengthens_a_cool_down_by_a_tenth_at_most(
    state: GateState, asked_s: float | None, now_ms: int, chance: float
) -> None:
    """The lanes of a fleet spread out after a common outage. None is early."""
    least = throttled(state, PLAIN, asked_s, now_ms, 0.0).cool_until_ms
    jittered = throttled(state, PLAIN, asked_s, now_ms, chance).cool_until_ms

    assert least <= jittered <= least + 0.1 * max(0, least - now_ms) + 1


def starts_ms(policy: LanePolicy, looks_ms: Iterable[int]) -> list[int]:
    """Return the times of starts if fetches always wait and the gate is asked at these times."""
    state = FRESH
    starts: list[int] = []
    for now_ms in looks_ms:
        while len(starts) < 300 and goes(state, policy, 0, now_ms):
            state = started(state, policy, now_ms)
            starts.append(now_ms)
    return starts


@pytest.mark.parametrize(
    ("rate_per_s", "burst", "starts"),
    [
        (5, 1, [0, 200, 400, 600, 800]),
        (5, 3, [0, 0, 0, 200, 400, 600, 800]),
        (1, 2, [0, 0]),
        (0.5, 1, [0]),
        (3, 1, [0, 334, 668]),
    ],
)
def test_starts_are_spread_evenly_after_the_burst(rate_per_s: float, burst: int, starts: list[int]) -> None:
    """The test asks the gate every millisecond of the first second."""
    policy = LanePolicy(rate_per_s=rate_per_s, burst=burst)
    looks = range(NOW_MS, NOW_MS + 1000)

    assert starts == [at - NOW_MS for at in starts_ms(policy, looks)]


def test_idle_time_accumulates_no_more_than_the_burst() -> None:
    """An hour without requests allows no flood."""
    policy = LanePolicy(rate_per_s=10, burst=4)

    assert [NOW_MS] * 4 + [NOW_MS + 3_600_000] * 4 == starts_ms(policy, [NOW_MS, NOW_MS + 3_600_000])


def test_without_a_rate_nothing_is_paced() -> None:
    """A time left over from another policy has no effect."""
    assert goes(GateState(paced_ms=NOW_MS + 9999.0), PLAIN, 0, NOW_MS)
    assert FRESH.paced_ms == started(FRESH, PLAIN, NOW_MS).paced_ms


@given(st.floats(0.01, 2000), st.integers(1, 50), st.lists(st.integers(0, 3000), max_size=60))
def test_no_window_has_more_starts_than_burst_and_rate_allow(
    rate_per_s: float, burst: int, pauses_ms: list[int]
) -> None:
    """The number of starts is at most the burst plus the rate times the length of the window."""
    policy = LanePolicy(rate_per_s=rate_per_s, burst=burst)
    starts = starts_ms(policy, accumulate(pauses_ms, initial=NOW_MS))

    for first, from_ms in enumerate(starts):
        for last in range(first, len(starts)):
            allowed = burst + rate_per_s * (starts[last] - from_ms) / 1000
            assert last - first + 1 <= allowed + 0.01


@given(st.floats(0.01, 1000), st.integers(1, 20))
def test_a_paced_lane_is_open_at_the_time_that_it_named(rate_per_s: float, burst: int) -> None:
    """One wait is enough."""
    policy = LanePolicy(rate_per_s=rate_per_s, burst=burst)
    state = FRESH
    while (shut := closed_until(state, policy, NOW_MS)) is None:
        state = started(state, policy, NOW_MS)

    assert shut.until_ms - NOW_MS <= 1000 / rate_per_s + 1
    assert shut == admit(state, policy, 0, shut.until_ms - 1)
    assert goes(state, policy, 0, shut.until_ms)


def test_an_open_breaker_closes_the_lane_then_admits_exactly_one() -> None:
    """The probe must end before another fetch may start."""
    state, then_ms = failed(FRESH, 2), NOW_MS + 30_000

    assert Closed(then_ms, WaitReason.BREAKER) == admit(state, FRAGILE, 0, then_ms - 1)
    assert goes(state, FRAGILE, 0, then_ms)
    state = started(state, FRAGILE, then_ms)
    assert state.breaker is Breaker.HALF_OPEN
    assert isinstance(admit(state, FRAGILE, 1, then_ms), Saturated)


def test_no_probe_starts_beside_earlier_fetches() -> None:
    """Their responses would count as the outcome of the probe."""
    assert isinstance(admit(failed(FRESH, 2), FRAGILE, 1, NOW_MS + 30_000), Saturated)


def test_a_probe_without_an_outcome_makes_room_for_another() -> None:
    """A deploy during a probe does not close a lane forever."""
    probing = started(failed(FRESH, 2), FRAGILE, NOW_MS + 30_000)
    unchanged = after(probing, HostSignal.NOTHING, NOW_MS + 31_000)

    assert goes(unchanged, FRAGILE, 0, NOW_MS + 31_000)


@pytest.mark.parametrize(
    ("seen", "failures"),
    [
        (HostSignal.ANSWERED, 0),
        (HostSignal.NOTHING, 1),
        (HostSignal.FAILED, 2),
        (HostSignal.TIMED_OUT, 2),
        (HostSignal.NAMELESS, 2),
        (HostSignal.REFUSED, 2),
    ],
)
def test_each_outcome_counts_for_or_against_the_host(seen: HostSignal, failures: int) -> None:
    """A response clears one earlier failure, a fault of the worker keeps it, and a plain 503 adds to it."""
    assert failures == after(failed(FRESH), seen).failures


@given(st.lists(st.none() | st.floats(0.1, 100), max_size=30))
def test_throttles_never_open_the_breaker(asked: list[float | None]) -> None:
    """A host that throttles is alive: it gets a cool-down."""
    state = failed(FRESH)
    for asked_s in asked:
        state = after(state, HostSignal.REFUSED, throttle=True)
        state = throttled(state, FRAGILE, asked_s, NOW_MS, 0.0)

        assert state.failures == 0

    assert state.breaker is Breaker.CLOSED


def test_the_back_off_does_not_grow_while_concurrency_can_fall() -> None:
    """A limit on trial is refused now and then. Throttles at the lowest limit advance the back-off."""
    policy = LanePolicy(concurrency=Range(min=2, max=20))
    yielding, least = GateState(limit=Limit(now=10.0)), GateState(limit=Limit(now=2.0))
    for _ in range(4):
        yielding = throttled(yielding, policy, None, yielding.cool_until_ms + 1, 0.0)
        least = throttled(least, policy, None, least.cool_until_ms + 1, 0.0)

    assert (0, 4) == (yielding.incidents, least.incidents)
    assert 1000 == yielding.cool_until_ms - yielding.cool_since_ms
    assert 8000 == least.cool_until_ms - least.cool_since_ms


@pytest.mark.parametrize(
    ("state", "most"),
    [
        (GateState(), 4),
        (GateState(limit=Limit(now=9.9)), 9),
        (GateState(limit=Limit(now=99.0)), 20),
        (GateState(limit=Limit(now=9.9), breaker=Breaker.OPEN), 1),
        (GateState(limit=Limit(now=9.9), breaker=Breaker.HALF_OPEN), 1),
    ],
)
def test_the_learned_limit_applies_to_the_fetches_in_flight(state: GateState, most: int) -> None:
    """The policy bounds the limit by 2 and 20, but a host that may be failing gets one fetch."""
    policy = LanePolicy(concurrency=Range(min=2, max=20))

    assert most == max_in_flight(state, policy)
    assert isinstance(admit(state, policy, most - 1, NOW_MS), Admit)
    assert isinstance(admit(state, policy, most, NOW_MS), Saturated)


@pytest.mark.parametrize("seen", HostSignal)
def test_a_fixed_concurrency_is_not_adapted(seen: HostSignal) -> None:
    """It holds for any outcomes."""
    assert Limit() == after(FRESH, seen).limit


def test_a_paused_lane_starts_nothing() -> None:
    """The pause lasts until the policy changes."""
    paused = LanePolicy(paused=True)

    assert isinstance(admit(FRESH, paused, 0, NOW_MS), Closed)
    assert WaitReason.PAUSED is admit(FRESH, paused, 0, NOW_MS)[1]  # type: ignore[misc]


def outage(seen: HostSignal, policy: LanePolicy) -> tuple[float, GateState]:
    """Return the seconds after which a host with only such outcomes is dead."""
    state, now_ms = FRESH, NOW_MS
    while not is_dead(state, policy, now_ms):
        assert now_ms < NOW_MS + 24 * 3_600_000
        shut = closed_until(state, policy, now_ms)
        now_ms = shut.until_ms if shut else now_ms
        state = after(started(state, policy, now_ms), seen, now_ms, policy)
    return (now_ms - NOW_MS) / 1000, state


@pytest.mark.parametrize(
    ("seen", "least_s", "most_s"),
    [(HostSignal.FAILED, 3600, 4200), (HostSignal.TIMED_OUT, 3600, 4200), (HostSignal.NAMELESS, 60, 120)],
)
def test_a_host_without_responses_is_finally_dead(seen: HostSignal, least_s: float, most_s: float) -> None:
    """The first failed probe after `give_up_s` decides, or an earlier one if the name does not exist."""
    dead_after_s, state = outage(seen, LanePolicy())

    assert least_s <= dead_after_s <= most_s
    assert (seen is HostSignal.NAMELESS) is state.nameless


def test_one_response_revives_a_dead_host() -> None:
    """The next outage has the full time again."""
    _, state = outage(HostSignal.FAILED, LanePolicy())
    now_ms = state.open_until_ms
    back = after(started(state, LanePolicy(), now_ms), HostSignal.ANSWERED, now_ms, LanePolicy())
    down_again = failed(back, 2, now_ms)

    assert not is_dead(back, FRAGILE, now_ms)
    assert Breaker.OPEN is down_again.breaker
    assert not is_dead(down_again, FRAGILE, now_ms + 3_599_999)


def test_a_name_that_exists_again_gets_the_longer_time() -> None:
    """The last outcome decides."""
    state = failed(after(FRESH, HostSignal.NAMELESS))
    then_ms = NOW_MS + 61_000

    assert not is_dead(state, FRAGILE, then_ms)
    assert is_dead(after(failed(FRESH), HostSignal.NAMELESS), FRAGILE, then_ms)


def test_the_last_five_responses_are_kept() -> None:
    """The `explain` command shows them, and outcomes that the worker caused are not responses."""
    state = FRESH
    for number in range(8):
        signal = Observation(HostSignal.ANSWERED, NOW_MS, 1, outcome=str(200 + number))
        state = attempt_ended(state, PLAIN, signal, NOW_MS + number, 0.0)
    after_ours = after(state, HostSignal.NOTHING)

    assert ["203", "204", "205", "206", "207"] == [answer.outcome for answer in state.answers]
    assert state == after_ours


class Host:
    """A lane held by a worker. Its limits are counted independently of the gate."""

    def __init__(self, policy: LanePolicy) -> None:
        self.policy = policy
        self.state = GateState()
        self.now_ms = NOW_MS
        self.in_flight = 0
        self.quiet_until_ms = 0
        self.failures = 0
        self.parked_until_ms = 0
        self.times_parked = 0
        self.parked = self.probing = False

    def wait(self, ms: int) -> None:
        """Time passes."""
        self.now_ms += ms

    def start(self, _: None) -> None:
        """As many start as are let through; none of them may break a promise."""
        while goes(self.state, self.policy, self.in_flight, self.now_ms):
            self.state = started(self.state, self.policy, self.now_ms)
            self.in_flight += 1
            self.probing = self.parked

            assert self.in_flight <= (1 if self.parked else self.policy.max_concurrency)
            assert self.now_ms >= max(self.quiet_until_ms, self.parked_until_ms)

    def end(self, seen: HostSignal, *, throttle: bool = False) -> None:
        """One ends."""
        if not self.in_flight:
            return
        self.in_flight -= 1
        self.state = after(self.state, seen, self.now_ms, self.policy, throttle=throttle)
        if seen is HostSignal.NOTHING or (self.parked and not self.probing):
            return
        self.failures = 0 if throttle or seen is HostSignal.ANSWERED else self.failures + 1
        self.parked = self.failures >= self.policy.breaker_failures
        self.probing = False
        self.times_parked = self.times_parked + 1 if self.parked else 0
        if self.parked:
            self.parked_until_ms = self.now_ms + 1000 * self.times_parked

    def throttle(self, asked_s: float | None) -> None:
        """One ends with a throttle."""
        if not self.in_flight:
            return
        self.end(HostSignal.REFUSED, throttle=True)
        self.state = throttled(self.state, self.policy, asked_s, self.now_ms, 0.0)
        if asked_s is not None or self.now_ms >= self.quiet_until_ms:
            quiet_ms = int((asked_s or 1.0) * 1000)
            self.quiet_until_ms = max(self.quiet_until_ms, self.now_ms + quiet_ms)


EVENTS = st.one_of(
    st.just(("start", None)),
    st.tuples(st.just("wait"), st.integers(1, 5000)),
    st.tuples(st.just("end"), st.sampled_from(HostSignal)),
    st.tuples(st.just("throttle"), st.none() | st.floats(0.001, 10)),
)


@given(st.integers(1, 4), st.sampled_from([0.0, 3.0]), st.integers(1, 3), st.lists(EVENTS, max_size=60))
def test_no_order_of_events_breaks_a_promise(
    concurrency: int, rate_per_s: float, breaker_failures: int, events: list[tuple[str, object]]
) -> None:
    """Starts respect the concurrency, cool-downs and the breaker, with one probe at a time."""
    host = Host(
        LanePolicy(
            concurrency=concurrency,
            rate_per_s=rate_per_s,
            breaker_failures=breaker_failures,
            breaker_reset_s=1,
        )
    )
    for name, value in events:
        getattr(host, name)(value)


@given(STATES, st.integers(0, 10))
def test_an_idle_lane_opens_at_the_time_that_it_named(state: GateState, in_flight: int) -> None:
    """No state closes a lane forever."""
    shut = closed_until(state, PLAIN, 0)
    opens_ms = shut.until_ms if shut else 0

    assert closed_until(state, PLAIN, opens_ms) is None
    assert not isinstance(admit(state, PLAIN, in_flight, opens_ms), Closed)


@given(STATES, MOMENTS_MS)
def test_an_admitted_fetch_waits_only_for_a_cool_down_the_breaker_or_a_pause(
    state: GateState, now_ms: int
) -> None:
    """Its own start, which is counted, does not hold it up."""
    until_ms = blocked_until_ms(state, PACED, now_ms)

    assert until_ms == 0 or until_ms > now_ms
    assert not until_ms or isinstance(admit(state, PACED, 0, now_ms), Closed)
    assert blocked_until_ms(started(FRESH, PACED, now_ms), PACED, now_ms) == 0
    assert blocked_until_ms(FRESH, LanePolicy(paused=True), now_ms) > now_ms


@given(
    state=st.builds(
        GateState,
        breaker=st.sampled_from(Breaker),
        open_until_ms=MOMENTS_MS,
        cool_until_ms=st.just(0) | MOMENTS_MS,
        quota_until_ms=st.just(0) | MOMENTS_MS,
        robots_until_ms=MOMENTS_MS,
        crawl_delay_s=st.floats(0, 10),
        paced_ms=st.floats(0, 2**41),
    ),
    policy=st.sampled_from([PLAIN, PACED, LanePolicy(robots="obey"), LanePolicy(quota=False)]),
    now_ms=MOMENTS_MS,
)
def test_a_lane_that_needs_no_clock_is_open_at_any_time(
    state: GateState, policy: LanePolicy, now_ms: int
) -> None:
    """Neither its state nor the effect of a start depends on the time."""
    if not needs_clock(state, policy):
        after = started(state, policy, now_ms)

        assert closed_until(state, policy, now_ms) is None
        assert not blocked_until_ms(state, policy, now_ms)
        assert closed_until(after, policy, now_ms) is None


@given(state=STATES, failures=st.integers(0, 3), now_ms=MOMENTS_MS)
def test_a_good_response_of_a_healthy_host_only_records_its_status(
    state: GateState, failures: int, now_ms: int
) -> None:
    """The short path has the result of the long one."""
    state = replace(state, failures=failures)
    seen = Observation(HostSignal.ANSWERED, now_ms - 20, 2, 15.0, "200", fetch_id="a")
    if is_healthy(state, PLAIN):
        assert answered(state, "200", now_ms) == attempt_ended(state, PLAIN, seen, now_ms, 0.5)


@given(st.lists(st.tuples(st.sampled_from([*HostSignal]), st.booleans()), max_size=20))
def test_a_state_has_a_last_failure_exactly_while_its_host_fails(
    events: list[tuple[HostSignal, bool]],
) -> None:
    """A good response removes it, so a healthy host has a grant as before and its state is as short."""
    state, policy = GateState(), LanePolicy(breaker_failures=2, breaker_reset_s=1.0)
    for number, (signal, probes) in enumerate(events):
        if probes:
            state = started(state, policy, NOW_MS)
        seen = Observation(signal, NOW_MS, 1, None, "connect", fetch_id=str(number), note="refused")
        state = attempt_ended(state, policy, seen, NOW_MS, 0.0)
        fails = state.failures > 0 or state.breaker is not Breaker.CLOSED

        assert state.last_failure == ("connect, refused" if fails else "")


@pytest.mark.parametrize(
    ("outcome", "note", "words"),
    [
        ("500", "", "status 500"),
        ("connect", "[Errno 111] Connection refused", "connect, [Errno 111] Connection refused"),
        ("tls", "", "tls"),
        ("read", "x" * 500, f"read, {'x' * 194}"),
    ],
)
def test_a_failure_has_its_words(outcome: str, note: str, words: str) -> None:
    """They are the status, or the reason with its note, and bounded."""
    assert words == Observation(HostSignal.FAILED, NOW_MS, 1, None, outcome, note=note).failure
