"""The decision after an outcome: three ledgers, one deadline, and no unsafe repeat."""

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from fetchfleet.jobs.contract.checks.field_checks import IDEMPOTENT_METHODS
from fetchfleet.jobs.contract.entry import Entry, Hop
from fetchfleet.jobs.contract.fetch import Fetch
from fetchfleet.jobs.contract.result import Outcome, Reason
from fetchfleet.worker.fetch.rules.crashes import (
    MAX_CRASHES,
    crashed,
    interrupted,
    needs_start_marker,
    poisoned,
)
from fetchfleet.worker.fetch.rules.decide import (
    Decision,
    Finish,
    HostState,
    MoveLane,
    Retry,
    decide,
    expired,
    may_repeat,
)
from fetchfleet.worker.fetch.rules.outcome import (
    Answered,
    AttemptOutcome,
    Failed,
    Interrupted,
    Redirected,
    Stored,
    Unchanged,
    host_signal_of,
    is_throttle,
    observation_of,
    throttle_of,
)
from fetchfleet.worker.gate.gate import HostSignal, Observation, attempt_ended
from fetchfleet.worker.gate.state import Breaker, GateState
from fetchfleet.worker.lanes.parameters import LaneParameters
from fetchfleet.worker.policy.model import LanePolicy
from fetchfleet.worker.scheduler.probe import cheapest
from fetchfleet.worker.sink.index_entry import StoredAt, Validators

NOW_MS = 1_700_000_000_000
HOUR_MS = 3_600_000
POLICY = LanePolicy(attempts=3, retry_base_s=1, retry_cap_s=60)
GET = Fetch(url="http://a.example/")
POST = Fetch(url="http://a.example/", method="POST", body="x")
KEYED_POST = Fetch(url="http://a.example/", method="POST", headers={"Idempotency-Key": "k"})
UNSAFE_POST = Fetch(url="http://a.example/", method="POST", body="x", retry_unsafe=True)
HOP = Hop("GET", "http://b.example/")
STORED = Stored(status=200, at=StoredAt("a", 1, ""), validators=Validators("http://a.test/"))
STATUSES = range(100, 600)

FETCHES = st.sampled_from(
    [
        GET,
        POST,
        KEYED_POST,
        UNSAFE_POST,
        *(Fetch(url="http://a.example/", method=m) for m in ("PUT", "PATCH", "DELETE")),
    ]
)
ENTRIES = st.builds(
    Entry,
    id=st.just("0123456789abcdef-00000000"),
    deadline_ms=st.integers(NOW_MS - HOUR_MS, NOW_MS + HOUR_MS),
    fetch=FETCHES,
    attempts=st.integers(0, 5),
    throttles=st.integers(0, 10**9),
    interruptions=st.integers(0, 10**9),
    crashes=st.integers(0, MAX_CRASHES),
    last=st.none() | st.sampled_from(Reason),
    hop=st.none() | st.just(HOP),
    hops=st.integers(0, 10),
    begun=st.booleans(),
)
HAPPENED: st.SearchStrategy[AttemptOutcome] = st.one_of(
    st.just(STORED),
    st.builds(
        Answered,
        status=st.sampled_from(STATUSES) | st.sampled_from([304, 429, 500, 503]),
        wait_s=st.none() | st.floats(0.001, 1e6),
    ),
    st.builds(Failed, reason=st.sampled_from(Reason), sent=st.booleans(), final=st.booleans()),
    st.builds(
        Interrupted,
        reason=st.none() | st.sampled_from([Reason.DISK, Reason.INTERNAL]),
        wait_s=st.floats(0, 600),
    ),
    st.builds(Redirected, hop=st.just(HOP), hops=st.integers(1, 10), status=st.just(302)),
)
CHANCES = st.floats(0, 1, exclude_max=True)
SHUT_FOR_MS = st.integers(-HOUR_MS, 2 * HOUR_MS)


def entry(fetch: Fetch = GET, *, left_ms: int = HOUR_MS, **ledgers: int) -> Entry:
    waiting = Entry(id="0123456789abcdef-00000000", deadline_ms=NOW_MS + left_ms, fetch=fetch)
    return replace(waiting, **ledgers)


def decided(
    waiting: Entry,
    happened: AttemptOutcome,
    *,
    shut_ms: int = 0,
    retry_ms: int = 0,
    dead: bool = False,
    chance: float = 0.5,
    policy: LanePolicy = POLICY,
) -> Decision:
    host = HostState(opens_ms=NOW_MS + shut_ms, retry_ms=NOW_MS + retry_ms, dead=dead)
    return decide(waiting, happened, policy, NOW_MS, host, chance)


def failed(reason: Reason) -> Finish:
    return Finish(outcome=Outcome.FAILED, reason=reason)


def sent_and_unanswered() -> Iterator[AttemptOutcome]:
    """Yield every outcome after which it is unknown whether the host has processed the request."""
    yield from (Failed(reason=reason) for reason in Reason)
    yield from (Answered(status=status) for status in STATUSES if status not in {304, 429})
    yield from (Interrupted(), Interrupted(reason=Reason.DISK, wait_s=LaneParameters().disk_pause_s))


@given(st.sampled_from([200, 202, 404, 410, 501]), st.none() | st.floats(0, 100))
def test_a_status_of_retry_statuses_is_retried_like_a_temporary_failure(
    status: int, wait_s: float | None
) -> None:
    """By the policy or the fetch, whose empty list takes precedence. A throttle stays a throttle."""
    policy, happened = replace(POLICY, retry_statuses=(status, 429)), Answered(status=status, wait_s=wait_s)
    temporary = Answered(status=500, wait_s=wait_s)
    its_own, none = (entry(Fetch(url=GET.url, retry_statuses=of)) for of in ((status,), ()))

    assert decided(entry(), happened, policy=policy) == decided(entry(), temporary)
    assert decided(its_own, happened) == decided(its_own, temporary)
    assert decided(none, happened, policy=policy) == failed(Reason.HTTP_STATUS)
    assert decided(entry(), Answered(status=429), policy=policy) == decided(entry(), Answered(status=429))


def test_a_complete_body_is_stored() -> None:
    """It holds with any ledgers."""
    assert Finish(outcome=Outcome.STORED) == decided(entry(attempts=2, left_ms=-1), STORED)


def test_a_304_is_unchanged() -> None:
    """It holds with any stored body."""
    assert Finish(outcome=Outcome.UNCHANGED) == decided(entry(attempts=2), Unchanged(path="a", size_bytes=1))


@pytest.mark.parametrize("status", STATUSES)
def test_each_status_is_unchanged_a_throttle_a_retry_or_the_end(status: int) -> None:
    """304; 429; 408, 425 and every 5xx except 501 and 505; all others."""
    decision = decided(entry(), Answered(status=status))

    match status:
        case 304:
            assert Finish(outcome=Outcome.UNCHANGED) == decision
        case 429:
            assert isinstance(decision, Retry)
            assert (0, 1) == (decision.entry.attempts, decision.entry.throttles)
        case 501 | 505:
            assert failed(Reason.HTTP_STATUS) == decision
        case _ if status in {408, 425} or status >= 500:
            assert isinstance(decision, Retry)
            assert (1, 0) == (decision.entry.attempts, decision.entry.throttles)
        case _:
            assert failed(Reason.HTTP_STATUS) == decision


@pytest.mark.parametrize("status", STATUSES)
def test_a_retry_after_makes_a_throttle_of_403_and_503_and_delays_other_retries(status: int) -> None:
    """A throttle charges no attempt and waits for its lane. 413 is temporary."""
    without, decision = (
        decided(entry(), Answered(status=status)),
        decided(entry(), Answered(status=status, wait_s=20.0)),
    )

    match status:
        case 403 | 429 | 503:
            assert isinstance(decision, Retry)
            assert (0, 1, 0) == (decision.entry.attempts, decision.entry.throttles, decision.wait_s)
        case 413:
            assert failed(Reason.HTTP_STATUS) == without
            assert isinstance(decision, Retry)
            assert decision.entry.attempts == 1
        case _:
            assert type(without) is type(decision)
    if isinstance(decision, Retry) and decision.entry.attempts:
        assert 20.0 <= decision.wait_s <= 22.0


@pytest.mark.parametrize(
    ("asked_s", "chance", "cap_s", "wait_s"),
    [
        (4.0, 0.0, 3600, 4.0),
        (4.0, 0.5, 3600, 4.2),
        (0.1, 0.5, 3600, 0.5),
        (1e6, 0.0, 3600, 3600.0),
        (1e6, 0.0, 0.2, 0.2),
    ],
)
def test_a_failure_with_retry_after_waits_for_the_longer_of_it_and_its_back_off(
    asked_s: float, chance: float, cap_s: float, wait_s: float
) -> None:
    """The cap applies, and jitter only lengthens the wait. The back-off here is 1 s."""
    policy = replace(POLICY, throttle_cap_s=cap_s)
    waiting = entry(left_ms=2 * HOUR_MS)
    decision = decided(waiting, Answered(status=500, wait_s=asked_s), chance=chance, policy=policy)

    assert isinstance(decision, Retry)
    assert wait_s == pytest.approx(decision.wait_s)


def test_a_failure_with_retry_after_beyond_the_deadline_ends_the_fetch() -> None:
    """Another request would come too early or too late."""
    assert failed(Reason.DEADLINE) == decided(entry(left_ms=4000), Answered(status=502, wait_s=4.0))


def test_a_retry_after_does_not_make_a_request_repeatable() -> None:
    """A failed POST ends. A throttled one is sent again."""
    assert failed(Reason.HTTP_STATUS) == decided(entry(POST), Answered(status=500, wait_s=1.0))
    assert isinstance(decided(entry(POST), Answered(status=403, wait_s=1.0)), Retry)


@pytest.mark.parametrize(
    ("status", "wait_s", "throttle"),
    [
        (429, None, True),
        (429, 5.0, True),
        (503, 5.0, True),
        (503, None, False),
        (403, 5.0, True),
        (403, None, False),
        (500, 5.0, False),
        (529, 5.0, False),
    ],
)
def test_a_throttle_is_429_or_a_403_or_503_with_retry_after(
    status: int, wait_s: float | None, *, throttle: bool
) -> None:
    """Without it, a 503 is a failure and a 403 a final response."""
    answer = Answered(status=status, wait_s=wait_s)

    assert is_throttle(status, wait_s) is throttle
    assert (answer if throttle else None) == throttle_of(answer)


@pytest.mark.parametrize("status", range(500, 600))
def test_the_breaker_counts_the_statuses_that_are_retried(status: int) -> None:
    """501 and 505 are final: the host does not support the request."""
    seen = host_signal_of(Answered(status=status))

    assert (seen is HostSignal.ANSWERED) is (status in {501, 505})
    assert (seen is HostSignal.ANSWERED) is isinstance(decided(entry(), Answered(status=status)), Finish)


@pytest.mark.parametrize(
    ("happened", "seen"),
    [
        (STORED, HostSignal.ANSWERED),
        (Redirected(hop=HOP, hops=1, status=302), HostSignal.ANSWERED),
        (Answered(status=304), HostSignal.ANSWERED),
        (Unchanged(), HostSignal.ANSWERED),
        (Answered(status=404), HostSignal.ANSWERED),
        (Answered(status=408), HostSignal.ANSWERED),
        (Answered(status=429), HostSignal.REFUSED),
        (Answered(status=499), HostSignal.ANSWERED),
        (Answered(status=500), HostSignal.FAILED),
        (Answered(status=503), HostSignal.REFUSED),
        (Answered(status=503, wait_s=1.0), HostSignal.REFUSED),
        (Answered(status=403), HostSignal.ANSWERED),
        (Answered(status=403, wait_s=1.0), HostSignal.REFUSED),
        (Answered(status=501), HostSignal.ANSWERED),
        (Answered(status=522), HostSignal.FAILED),
        (Answered(status=599), HostSignal.FAILED),
        (Failed(reason=Reason.CONNECT), HostSignal.FAILED),
        (Failed(reason=Reason.READ_TIMEOUT), HostSignal.TIMED_OUT),
        (Failed(reason=Reason.TLS), HostSignal.FAILED),
        (Failed(reason=Reason.TOO_LARGE), HostSignal.ANSWERED),
        (Failed(reason=Reason.DIGEST_MISMATCH), HostSignal.ANSWERED),
        (Failed(reason=Reason.BAD_DEST), HostSignal.ANSWERED),
        (Failed(reason=Reason.BAD_ENCODING), HostSignal.ANSWERED),
        (Failed(reason=Reason.BAD_LINE, line=7), HostSignal.ANSWERED),
        (Failed(reason=Reason.EGRESS_REFUSED), HostSignal.NOTHING),
        (Failed(reason=Reason.POOL_TIMEOUT), HostSignal.NOTHING),
        (Failed(reason=Reason.TOO_SLOW), HostSignal.TIMED_OUT),
        (Failed(reason=Reason.NO_BODY_FILE), HostSignal.NOTHING),
        (Failed(reason=Reason.INTERNAL), HostSignal.NOTHING),
        (Interrupted(), HostSignal.NOTHING),
        (Interrupted(reason=Reason.DISK), HostSignal.NOTHING),
    ],
)
def test_only_failures_of_the_host_count_against_it(happened: AttemptOutcome, seen: HostSignal) -> None:
    """4xx are responses, throttles and 503 are refusals. Faults of the worker have no effect."""
    assert host_signal_of(happened) is seen


LATE, HERE = 80.0, 3


@pytest.mark.parametrize(
    ("happened", "signal"),
    [
        (STORED, Observation(HostSignal.ANSWERED, NOW_MS, HERE, LATE, "200")),
        (
            Redirected(hop=HOP, hops=1, status=302),
            Observation(HostSignal.ANSWERED, NOW_MS, HERE, LATE, "302"),
        ),
        (Answered(status=404), Observation(HostSignal.ANSWERED, NOW_MS, HERE, LATE, "404")),
        (Answered(status=429), Observation(HostSignal.REFUSED, NOW_MS, HERE, None, "429", throttle=True)),
        (
            Answered(status=503, wait_s=1.0),
            Observation(HostSignal.REFUSED, NOW_MS, HERE, None, "503", throttle=True),
        ),
        (Answered(status=503), Observation(HostSignal.REFUSED, NOW_MS, HERE, None, "503")),
        (Answered(status=500), Observation(HostSignal.FAILED, NOW_MS, HERE, None, "500")),
        (Failed(reason=Reason.READ), Observation(HostSignal.FAILED, NOW_MS, HERE, None, "read")),
        (
            Failed(reason=Reason.TOTAL_TIMEOUT),
            Observation(HostSignal.TIMED_OUT, NOW_MS, HERE, None, "total_timeout"),
        ),
        (
            Failed(reason=Reason.DNS_NXDOMAIN),
            Observation(HostSignal.NAMELESS, NOW_MS, HERE, None, "dns_nxdomain"),
        ),
        (
            Failed(reason=Reason.TOO_LARGE, status=200),
            Observation(HostSignal.ANSWERED, NOW_MS, HERE, None, "too_large"),
        ),
        (Interrupted(reason=Reason.DISK), Observation(HostSignal.NOTHING, NOW_MS, HERE)),
    ],
)
def test_each_outcome_gives_its_signal_to_the_gate(happened: AttemptOutcome, signal: Observation) -> None:
    """Only a good response has a latency: a quick refusal does not make a fast host."""
    assert signal == observation_of(happened, NOW_MS, HERE, LATE)


@pytest.mark.parametrize(
    ("happened", "fetch_id"),
    [
        (Answered(status=500), "a"),
        (Failed(reason=Reason.READ), "a"),
        (Failed(reason=Reason.CONNECT, sent=False), ""),
        (Failed(reason=Reason.DNS_NXDOMAIN, sent=False), ""),
    ],
)
def test_a_failed_connection_is_not_a_failure_of_its_fetch(happened: AttemptOutcome, fetch_id: str) -> None:
    """The breaker counts each failed connection, and each failed fetch once."""
    assert fetch_id == observation_of(happened, NOW_MS, HERE, LATE, "a").fetch_id


@given(HAPPENED)
def test_every_outcome_has_a_signal(happened: AttemptOutcome) -> None:
    """No failure has a latency."""
    signal = observation_of(happened, NOW_MS, HERE, LATE)

    assert signal.signal is host_signal_of(happened)
    assert signal.latency_ms is None or signal.signal is HostSignal.ANSWERED
    assert signal.throttle is (throttle_of(happened) is not None)


def test_every_5xx_but_501_and_505_counts_and_no_other_status() -> None:
    """It holds for each status from 100 to 599, without a Retry-After."""
    fragile = LanePolicy(breaker_failures=1)
    signals = {status: observation_of(Answered(status=status), NOW_MS, 1, 5.0) for status in STATUSES}
    states = {
        status: attempt_ended(GateState(), fragile, signal, NOW_MS, 0.0) for status, signal in signals.items()
    }
    counted = [status for status, state in states.items() if state.breaker is Breaker.OPEN]

    assert [status for status in range(500, 600) if status not in {501, 505}] == counted


def url(number: int, **fields: Any) -> Fetch:
    return Fetch(url=f"http://a.example/{number}", **fields)


@pytest.mark.parametrize(
    ("fetches", "best"),
    [
        ([url(0)], 0),
        ([url(0), url(1)], 0),
        ([url(0), url(1, method="HEAD")], 1),
        ([url(0, method="PUT", body="x"), url(1, method="DELETE"), url(2)], 2),
        ([url(0, method="PUT", body="x"), url(1, method="DELETE")], 1),
        ([url(0, method="PUT", body="xx"), url(1, method="PUT", body="x")], 1),
        ([url(0), url(1, max_bytes=9), url(2, max_bytes=5)], 2),
        ([url(0, max_bytes=5), url(1, method="HEAD")], 1),
        ([url(0, method="OPTIONS"), url(1, method="GET")], 0),
    ],
)
def test_the_probe_is_the_cheapest_fetch(fetches: list[Fetch], best: int) -> None:
    """HEAD before GET, no body before a body, a small response before an unknown one."""
    assert best == cheapest([entry(fetch) for fetch in fetches])


def test_the_probe_with_the_fewest_failures_goes_first() -> None:
    """One URL that always fails is not the probe every time."""
    waiting = [entry(url(0), attempts=2), entry(url(1), attempts=1), entry(url(2), attempts=1)]

    assert 1 == cheapest(waiting)
    assert 3 == cheapest([*waiting, entry(url(3, method="HEAD"), attempts=4)])


def test_a_probe_is_judged_by_its_next_request() -> None:
    """After a redirect, that is the hop: this POST has become a GET."""
    assert 1 == cheapest([entry(POST), replace(entry(POST), hop=HOP, hops=1)])


@pytest.mark.parametrize(("attempts", "wait_s"), [(0, 0.5), (1, 1.0)])
def test_a_failure_is_retried_after_a_wait_that_doubles(attempts: int, wait_s: float) -> None:
    """The random part is one half here, the base 1 s."""
    before = entry(attempts=attempts, throttles=7, interruptions=8)
    after = replace(before, attempts=attempts + 1, last=Reason.READ)

    assert Retry(entry=after, wait_s=wait_s, reason=Reason.READ) == decided(
        before, Failed(reason=Reason.READ)
    )


@pytest.mark.parametrize(("retry_ms", "wait_s"), [(-1, 0.5), (499, 0.5), (501, 0.501), (9000, 9.0)])
def test_a_retry_waits_for_the_budget_of_its_lane(retry_ms: int, wait_s: float) -> None:
    """Its back-off is half a second here: the longer wait counts."""
    decision = decided(entry(), Failed(reason=Reason.READ), retry_ms=retry_ms)

    assert isinstance(decision, Retry)
    assert wait_s == decision.wait_s


@pytest.mark.parametrize("happened", [Answered(status=429), Interrupted(wait_s=0.0)])
def test_only_failures_need_the_budget(happened: AttemptOutcome) -> None:
    """A throttled fetch waits for its lane, an interrupted one does not wait."""
    decision = decided(entry(), happened, retry_ms=9000)

    assert isinstance(decision, Retry)
    assert 0 == decision.wait_s


def test_a_budget_beyond_the_deadline_ends_the_fetch() -> None:
    """The retry would be too late."""
    assert failed(Reason.DEADLINE) == decided(entry(left_ms=5000), Failed(reason=Reason.READ), retry_ms=5000)


@pytest.mark.parametrize(
    ("happened", "reason"),
    [
        (Failed(reason=Reason.CONNECT), Reason.HOST_DEAD),
        (Failed(reason=Reason.DNS_NXDOMAIN, sent=False), Reason.HOST_DEAD),
        (Answered(status=503), Reason.HOST_DEAD),
        (Failed(reason=Reason.TLS, final=True), Reason.TLS),
        (Answered(status=404), Reason.HTTP_STATUS),
    ],
)
def test_a_retry_at_a_dead_host_ends_the_fetch(happened: AttemptOutcome, reason: Reason) -> None:
    """A fetch that ends anyway keeps its own reason."""
    assert failed(reason) == decided(entry(), happened, dead=True)


def test_a_last_attempt_at_a_dead_host_keeps_its_reason() -> None:
    """A request that may not be repeated keeps it too."""
    assert failed(Reason.READ) == decided(entry(attempts=2), Failed(reason=Reason.READ), dead=True)
    assert failed(Reason.READ) == decided(entry(POST), Failed(reason=Reason.READ), dead=True)


@pytest.mark.parametrize(
    "happened", [STORED, Answered(status=429), Interrupted(), Redirected(hop=HOP, hops=1, status=302)]
)
def test_a_responding_host_is_not_dead(happened: AttemptOutcome) -> None:
    """Interruptions by the worker have no effect."""
    assert decided(entry(), happened) == decided(entry(), happened, dead=True)


def test_the_last_failed_attempt_ends_the_fetch() -> None:
    """Three are allowed, two were made."""
    assert failed(Reason.READ) == decided(entry(attempts=2), Failed(reason=Reason.READ))


def test_a_final_failure_ends_the_fetch_at_once() -> None:
    """A retry would fail again."""
    assert failed(Reason.TOO_LARGE) == decided(entry(), Failed(reason=Reason.TOO_LARGE, final=True))


@pytest.mark.parametrize(("shut_ms", "wait_s"), [(2500, 2.5), (1, 0.001), (0, 0.0), (-1, 0.0)])
def test_a_throttled_fetch_waits_until_its_lane_opens(shut_ms: int, wait_s: float) -> None:
    """It has no wait of its own."""
    before = entry(attempts=2)
    after = replace(before, throttles=1, last=Reason.THROTTLED)

    assert Retry(entry=after, wait_s=wait_s, reason=Reason.THROTTLED) == decided(
        before, Answered(status=429), shut_ms=shut_ms
    )


def test_a_full_disk_charges_no_attempt() -> None:
    """The host is not at fault."""
    before = entry(attempts=2)
    after = replace(before, interruptions=1)

    assert Retry(entry=after, wait_s=5.0, reason=Reason.DISK) == decided(
        before, Interrupted(reason=Reason.DISK, wait_s=5.0)
    )


@pytest.mark.parametrize(("before", "wait_s"), [(0, 5.0), (1, 10.0), (3, 40.0), (4, 80.0), (1000, 80.0)])
def test_repeated_disk_errors_delay_the_retry(before: int, wait_s: float) -> None:
    """Each retry makes the host send the body again. A stop of the worker does not lengthen the wait."""
    held = Interrupted(reason=Reason.DISK, wait_s=5.0)

    assert decided(entry(interruptions=before), held) == Retry(
        entry=entry(interruptions=before + 1), wait_s=wait_s, reason=Reason.DISK
    )
    assert decided(entry(interruptions=before), Interrupted(wait_s=5.0)) == Retry(
        entry=entry(interruptions=before + 1), wait_s=5.0, reason=None
    )


def test_a_redirect_to_another_host_moves_the_fetch_with_its_ledgers() -> None:
    """No attempt is charged, because the host responded."""
    before = entry(attempts=1, throttles=2)
    after = replace(before, hop=HOP, hops=3)

    assert MoveLane(entry=after) == decided(before, Redirected(hop=HOP, hops=3, status=302))


@pytest.mark.parametrize(("asked_s", "wait_s"), [(20.0, 21.0), (1e6, 3780.0)])
def test_a_redirect_with_retry_after_is_followed_after_that_wait(asked_s: float, wait_s: float) -> None:
    """RFC 9110 §10.2.3. The cap is that of a throttle, and no attempt is charged."""
    before = entry(attempts=1, throttles=2, left_ms=2 * HOUR_MS)
    after = replace(before, hop=HOP, hops=3)

    decision = decided(before, Redirected(hop=HOP, hops=3, status=302, wait_s=asked_s))

    assert Retry(entry=after, wait_s=wait_s, reason=None) == decision


@pytest.mark.parametrize(
    "happened", [Failed(reason=Reason.READ), Answered(status=429), Interrupted(wait_s=1.0)]
)
def test_a_retry_goes_to_the_target_of_the_redirect(happened: AttemptOutcome) -> None:
    """The fetch is in that host's lane, and a POST that became a GET stays a GET."""
    moved = replace(entry(POST), hop=HOP, hops=1)
    decision = decided(moved, happened)

    assert isinstance(decision, Retry)
    assert (HOP, 1) == (decision.entry.request, decision.entry.hops)


@pytest.mark.parametrize(
    ("left_ms", "waits"), [(499, False), (500, False), (501, True), (0, False), (-1, False)]
)
def test_a_retry_after_the_deadline_ends_the_fetch(left_ms: int, *, waits: bool) -> None:
    """The wait is 500 ms here. A retry at the deadline is too late."""
    decision = decided(entry(left_ms=left_ms), Failed(reason=Reason.READ))

    assert waits is isinstance(decision, Retry)
    assert waits or decision == failed(Reason.DEADLINE)


@pytest.mark.parametrize(
    ("happened", "reason"),
    [
        (Failed(reason=Reason.READ), Reason.DEADLINE),
        (Answered(status=500), Reason.DEADLINE),
        (Answered(status=429), Reason.THROTTLED),
        (Interrupted(reason=Reason.DISK, wait_s=5.0), Reason.DISK),
        (Interrupted(), Reason.DEADLINE),
    ],
)
def test_an_expired_fetch_has_the_reason_of_its_wait(happened: AttemptOutcome, reason: Reason) -> None:
    """`throttled` and `disk` tell the caller where the cause is."""
    assert failed(reason) == decided(entry(left_ms=0), happened, shut_ms=1000)


@pytest.mark.parametrize(
    ("method", "may"),
    [
        *(("GET", True), ("HEAD", True), ("OPTIONS", True), ("PUT", True), ("DELETE", True)),
        *(("POST", False), ("PATCH", False)),
    ],
)
def test_the_method_decides_if_a_request_may_be_repeated(method: str, *, may: bool) -> None:
    """RFC 9110 §9.2.2. An Idempotency-Key allows every method."""
    plain = Fetch(url="http://a.example/", method=method)
    keyed = Fetch(url="http://a.example/", method=method, headers={"idempotency-KEY": "k"})

    assert may_repeat(entry(plain)) is (method in IDEMPOTENT_METHODS) is may
    assert may_repeat(entry(keyed))


@pytest.mark.parametrize("method", ["POST", "PATCH"])
def test_a_request_that_may_have_reached_the_host_is_repeated_only_if_idempotent(method: str) -> None:
    """A POST is not retried after a failure, a retryable status, a full disk or a stop of the worker."""
    post = entry(Fetch(url="http://a.example/", method=method))
    repeated = [happened for happened in sent_and_unanswered() if isinstance(decided(post, happened), Retry)]

    assert [] == repeated


def test_a_post_is_repeated_when_it_was_never_sent_or_was_refused() -> None:
    """After a failed connection or a throttle, the host has done nothing."""
    assert isinstance(decided(entry(POST), Failed(reason=Reason.CONNECT, sent=False)), Retry)
    assert isinstance(decided(entry(POST), Answered(status=429)), Retry)
    assert isinstance(decided(entry(POST), Answered(status=503, wait_s=1.0)), Retry)


def test_a_post_with_an_idempotency_key_is_repeated_like_a_get() -> None:
    """The caller permits it."""
    for happened in sent_and_unanswered():
        assert type(decided(entry(KEYED_POST), happened)) is type(decided(entry(), happened))


def test_a_post_with_retry_unsafe_is_repeated_like_a_get() -> None:
    """It is repeated after a crash too."""
    for happened in sent_and_unanswered():
        assert type(decided(entry(UNSAFE_POST), happened)) is type(decided(entry(), happened))
    assert poisoned(crashed(entry(UNSAFE_POST))) is None


def test_an_interrupted_post_ends_without_a_retry() -> None:
    """After a crash or a deploy, it is unknown whether the host has processed it."""
    assert failed(Reason.INTERRUPTED) == poisoned(crashed(entry(POST, begun=True)))
    assert failed(Reason.INTERRUPTED) == poisoned(interrupted(entry(POST, begun=True)))
    assert poisoned(entry(POST)) is None
    assert poisoned(crashed(entry(KEYED_POST))) is None


def test_a_crash_counts_as_an_interruption_and_as_a_crash() -> None:
    """A deploy counts as an interruption only."""
    assert entry(attempts=1, interruptions=1, crashes=1) == crashed(entry(attempts=1))
    assert entry(attempts=1, interruptions=1) == interrupted(entry(attempts=1))


@pytest.mark.parametrize("cut_off", [crashed, interrupted])
@given(ENTRIES)
def test_a_fetch_that_was_not_started_is_not_charged(cut_off: Callable[[Entry], Entry], fetch: Entry) -> None:
    """Only a fetch that needs a start marker is exempt: a claimed POST, or one with an earlier crash."""
    after = cut_off(fetch)
    if needs_start_marker(fetch) and not fetch.begun:
        assert fetch == after
    else:
        assert (fetch.interruptions + 1, False) == (after.interruptions, after.begun)


def test_only_a_started_fetch_becomes_poison() -> None:
    """Of two fetches with two crashes, the started one is poison and the other waits."""
    assert failed(Reason.POISON) == poisoned(crashed(entry(crashes=2, begun=True)))
    assert poisoned(crashed(entry(crashes=2))) is None
    assert poisoned(crashed(entry(crashes=1))) is None


@pytest.mark.parametrize(
    ("crashes", "end"), [(0, None), (2, None), (3, failed(Reason.POISON)), (4, failed(Reason.POISON))]
)
def test_three_crashes_end_a_fetch(crashes: int, end: Finish | None) -> None:
    """It holds with any number of other interruptions."""
    assert end == poisoned(entry(crashes=crashes, interruptions=99))


@pytest.mark.parametrize(
    ("left_ms", "last", "end"),
    [
        (1, None, None),
        (0, None, failed(Reason.DEADLINE)),
        (-1, Reason.READ, failed(Reason.DEADLINE)),
        (-1, Reason.THROTTLED, failed(Reason.THROTTLED)),
        (1, Reason.THROTTLED, None),
    ],
)
def test_a_fetch_ends_at_its_deadline(left_ms: int, last: Reason | None, end: Finish | None) -> None:
    """A throttled one has its own reason."""
    assert end == expired(replace(entry(left_ms=left_ms), last=last), NOW_MS)


@pytest.mark.parametrize(("left_ms", "end"), [(1, None), (0, failed(Reason.THROTTLED))])
def test_a_fetch_that_expires_in_a_cool_down_is_throttled(left_ms: int, end: Finish | None) -> None:
    """It holds even if the cool-down came from another fetch."""
    assert end == expired(entry(left_ms=left_ms), NOW_MS, cooling=True)


@pytest.mark.parametrize("fetch", [GET, POST, KEYED_POST])
@pytest.mark.parametrize("left_ms", [-1, 0, 1, HOUR_MS])
def test_every_status_with_every_ledger_yields_a_decision(fetch: Fetch, left_ms: int) -> None:
    """It holds with and without a wait, early and late, on each attempt and one beyond."""
    for status, attempts, wait_s in product(STATUSES, range(POLICY.attempts + 1), (None, 1.0)):
        waiting = entry(fetch, left_ms=left_ms, attempts=attempts)

        assert isinstance(decided(waiting, Answered(status=status, wait_s=wait_s)), Finish | Retry)


@given(ENTRIES, HAPPENED, SHUT_FOR_MS, CHANCES)
def test_no_decision_lets_a_fetch_wait_past_its_deadline(
    waiting: Entry, happened: AttemptOutcome, shut_ms: int, chance: float
) -> None:
    """One deadline bounds all three ledgers, and no wait is negative."""
    decision = decided(waiting, happened, shut_ms=shut_ms, chance=chance)
    wait_s = decision.wait_s if isinstance(decision, Retry) else 0

    assert wait_s >= 0
    assert not isinstance(decision, Retry) or NOW_MS + wait_s * 1000 < waiting.deadline_ms


@given(ENTRIES, HAPPENED, SHUT_FOR_MS, CHANCES)
def test_exactly_one_ledger_changes_when_a_fetch_waits_again(
    waiting: Entry, happened: AttemptOutcome, shut_ms: int, chance: float
) -> None:
    """Throttles and interruptions charge no attempt, and the fetch stays unchanged."""
    decision = decided(waiting, happened, shut_ms=shut_ms, chance=chance)
    if not isinstance(decision, Retry):
        return

    after = decision.entry
    ledger = {Answered: "attempts", Failed: "attempts", Interrupted: "interruptions"}[type(happened)]
    ledger = "throttles" if throttle_of(happened) else ledger
    changed = replace(waiting, last=after.last, **{ledger: getattr(waiting, ledger) + 1})
    assert changed == after


@given(ENTRIES, st.lists(HAPPENED, max_size=30), st.integers(1, 5))
def test_attempts_are_bounded(waiting: Entry, story: list[AttemptOutcome], attempts: int) -> None:
    """A fetch that waits again has an attempt left."""
    policy = LanePolicy(attempts=attempts)
    waiting = replace(waiting, attempts=0)
    for happened in story:
        decision = decided(waiting, happened, policy=policy)
        if isinstance(decision, Finish):
            return
        waiting = decision.entry

        assert waiting.attempts < attempts


@given(ENTRIES, HAPPENED, SHUT_FOR_MS, CHANCES)
def test_an_unrepeatable_request_waits_only_if_the_host_did_nothing(
    waiting: Entry, happened: AttemptOutcome, shut_ms: int, chance: float
) -> None:
    """It was not sent, or it was throttled."""
    decision = decided(waiting, happened, shut_ms=shut_ms, chance=chance)
    unsent = isinstance(happened, Failed) and not happened.sent
    harmless = unsent or throttle_of(happened) is not None

    assert may_repeat(waiting) or harmless or not isinstance(decision, Retry)
