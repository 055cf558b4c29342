"""The breaker: it opens after consecutive failures, sends one probe, and closes on success."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec.structs import replace

from fetchfleet.worker.gate import breaker
from fetchfleet.worker.gate.breaker import BreakerRules
from fetchfleet.worker.gate.state import Breaker, GateState, Limit, RecordedAttempt, from_json, to_json

NOW_MS = 1_700_000_000_000
RESET_MS = 30_000
CAP_MS = 100_000

CHANCES = st.floats(0, 1, exclude_max=True)
STATES = st.builds(
    GateState,
    cool_until_ms=st.integers(0, 2**50),
    paced_ms=st.floats(0, 2**50),
    incidents=st.integers(0, 10**9),
    breaker=st.sampled_from(Breaker),
    failures=st.integers(0, 10**9),
    failed=st.lists(st.integers(0, 2**32 - 1), max_size=9).map(tuple),
    open_until_ms=st.integers(0, 2**50),
    opens=st.integers(0, 10**9),
    down_since_ms=st.integers(0, 2**50),
    nameless=st.booleans(),
    quota_left=st.integers(0, 2**50),
    traffic=st.floats(0, 2**50),
    limit=st.builds(Limit, now=st.floats(0, 1000), ceiling=st.integers(0, 1000), felt=st.integers(0, 99)),
    answers=st.lists(st.builds(RecordedAttempt, st.integers(0, 2**50), st.text()), max_size=5).map(tuple),
)


def after(
    state: GateState, answers: str, fail_max: int = 3, now_ms: int = NOW_MS, chance: float = 0.0
) -> GateState:
    """Return the state after outcomes: F is a failure, S a success."""
    rules = BreakerRules(failures=fail_max, reset_s=RESET_MS / 1000, cap_s=CAP_MS / 1000)
    for answer in answers:
        state = breaker.after_attempt(state, rules, failed=answer == "F", now_ms=now_ms, chance=chance)
    return state


def open_times_ms(count: int, chance: float = 0.0) -> list[int]:
    """Return the open time after each failed probe in turn."""
    state, now_ms, times = after(GateState(), "FF"), NOW_MS, []
    for _ in range(count):
        state = after(breaker.probing(state), "F", now_ms=now_ms, chance=chance)
        times.append(state.open_until_ms - now_ms)
        now_ms = state.open_until_ms
    return times


def after_fetches(
    state: GateState, answers: list[tuple[str, str]], fail_max: int = 3, now_ms: int = NOW_MS
) -> GateState:
    """Return the state after outcomes of fetches: each an ID, and F or S."""
    rules = BreakerRules(failures=fail_max, reset_s=RESET_MS / 1000, cap_s=CAP_MS / 1000)
    for fetch_id, answer in answers:
        failed = answer == "F"
        state = breaker.after_attempt(
            state, rules, failed=failed, now_ms=now_ms, chance=0.0, fetch_id=fetch_id
        )
    return state


OPEN = after(GateState(), "FFF")
HALF_OPEN = breaker.probing(OPEN)


@pytest.mark.parametrize(
    ("failures", "state"), [(1, Breaker.CLOSED), (2, Breaker.CLOSED), (3, Breaker.OPEN), (4, Breaker.OPEN)]
)
def test_the_breaker_opens_at_exactly_the_failure_limit(failures: int, state: Breaker) -> None:
    """One failure less leaves it closed."""
    assert after(GateState(), "F" * failures).breaker is state


def test_an_open_breaker_names_the_time_of_its_probe() -> None:
    """The time is on the clock that was passed in."""
    assert NOW_MS + RESET_MS == OPEN.open_until_ms


def test_a_success_resets_the_failure_count() -> None:
    """Only consecutive failures count."""
    state = after(GateState(), "FFSFF")

    assert GateState(failures=2) == state


@pytest.mark.parametrize("answer", ["F", "S"])
def test_outcomes_while_open_change_nothing(answer: str) -> None:
    """Their requests were sent before the breaker opened."""
    assert OPEN == after(OPEN, answer)


def test_a_probe_makes_an_open_breaker_half_open() -> None:
    """Closed and half-open breakers keep their state."""
    assert breaker.probing(OPEN).breaker is Breaker.HALF_OPEN
    assert HALF_OPEN == breaker.probing(HALF_OPEN)
    assert GateState() == breaker.probing(GateState())


def test_a_successful_probe_closes_the_breaker() -> None:
    """The failure count is zero again."""
    assert GateState() == after(HALF_OPEN, "S")


def test_a_failed_probe_opens_the_breaker_again() -> None:
    """One failure is enough. The second open time is twice as long."""
    later_ms = NOW_MS + RESET_MS
    state = after(HALF_OPEN, "F", now_ms=later_ms)

    assert (Breaker.OPEN, later_ms + 2 * RESET_MS) == (state.breaker, state.open_until_ms)


def test_open_times_grow_to_the_cap() -> None:
    """A host that stays down gets fewer and fewer probes."""
    assert [30_000, 60_000, 90_000, 100_000, 100_000] == open_times_ms(5)


@given(CHANCES)
def test_jitter_lengthens_an_open_time_by_a_tenth_at_most(chance: float) -> None:
    """The lanes of a fleet do not probe at the same moment, and none probes early."""
    for least_ms, open_ms in zip(open_times_ms(5), open_times_ms(5, chance), strict=True):
        assert least_ms <= open_ms <= least_ms * 1.1 + 1


def test_a_cap_below_the_first_open_time_does_not_shorten_it() -> None:
    """The first open time is the policy's `breaker_reset_s`."""
    rules = BreakerRules(failures=1, reset_s=30, cap_s=1)
    state = breaker.after_attempt(GateState(), rules, failed=True, now_ms=NOW_MS, chance=0.0)

    assert NOW_MS + 30_000 == state.open_until_ms


def test_a_recovered_host_starts_afresh() -> None:
    """The next outage begins with the shortest open time and has its own start."""
    again = after(after(after(HALF_OPEN, "F"), "S"), "S")
    closed = after(breaker.probing(again), "S")
    later_ms = NOW_MS + 3_600_000
    reopened = after(closed, "FFF", now_ms=later_ms)

    assert GateState() == closed
    assert (1, later_ms, later_ms + RESET_MS) == (
        reopened.opens,
        reopened.down_since_ms,
        reopened.open_until_ms,
    )


def test_an_outage_begins_when_the_breaker_first_opens() -> None:
    """Probes and half-open times do not change its start."""
    state, now_ms = OPEN, NOW_MS
    for _ in range(4):
        now_ms = state.open_until_ms
        state = breaker.probing(state)
        assert NOW_MS == state.down_since_ms
        state = after(state, "F", now_ms=now_ms)
        assert NOW_MS == state.down_since_ms


def test_a_lowered_limit_applies_at_the_next_failure() -> None:
    """The policy may change while the lane is in Redis."""
    assert after(GateState(failures=4), "F", fail_max=2).breaker is Breaker.OPEN


@given(st.integers(1, 6), st.text("FS", max_size=60))
@example(1000, "F" * 999 + "S" + "F" * 1000)
def test_the_breaker_is_open_exactly_after_the_limit_of_consecutive_failures(
    fail_max: int, answers: str
) -> None:
    """It holds for any earlier outcomes. Once open, it stays open until a probe."""
    state = after(GateState(), answers, fail_max)

    assert (state.breaker is Breaker.OPEN) is ("F" * fail_max in answers)


def test_attempts_of_one_fetch_count_once() -> None:
    """One URL that always fails does not close its host to the others."""
    state = after_fetches(GateState(), [("bad", "F")] * 100)

    assert (Breaker.CLOSED, 1) == (state.breaker, state.failures)


def test_failures_of_different_fetches_count_in_any_order_of_attempts() -> None:
    """The third fetch that fails is the third failure."""
    two = after_fetches(GateState(), [("a", "F"), ("b", "F"), ("a", "F"), ("b", "F"), ("a", "F")])

    assert (Breaker.CLOSED, 2) == (two.breaker, two.failures)
    assert after_fetches(two, [("c", "F")]).breaker is Breaker.OPEN


def test_after_a_success_every_fetch_counts_again() -> None:
    """The failures are no longer consecutive."""
    state = after_fetches(GateState(), [("a", "F"), ("b", "F"), ("c", "S"), ("a", "F"), ("b", "F")])

    assert (Breaker.CLOSED, 2) == (state.breaker, state.failures)


def test_a_failure_that_no_fetch_caused_counts_each_time() -> None:
    """Failed connections and failed robots.txt requests are such failures."""
    state = after_fetches(GateState(), [("a", "F"), ("", "F"), ("a", "F")])

    assert (Breaker.CLOSED, 2) == (state.breaker, state.failures)
    assert after_fetches(state, [("", "F")]).breaker is Breaker.OPEN


def test_a_failed_probe_counts_for_any_fetch() -> None:
    """While half-open, one failure is enough, also of a fetch that has failed before."""
    state = after_fetches(GateState(), [(one, "F") for one in "abc"])

    assert after_fetches(breaker.probing(state), [("a", "F")]).breaker is Breaker.OPEN
    assert GateState() == after_fetches(breaker.probing(state), [("a", "S")])


def test_failed_fetches_are_saved_with_the_lane() -> None:
    """The next owner of the lane does not count them again."""
    before = after_fetches(GateState(), [("a", "F"), ("b", "F")])

    assert before == after_fetches(from_json(to_json(before)), [("a", "F"), ("b", "F")])


def test_a_state_of_an_older_worker_keeps_its_count() -> None:
    """It holds the number of failures without the fetches."""
    state = after_fetches(from_json(b'{"failures":2}'), [("a", "F")])

    assert state.breaker is Breaker.OPEN


@given(
    st.integers(1, 6),
    st.lists(st.tuples(st.sampled_from(["", "a", "b", "c", "d", "e"]), st.sampled_from("FFFS")), max_size=60),
)
def test_the_breaker_is_open_exactly_after_the_limit_of_different_failures(
    fail_max: int, answers: list[tuple[str, str]]
) -> None:
    """The test counts fetches as a set, and connections one by one."""
    fetches, connections, opened = set[str](), 0, False
    for fetch_id, answer in answers:
        if answer == "S":
            fetches, connections = set(), 0
        elif fetch_id:
            fetches.add(fetch_id)
        else:
            connections += 1
        opened = opened or len(fetches) + connections >= fail_max

    state = after_fetches(GateState(), answers, fail_max)

    assert (state.breaker is Breaker.OPEN) is opened
    assert len(state.failed) < fail_max
    assert opened or (len(fetches), len(fetches) + connections) == (len(state.failed), state.failures)


@given(STATES, st.integers(1, 1000))
def test_a_successful_probe_closes_every_state(state: GateState, fail_max: int) -> None:
    """A healthy host can leave every state."""
    closed = after(breaker.probing(state), "S", fail_max)

    assert (Breaker.CLOSED, 0) == (closed.breaker, closed.failures)


@given(STATES, st.text("FS", max_size=3))
def test_the_breaker_changes_nothing_else_in_the_gate(state: GateState, answers: str) -> None:
    """Cool-down, pacing and concurrency stay as they are."""
    changed = after(state, answers)

    assert (
        state.cool_until_ms,
        state.paced_ms,
        state.incidents,
        state.limit,
    ) == (changed.cool_until_ms, changed.paced_ms, changed.incidents, changed.limit)


@given(STATES)
def test_a_saved_state_is_read_back_unchanged(state: GateState) -> None:
    """The state outlives its worker."""
    assert state == from_json(to_json(state))


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{}",
        b"junk",
        b"\xff",
        b"[]",
        b'{"breaker":"ajar"}',
        b'{"failures":"3"}',
        b'{"paced_ms":1e999}',
        b'{"x":' + b"[" * 100_000,
        b'{"incident_ms":5}',
    ],
)
def test_an_unreadable_state_becomes_a_fresh_one(text: bytes) -> None:
    """Unknown fields are ignored."""
    assert GateState() == from_json(text)


@given(st.binary())
def test_arbitrary_bytes_yield_a_state(text: bytes) -> None:
    """No value in Redis prevents the acquisition of a lane."""
    assert isinstance(from_json(text), GateState)


def test_the_time_and_the_words_of_a_failing_host_are_known() -> None:
    """The text is the note of the fetches that end with the host."""
    down = replace(OPEN, down_since_ms=NOW_MS - 20_000)

    assert breaker.down_text(down, NOW_MS) == "no usable response for 20 s"
    assert breaker.down_text(replace(down, last_failure="connect, refused"), NOW_MS) == (
        "no usable response for 20 s; last: connect, refused"
    )
