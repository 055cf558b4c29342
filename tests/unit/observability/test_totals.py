"""The counters that a worker publishes."""

from collections import Counter

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fetchfleet.jobs.contract.result import Outcome, Reason
from fetchfleet.worker.observability.totals import NO_REASON, FetchTotals, WorkerTotals

reasons = st.none() | st.sampled_from(Reason)
outcomes = st.sampled_from(Outcome)


@given(
    finished=st.lists(st.tuples(outcomes, reasons)),
    retries=st.lists(reasons),
    received_bytes=st.integers(0, 10**18 - 1),
)
def test_published_totals_have_every_count_and_are_read_as_written(
    finished: list[tuple[Outcome, Reason | None]], retries: list[Reason | None], received_bytes: int
) -> None:
    """No combination of outcome and reason is lost or counted twice."""
    totals = FetchTotals()
    totals.finished.update(finished)
    totals.retries.update(retries)
    published = totals.published(received_bytes=received_bytes, log_lines_dropped=2)
    read = msgspec.json.decode(msgspec.json.encode(published), type=WorkerTotals)

    assert read == published
    counted = {
        (outcome, None if reason == NO_REASON else reason): count
        for outcome, by_reason in read.finished.items()
        for reason, count in by_reason.items()
    }
    assert counted == Counter(finished)
    assert sum(read.retries.values()) == len(retries)
    assert (read.received_bytes, read.log_lines_dropped) == (received_bytes, 2)


@pytest.mark.parametrize(
    "written",
    [
        {"finished": {"stored": {"none": -1}}},
        {"finished": {"stored": {"none": 10**18}}},
        {"finished": {"stored": {"a\n": 1}}},
        {"finished": {"stored": {f"r{n}": n for n in range(500)}}},
        {"finished": {f"o{n}": {} for n in range(500)}},
        {"retries": {"x" * 41: 1}},
        {"throttles": 1e300},
        {"interruptions": "many"},
        {"received_bytes": -5},
    ],
)
def test_totals_outside_of_their_bounds_are_invalid(written: dict[str, object]) -> None:
    """No number overflows, and the keys are few, short and safe to print."""
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(msgspec.json.encode(written), type=WorkerTotals)


def test_totals_of_other_versions_are_read() -> None:
    """Missing counters are 0. Unknown counters and reasons are accepted."""
    assert msgspec.json.decode(b"{}", type=WorkerTotals) == WorkerTotals()
    newer = b'{"finished":{"skipped":{"too_dull":3}},"postponed":1}'
    assert msgspec.json.decode(newer, type=WorkerTotals).finished == {"skipped": {"too_dull": 3}}
