"""Workers that no longer send heartbeats, in words."""

from msgspec.structs import replace

from fetchfleet.jobs import keys
from fetchfleet.worker.inspect.problems import Severity, vanished_problems
from fetchfleet.worker.inspect.workers.silence import SILENT_MS, Heartbeats

NOW_MS = 1_796_043_922_000
ALIVE, DEAD, GONE, DRAINED = (f"{name}-0a1b2c3d" for name in ("alive", "w6", "gone", "drained"))
SEEN = Heartbeats(
    now_ms=NOW_MS,
    last_ms={ALIVE: NOW_MS - 1_000, DEAD: NOW_MS - 3_700, "about-to-start": NOW_MS - 4_000},
    reports={ALIVE, DEAD, DRAINED},
)


def test_a_lane_of_a_silent_worker_has_the_time_of_the_takeover() -> None:
    """A worker that was removed from the list has been silent for longer than its entry lasts."""
    rest = "another worker takes over when its lease ends, in at most 4 s"

    assert f"held by w6, which has sent no heartbeat for 3.7 s; {rest}" == SEEN.holder_text(
        DEAD, NOW_MS + 2_500
    )
    assert "no heartbeat for more than 5 s; another" in SEEN.holder_text(GONE, NOW_MS + 2_500)
    assert "in at most 1 s" in SEEN.holder_text(GONE, None)


def test_a_lane_of_another_worker_has_no_such_text() -> None:
    """A drained worker is not listed, but publishes its report."""
    late = replace(SEEN, now_ms=NOW_MS - 1_000 + SILENT_MS)

    assert ["", "", ""] == [
        SEEN.holder_text(ALIVE, None),
        SEEN.holder_text(DRAINED, None),
        SEEN.holder_text(ALIVE, NOW_MS),
    ]
    assert "no heartbeat for 3.0 s" in late.holder_text(ALIVE, None)


def test_a_vanished_worker_is_a_problem_until_a_minute_after_the_takeover() -> None:
    """A worker that only lost a lease, and lives, is none; a name that is about to start is none either."""
    dead = replace(SEEN, deaths_ms={GONE: NOW_MS - 12_000, ALIVE: NOW_MS - 1_000})
    lanes = [(DEAD, NOW_MS + 2_500), (DEAD, NOW_MS + 2_000), (ALIVE, NOW_MS + 8_000)]
    holding, freed = vanished_problems(dead.vanished(lanes))

    assert (Severity.BAD, "w6 vanished 3.7 s ago") == (holding.severity, holding.title)
    assert "It held 2 hosts; another worker takes over when its lease ends, in at most 4 s" == holding.detail
    assert (Severity.WARN, "gone vanished") == (freed.severity, freed.title)
    assert freed.detail.endswith("its hosts were freed for other workers 12 s ago")


def test_workers_that_vanish_together_are_one_problem() -> None:
    """A machine with all of its workers is gone."""
    lanes = [(f"w{number}-0a1b2c3d", NOW_MS) for number in range(9)]
    (problem,) = vanished_problems(Heartbeats(now_ms=NOW_MS, last_ms={}, reports=()).vanished(lanes))

    assert "9 workers vanished" == problem.title
    assert f"w0 vanished more than {keys.WORKER_TTL_MS // 1000} s ago. It held 1 host; " in problem.detail
    assert "no other worker is running" in problem.detail
