"""The texts of `fetchfleet top`: the head, the problems, and the pages of a host and of a batch."""

from typing import Any

import msgspec
import pytest
from rich.text import Text

from fetchfleet.jobs.client.batch import Counts
from fetchfleet.jobs.contract.safe_text import UNSAFE
from fetchfleet.worker.inspect.explain import HostAnswer, LaneExplained, UnservedFetches
from fetchfleet.worker.inspect.fleet_status import WorkerStatus
from fetchfleet.worker.inspect.overview import LANE_STATES, Overview
from fetchfleet.worker.inspect.views.batches import BatchDetail, BatchRow
from fetchfleet.worker.inspect.views.hosts import HostDetail, HostRow, LimitInForce
from fetchfleet.worker.top.picture import Picture
from fetchfleet.worker.top.texts import batch_page, head, host_page, problems, worst
from fetchfleet.worker.util.quantities import some

HOSTILE = "\x1b[2J\u202e\x9b"
ANY_TEXT: Any = HOSTILE
NOW_MS = 1_900_000_000_000

OVERVIEW = Overview(
    now_ms=NOW_MS,
    workers=1,
    draining=1,
    lacking=1,
    lanes={**dict.fromkeys(LANE_STATES, 0), "busy": 2, "breaker": 1},
    lanes_read=3,
    lanes_in_all=4,
    runnable=1,
    backlog=1200,
    waiting=1198,
    in_flight=2,
    oldest_s=300.0,
    inbox=1,
    arq=2,
    dead=3,
    unread={HOSTILE: 20_000, "small": 1},
    finished={},
    finished_per_s=10.0,
    received_bytes_per_s=2000.0,
)
WORKER = WorkerStatus(
    **dict.fromkeys(("id", "instance", "version", "python", "engine", "sink", "policy"), ANY_TEXT),
    age_s=1.0,
    lacking=HOSTILE,
    lacking_error=HOSTILE,
    lanes=1,
    in_flight=1,
    finished_per_s=1.0,
    received_bytes_per_s=1.0,
)


def host(name: str, state: str = "breaker") -> HostRow:
    """Return the row of a host."""
    return HostRow(
        host=name, state=state, why=HOSTILE, until_ms=None, in_flight=1, waiting=2, worker=None, instance=None
    )


HOSTS = [host(HOSTILE), host("paused.example", "paused"), *(host(f"{nth}.example") for nth in range(4))]
FLEET = Picture(OVERVIEW, [WORKER], HOSTS, [], None)
HOST_PAGE = HostDetail(
    lane=LaneExplained(
        lane=HOSTILE,
        state=HOSTILE,
        until_ms=10**18,
        why=HOSTILE,
        in_flight=1,
        waiting=2,
        concurrency=3,
        owner=HOSTILE,
        answers=[HostAnswer(-1, HOSTILE), HostAnswer(NOW_MS, "429")],
        unserved=[UnservedFetches(needs=[HOSTILE], fetches=2)],
        last_failure=HOSTILE,
    ),
    worker=HOSTILE,
    known=False,
    limits=[
        LimitInForce(key="quota", value=True, source="default", table=None),
        LimitInForce(key="concurrency", value=HOSTILE, source="override", table=HOSTILE),
    ],
    pause=None,
    policy_origin="workers",
    policy_digest=HOSTILE,
    notes=[HOSTILE],
)
BATCH_PAGE = BatchDetail(
    batch=BatchRow(
        id="0123456789abcdef",
        state="running",
        created_ms=NOW_MS - 60_000,
        cancel_ms=None,
        counts=Counts(total=8, sealed=True, stored=1, failed=3),
        done=4,
        left=4,
        retried_as=["fedcba9876543210"],
        rate_per_s=2.0,
        eta_s=2.0,
    ),
    notify=HOSTILE,
    webhook=None,
    failures={"timeout": 2, HOSTILE: 1},
    notes={HOSTILE: HOSTILE, "timeout": "no response for 5 s"},
    failures_exact=False,
    results_read=4,
    lanes=6,
    hosts=HOSTS,
    now_ms=NOW_MS,
)


def plain(lines: Any) -> list[str]:
    """Return the lines without their styles."""
    return [line.plain.strip() for line in lines]


@pytest.mark.parametrize(
    "lines", [[*head(FLEET)], [*problems(FLEET)], [*host_page(HOST_PAGE)], [*batch_page(BATCH_PAGE)]]
)
def test_no_text_controls_the_terminal(lines: list[Text]) -> None:
    """Each text comes from Redis, and may have been written by another program."""
    assert not UNSAFE.search("".join(plain(lines)))
    assert r"\u001b[2J" in "".join(plain(lines)) or lines == head(FLEET)


def test_the_head_counts_workers_backlog_and_hosts_by_state() -> None:
    """It estimates the time that is left."""
    assert [
        "3 workers (1 drained, 1 without disk)   10.0 fetches/s   2.0 kB/s   2 in flight",
        "1,200 fetches to do (about 2 min), oldest 5 min   1 inbox message   2 arq jobs   3 dead letters",
        "4 hosts   2 busy   1 breaker   (3 of them read)",
    ] == plain(head(FLEET))


def test_the_head_waits_at_least_for_the_last_host_to_open() -> None:
    """A host without waiting fetches delays nothing."""
    closed = msgspec.structs.replace(host("a.example"), until_ms=OVERVIEW.now_ms + 3_600_000)
    empty = msgspec.structs.replace(closed, waiting=0)

    assert "(about 60 min)" in plain(head(FLEET._replace(hosts=[*HOSTS, closed])))[1]
    assert "(about 2 min)" in plain(head(FLEET._replace(hosts=[*HOSTS, empty])))[1]


def test_problems_are_named_the_worst_first() -> None:
    """The screen shows as many as fit."""
    found = [*problems(FLEET)]

    assert 4 == len(found)
    assert plain(found)[1].startswith("5 hosts fail: circuit breaker open  ")
    assert plain(found)[2].startswith(r"20,000 results are unread by \u001b[2J\u202e\u009b  ")
    assert "paused.example is paused  2 fetches wait" == plain(found)[3]
    assert ["and 3 other problems"] == plain(worst(found, 2))[1:]
    assert found == worst(found, 4)
    assert ["no problems"] == plain(worst([], 2))
    idle = FLEET._replace(overview=msgspec.structs.replace(OVERVIEW, unread={}), workers=[], hosts=[])
    assert plain(problems(idle))[0].endswith("Start a worker with: fetchfleet worker")


def test_the_page_of_a_host_begins_with_the_reason_and_shows_changed_limits_first() -> None:
    """The last response is the first in its list."""
    lines = plain(host_page(HOST_PAGE))

    limits = lines.index("limits")
    assert lines[limits + 1].startswith("concurrency = ")
    assert lines[limits + 2] == "quota = true  (default)"
    assert lines[lines.index("last responses") + 1].endswith("429")


def test_the_page_of_a_batch_shows_progress_failures_and_hosts() -> None:
    """It says so if not every result was read."""
    lines = plain(batch_page(BATCH_PAGE))

    assert "running   █████░░░░░  50 %   2.0 results/s   about 2 s left" == lines[0]
    assert "4 of 8 fetches done, 0 B" == lines[1]
    assert lines[lines.index("failures by reason") + 1].split(maxsplit=2) == [
        *("2", "timeout", "no response for 5 s")
    ]
    assert "of the newest 4 results only" in lines


def test_names_beyond_the_first_are_counted() -> None:
    """Three are named."""
    assert "a, b, c and 2 more" == some("abcde")
    assert "a" == some("a")
