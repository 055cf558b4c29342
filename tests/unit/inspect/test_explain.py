"""The reason a lane waits, as a word and as a sentence."""

import time
from datetime import UTC

import pytest
from msgspec.structs import replace

from fetchfleet.worker.gate.gate import PAUSE_LOOK_MS, WaitReason
from fetchfleet.worker.gate.state import Breaker, GateState, RecordedAttempt
from fetchfleet.worker.inspect.explain import lane_state, ordinal, why_closed, why_paused
from fetchfleet.worker.inspect.snapshot import LaneSnapshot
from fetchfleet.worker.policy.model import LanePolicy, Range
from fetchfleet.worker.policy.pauses import Stop

NOW_MS = 1_000_000
LATER_MS = NOW_MS + 5_000
WAITING = LaneSnapshot("a.example", 0, 3, "", 0.0)
BUSY = replace(WAITING, in_flight=2)
POLICY = LanePolicy(concurrency=2)
OPEN = GateState()
COOLING = GateState(
    cool_until_ms=LATER_MS,
    answers=(RecordedAttempt(1, "200"), RecordedAttempt(2, "503"), RecordedAttempt(3, "404")),
)
BROKEN = GateState(
    breaker=Breaker.OPEN, open_until_ms=LATER_MS, opens=2, answers=(RecordedAttempt(1, "connect"),)
)
COOLED_BY_403 = GateState(
    cool_until_ms=LATER_MS,
    cool_since_ms=2,
    answers=(RecordedAttempt(1, "503"), RecordedAttempt(2, "403"), RecordedAttempt(3, "403")),
)
PACED = GateState(paced_ms=float(LATER_MS))
SPENT = GateState(paced_ms=float(LATER_MS), quota_until_ms=LATER_MS, quota_interval_ms=10.0)


def failing(*answers: str) -> GateState:
    """Return a host whose breaker is open after these outcomes."""
    return replace(BROKEN, answers=tuple(RecordedAttempt(1, what) for what in answers))


def state_of(
    snapshot: LaneSnapshot = WAITING,
    state: GateState = OPEN,
    policy: LanePolicy = POLICY,
    *,
    retry_ms: int | None = None,
    has_workers: bool = True,
) -> tuple[str, int | None]:
    """Return the state, and its end."""
    word, until_ms, why = lane_state(
        snapshot, state, policy, NOW_MS, retry_ms=retry_ms, has_workers=has_workers
    )
    assert why
    return word, until_ms


@pytest.mark.parametrize(
    ("in_flight", "ranges", "text"),
    [
        (1, 0, "1 of 2 in flight"),
        (1, 1, "2 of 2 in flight (1 fetch, 1 further range), the concurrency limit"),
        (2, 0, "2 of 2 in flight, the concurrency limit"),
        (2, 3, "5 of 2 in flight (2 fetches, 3 further ranges), the concurrency limit"),
    ],
)
def test_further_ranges_count_against_the_concurrency(in_flight: int, ranges: int, text: str) -> None:
    """As in the gate."""
    lane = replace(WAITING, in_flight=in_flight, ranges=ranges)

    assert lane_state(lane, OPEN, POLICY, NOW_MS, retry_ms=None, has_workers=True) == ("busy", None, text)


def test_a_lane_without_fetches_is_idle() -> None:
    """It holds with any state of its gate."""
    assert ("idle", None) == state_of(replace(WAITING, waiting=0), COOLING)


@pytest.mark.parametrize(
    ("state", "policy", "expected"),
    [
        (COOLING, POLICY, ("cooling", LATER_MS)),
        (BROKEN, POLICY, ("breaker", LATER_MS)),
        (PACED, replace(POLICY, rate_per_s=0.001), ("pacing", LATER_MS)),
        (PACED, POLICY, ("waiting", None)),
        (SPENT, POLICY, ("quota", LATER_MS)),
        (SPENT, replace(POLICY, quota=False), ("waiting", None)),
        (COOLING, replace(POLICY, paused=True), ("paused", None)),
        (replace(COOLING, cool_until_ms=NOW_MS), POLICY, ("waiting", None)),
    ],
)
def test_a_closed_lane_has_a_reason_and_an_end(
    state: GateState, policy: LanePolicy, expected: tuple[str, int | None]
) -> None:
    """The longest wait decides. A pause has no end."""
    assert expected == state_of(WAITING, state, policy)


def test_a_busy_lane_names_the_use_of_its_concurrency() -> None:
    """Two of two is the limit, for a fixed and for an adapted concurrency."""
    explained = lane_state(BUSY, OPEN, POLICY, NOW_MS, retry_ms=None, has_workers=True)
    adaptive = lane_state(
        BUSY, OPEN, LanePolicy(concurrency=Range()), NOW_MS, retry_ms=None, has_workers=True
    )

    assert ("busy", None, "2 of 2 in flight, the concurrency limit") == explained
    assert ("busy", None, "2 of 4 in flight") == adaptive


def test_a_waiting_lane_names_its_cause() -> None:
    """It waits for a worker, for the time of a retry, or for its turn."""
    assert ("no worker", None) == state_of(has_workers=False)
    assert ("retry", LATER_MS) == state_of(retry_ms=LATER_MS)
    assert ("waiting", None) == state_of()
    assert ("no worker", None) == state_of(retry_ms=LATER_MS, has_workers=False)


def test_the_reason_of_the_worker_counts_without_a_policy_file() -> None:
    """The command may not have the policy file of the workers."""
    paced = replace(WAITING, why="pacing", opens_in_s=5.0)

    assert ("pacing", LATER_MS) == state_of(paced, retry_ms=LATER_MS)
    assert ("retry", LATER_MS) == state_of(replace(paced, why="retry"), retry_ms=LATER_MS)


@pytest.mark.parametrize(
    ("why", "state", "words"),
    [
        (WaitReason.COOL_DOWN, COOLING, "asked to back off with 503"),
        (WaitReason.COOL_DOWN, COOLED_BY_403, "asked to back off with 403"),
        (WaitReason.COOL_DOWN, OPEN, "asked to back off"),
        (
            WaitReason.BREAKER,
            BROKEN,
            "does not respond (connect); its circuit breaker is open for the 2nd time",
        ),
        (WaitReason.BREAKER, replace(BROKEN, nameless=True), "its name does not exist"),
        (WaitReason.BREAKER, OPEN, "no response"),
        (
            WaitReason.BREAKER,
            failing("200", "500", "404"),
            "the host responds with 500;",
        ),
        (WaitReason.BREAKER, failing("connect", "522", "501"), "the host responds with 522;"),
        (WaitReason.BREAKER, failing("500", "first_byte_timeout"), "does not respond (first_byte_timeout)"),
        (WaitReason.BREAKER, failing("truncated", "too_large"), "does not respond properly (truncated)"),
        (WaitReason.BREAKER, failing("200", "of a newer worker"), "no response"),
        (WaitReason.BREAKER, failing("200", "tls"), "the TLS connection to the host fails (tls);"),
        (
            WaitReason.BREAKER,
            replace(BROKEN, last_failure="tls, certificate verify failed"),
            "the TLS connection to the host fails (tls, certificate verify failed);",
        ),
        (
            WaitReason.BREAKER,
            replace(BROKEN, last_failure="connect, Connection refused"),
            "the host does not respond (connect, Connection refused);",
        ),
        (WaitReason.BREAKER, replace(BROKEN, last_failure="status 503"), "the host responds with 503;"),
        (WaitReason.RATE_LIMIT, PACED, "give their file with --policy"),
        (WaitReason.QUOTA, SPENT, "RateLimit"),
        (WaitReason.PAUSED, OPEN, "fetchfleet resume"),
    ],
)
def test_each_reason_has_its_sentence(why: WaitReason, state: GateState, words: str) -> None:
    """The sentence names the last response that led to it, and the remedy if there is one."""
    assert words in why_closed(why, state, POLICY)


def test_a_pace_is_named_as_the_policy_has_it() -> None:
    """Integer rates have no fraction."""
    assert "allows 5 requests" in why_closed(WaitReason.RATE_LIMIT, PACED, LanePolicy(rate_per_s=5.0))
    assert "allows 0.5 requests" in why_closed(WaitReason.RATE_LIMIT, PACED, LanePolicy(rate_per_s=0.5))


def test_a_pause_is_checked_again_soon() -> None:
    """A missed resume takes effect then."""
    assert 0 < PAUSE_LOOK_MS <= 3_600_000


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        *[(0, "0th"), (1, "1st"), (2, "2nd"), (3, "3rd"), (4, "4th")],
        *[(10, "10th"), (11, "11th"), (12, "12th"), (13, "13th"), (21, "21st"), (22, "22nd")],
        *[(101, "101st"), (111, "111th"), (113, "113th")],
    ],
)
def test_ordinals(number: int, expected: str) -> None:
    """Eleven to thirteen are unlike one to three, in any hundred."""
    assert expected == ordinal(number)


def test_times_are_local_in_commands_and_utc_on_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another day has its date."""
    monkeypatch.setenv("TZ", "XXX-5")
    time.tzset()
    try:
        stop = Stop("a.example", in_file=False, since_ms=1_700_000_000_000)

        assert "paused since 2023-11-15 03:13:20; " in why_paused("a.example", stop)
        assert "paused since 2023-11-14 22:13:20; " in why_paused("a.example", stop, UTC)
    finally:
        monkeypatch.undo()
        time.tzset()
