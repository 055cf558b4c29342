"""The lines of finished fetches that a sample keeps."""

import io
import json
from collections.abc import Iterable

import pytest

from fetchfleet.jobs.contract.entry import Entry
from fetchfleet.jobs.contract.fetch import Fetch
from fetchfleet.jobs.contract.result import Outcome, Reason, Result
from fetchfleet.worker.gate.state import GateState
from fetchfleet.worker.lanes.lane import Lane
from fetchfleet.worker.lanes.log_events import FinishedLine, finished, sampled, write_finished
from fetchfleet.worker.observability.log import COUNTS, Event
from fetchfleet.worker.observability.totals import FetchTotals
from fetchfleet.worker.policy.model import LanePolicy
from fetchfleet.worker.util.clock import RedisClock

URL = "http://a/"
LANE = Lane("a", 1, LanePolicy(), GateState(), RedisClock())


def line_of(place: int, outcome: Outcome, reason: Reason | None, worker: str = "one") -> FinishedLine:
    """Return the line of a fetch of one batch."""
    entry = Entry(id=f"0123456789abcdef-{place:08x}", deadline_ms=1, fetch=Fetch(url=URL))
    result = Result(id=entry.id, url=URL, outcome=outcome, reason=reason, worker=worker)
    return finished(LANE, entry, result)


def stored(count: int, worker: str = "one") -> list[FinishedLine]:
    """Return the lines of stored fetches."""
    return [line_of(place, Outcome.STORED, None, worker) for place in range(count)]


def ids(lines: Iterable[FinishedLine]) -> list[str]:
    """Return the IDs of the fetches."""
    return [line.id for line in lines]


@pytest.mark.parametrize("one_of", [0, 1, 7, 10**9 - 1])
def test_a_fetch_with_a_reason_and_a_cancelled_one_are_always_kept(one_of: int) -> None:
    """A stale body has the reason of the failure that it hides."""
    lines = [
        line_of(0, Outcome.FAILED, Reason.CONNECT),
        line_of(1, Outcome.STORED, Reason.CONNECT),
        line_of(2, Outcome.CANCELLED, None),
    ]
    assert sampled(lines, one_of) == lines


def test_no_other_line_is_kept_if_only_failures_are_logged() -> None:
    """Unchanged bodies count as stored ones."""
    assert sampled([*stored(100), line_of(100, Outcome.UNCHANGED, None)], 0) == []


@pytest.mark.parametrize("one_of", [2, 3, 10, 16, 100, 256, 1000])
def test_a_sample_has_about_one_of_n_lines(one_of: int) -> None:
    """The IDs of a batch differ in a few digits only, but their hashes are spread evenly."""
    count = 20_000
    expected = count / one_of
    assert abs(len(sampled(stored(count), one_of)) - expected) <= 4 * expected**0.5


def test_all_workers_keep_the_same_fetches() -> None:
    """The sample depends on the ID alone, neither on the worker nor on the other lines."""
    one, other = stored(500), stored(500, worker="other")

    assert ids(sampled(one, 10)) == ids(sampled(other[::-1], 10))[::-1]
    assert ids(sampled(one, 100)) == ids(sampled(sampled(one, 10), 100))


@pytest.mark.parametrize("one_of", [0, 1, 10])
def test_lines_that_are_left_out_are_counted(stream: io.StringIO, one_of: int) -> None:
    """The counters of events and of results include them."""
    before, totals = COUNTS.events[Event.FETCH_FINISHED], FetchTotals()
    lines = [*stored(200), line_of(200, Outcome.FAILED, Reason.CONNECT)]
    write_finished(lines, totals, one_of)
    written = [json.loads(line)["id"] for line in stream.getvalue().splitlines()]

    assert written == ids(lines if one_of == 1 else sampled(lines, one_of))
    assert COUNTS.events[Event.FETCH_FINISHED] - before == 201
    assert totals.finished.total() == 201


def test_a_sample_without_lines_writes_nothing(stream: io.StringIO) -> None:
    """An empty line would not be JSON."""
    write_finished(stored(5), FetchTotals(), 0)

    assert stream.getvalue() == ""
