"""The problems of a fleet, from its figures."""

from typing import Any

import msgspec
import pytest

from fetchfleet.worker.inspect.fleet_status import WorkerStatus
from fetchfleet.worker.inspect.overview import LANE_STATES, Overview
from fetchfleet.worker.inspect.problems import (
    OLD_S,
    UNREAD,
    UNREAD_BAD,
    FleetFigures,
    FleetProblem,
    Severity,
    fleet_problems,
)
from fetchfleet.worker.inspect.views.hosts import HostRow

QUIET = Overview(
    now_ms=1_796_043_922_000,
    workers=2,
    draining=0,
    lacking=0,
    lanes=dict.fromkeys(LANE_STATES, 0),
    lanes_read=0,
    lanes_in_all=0,
    runnable=0,
    backlog=0,
    waiting=0,
    in_flight=0,
    oldest_s=None,
    inbox=0,
    arq=0,
    dead=0,
    unread={},
    finished={},
    finished_per_s=0.0,
    received_bytes_per_s=0.0,
)
WORKER = WorkerStatus(
    id="worker-1",
    instance="worker-1-ab",
    version="1",
    python="3.11",
    engine="httpx",
    sink="files",
    policy="1a2b3c4d5e",
    age_s=9.0,
    lanes=0,
    in_flight=0,
    finished_per_s=0.0,
    received_bytes_per_s=0.0,
)


def worker(name: str, **changes: Any) -> WorkerStatus:
    """Return a worker."""
    return msgspec.structs.replace(WORKER, id=name, instance=f"{name}-ab", **changes)


def overview(**changes: Any) -> Overview:
    """Return the figures of a fleet."""
    return msgspec.structs.replace(QUIET, **changes)


def host(name: str, state: str, waiting: int = 5) -> HostRow:
    """Return a host."""
    return HostRow(
        host=name,
        state=state,
        why="",
        until_ms=None,
        in_flight=0,
        waiting=waiting,
        worker=None,
        instance=None,
    )


def problems(
    figures: Overview = QUIET, workers: tuple[WorkerStatus, ...] = (WORKER,), hosts: tuple[HostRow, ...] = ()
) -> list[FleetProblem]:
    """Return the problems of a fleet."""
    return fleet_problems(FleetFigures(figures, workers, hosts))


def only(found: list[FleetProblem]) -> FleetProblem:
    """Return the one problem."""
    [problem] = found
    return problem


def test_a_quiet_fleet_has_no_problem() -> None:
    """Work that flows is none either."""
    assert [] == problems()
    assert [] == problems(overview(backlog=9000, oldest_s=30.0), hosts=(host("a.example", "busy"),))


@pytest.mark.parametrize(("backlog", "severity"), [(0, Severity.WARN), (3, Severity.BAD)])
def test_no_worker_is_worse_if_fetches_wait(backlog: int, severity: Severity) -> None:
    """The detail has the command that helps."""
    found = only(problems(overview(backlog=backlog), workers=()))

    assert (severity, "No worker is running") == (found.severity, found.title)
    assert found.detail.endswith("fetchfleet worker")


def test_a_failing_host_is_named() -> None:
    """With the number of its waiting fetches."""
    found = only(problems(hosts=(host("2001:db8::1", "breaker", 1), host("b.example", "busy"))))

    assert (
        "2001:db8::1 fails: its circuit breaker is open",
        "1 fetch waits",
        ("2001:db8::1",),
    ) == (
        found.title,
        found.detail,
        found.hosts,
    )


def test_many_failing_hosts_are_counted() -> None:
    """The first three are named."""
    hosts = tuple(host(f"{name}.example", "breaker") for name in "abcd")
    found = only(problems(hosts=hosts))

    assert "4 hosts fail: circuit breaker open" == found.title
    assert "a.example, b.example, c.example and 1 more; 20 fetches wait" == found.detail
    assert (4, "breaker") == (len(found.hosts), found.about)


@pytest.mark.parametrize(
    ("state", "severity"),
    [
        ("cooling", Severity.WARN),
        ("robots", Severity.WARN),
        ("paused", Severity.NOTE),
        ("breaker", Severity.BAD),
    ],
)
def test_hosts_in_a_state_that_needs_a_look_are_problems(state: str, severity: Severity) -> None:
    """A pause is a note, because an operator wants it."""
    assert severity == only(problems(hosts=(host("a.example", state),))).severity


@pytest.mark.parametrize("state", ["busy", "waiting", "pacing", "quota", "retry", "idle", "hovering"])
def test_hosts_in_other_states_are_none(state: str) -> None:
    """A host that waits by its limits needs no attention."""
    assert [] == problems(hosts=(host("a.example", state),))


def test_workers_without_disk_space_are_named() -> None:
    """With what each lacks."""
    found = only(problems(workers=(WORKER, worker("worker-2", lacking="bytes"))))

    assert ("1 worker cannot store bodies", "worker-2 lacks free space on its disk") == (
        found.title,
        found.detail,
    )


def test_a_fleet_in_which_no_worker_stores_says_so() -> None:
    """A drained worker does not count as one that stores."""
    workers = (worker("worker-1", lacking="files"), worker("worker-2", draining=True))
    titles = [problem.title for problem in problems(workers=workers)]

    assert ["No worker can store bodies", "1 worker is drained"] == titles


def test_a_fleet_of_drained_workers_is_bad_and_one_drained_worker_a_note() -> None:
    """The detail has the command that ends it."""
    every = only(problems(workers=(worker("worker-1", draining=True),)))
    one = only(problems(workers=(WORKER, worker("worker-2", draining=True))))

    assert (Severity.BAD, True) == (every.severity, every.detail.endswith("fetchfleet undrain worker-1"))
    assert (Severity.NOTE, "worker-2") == (one.severity, one.detail)


@pytest.mark.parametrize("setting", ["policy", "sink"])
def test_workers_that_differ_are_a_problem(setting: str) -> None:
    """A worker that does not tell the setting is left out."""
    workers = (WORKER, worker("worker-2", **{setting: "other"}), worker("worker-3", **{setting: None}))

    assert only(problems(workers=workers)).title.startswith(f"Workers differ in their {setting}")


def test_an_old_backlog_is_a_problem_and_says_how_many_hosts_could_start() -> None:
    """More workers do not help a fleet whose hosts all wait."""
    found = only(problems(overview(oldest_s=OLD_S, backlog=2, runnable=1)))

    assert "2 fetches are to do; 1 host could start one now" == found.detail
    assert [] == problems(overview(oldest_s=OLD_S - 1, backlog=2))


@pytest.mark.parametrize(
    ("unread", "severity"), [(UNREAD - 1, None), (UNREAD, Severity.WARN), (UNREAD_BAD, Severity.BAD)]
)
def test_a_consumer_group_that_lags_is_a_problem(unread: int, severity: Severity | None) -> None:
    """It is bad once results may soon be dropped."""
    found = problems(overview(unread={"loader": unread, "other": 0}))

    assert ([severity] if severity else []) == [problem.severity for problem in found]


def test_fetches_that_kill_workers_are_a_problem() -> None:
    """Other failures are none."""
    found = only(problems(overview(finished={"failed": {"poison": 1, "timeout": 9}})))

    assert "1 fetch has killed workers" == found.title


def test_the_worst_problem_comes_first_and_keys_differ() -> None:
    """A page recognizes a problem while its figures change."""
    hosts = tuple(host("a.example", state) for state in ("paused", "cooling", "breaker"))
    found = problems(overview(oldest_s=OLD_S * 2, unread={"x": UNREAD, "y": UNREAD}), hosts=hosts)

    assert sorted(found, key=lambda of: list(Severity).index(of.severity)) == found
    assert len(found) == len({problem.key for problem in found})
