"""The pure parts of the lists: order and selection of hosts, rate and estimate of batches."""

import math
from collections import Counter

import msgspec
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from fetchfleet.jobs.client.batch import Counts
from fetchfleet.jobs.client.batch_list import BatchSummary
from fetchfleet.jobs.scripts.views import NewestResults
from fetchfleet.worker.inspect.overview import LANE_STATES, finished_of, is_runnable, state_of_lane
from fetchfleet.worker.inspect.snapshot import LaneSnapshot, WorkerReport
from fetchfleet.worker.inspect.views.batches import batch_row, rate_of
from fetchfleet.worker.inspect.views.hosts import HostQuery, HostRow, HostSort, host_row, selected_hosts
from fetchfleet.worker.observability.totals import WorkerTotals
from fetchfleet.worker.util.quantities import time_left_s

NOW_MS = 1_700_000_000_000
REASONS = st.one_of(st.sampled_from(["", *LANE_STATES]), st.text(max_size=5))
LANES = st.builds(
    LaneSnapshot,
    name=st.text(max_size=8),
    in_flight=st.integers(0, 9),
    waiting=st.integers(0, 9),
    why=REASONS,
    opens_in_s=st.floats(0, 1e6),
    owner=st.sampled_from(["", "one-01234567", "odd"]),
    full=st.booleans(),
)
ROWS = st.lists(LANES.map(lambda lane: host_row(lane, NOW_MS, {"one-01234567": "one"})), max_size=12)
QUERIES = st.builds(
    HostQuery,
    state=st.sampled_from(["", *LANE_STATES]),
    text=st.text(max_size=2),
    sort=st.sampled_from(HostSort),
    reverse=st.booleans(),
)
COUNTS = st.builds(
    Counts,
    total=st.integers(0, 1000),
    sealed=st.booleans(),
    stored=st.integers(0, 1000),
    failed=st.integers(0, 10),
)
BATCHES = st.builds(
    BatchSummary,
    id=st.just("0" * 16),
    created_ms=st.integers(0, 2 * NOW_MS),
    cancel_ms=st.one_of(st.none(), st.just(NOW_MS)),
    counts=COUNTS,
)
NEWEST = st.builds(
    NewestResults,
    length=st.integers(0, 10_000),
    number=st.integers(0, 500),
    oldest_ms=st.integers(0, NOW_MS),
    now_ms=st.just(NOW_MS),
)


@given(lane=LANES)
def test_every_lane_has_a_known_state_and_is_runnable_only_if_open(lane: LaneSnapshot) -> None:
    """A closed lane, a full one and an empty one are not runnable."""
    state = state_of_lane(lane)

    assert state in LANE_STATES
    assert is_runnable(lane) == (not lane.why and not lane.full and lane.waiting > 0)
    assert not is_runnable(lane) or state in {"busy", "waiting"}


def test_a_paused_host_has_no_time_at_which_it_opens() -> None:
    """Its worker looks at it again by a time, but only an operator resumes it."""
    waits = LaneSnapshot(name="a.example", in_flight=0, waiting=1, why="cooling", opens_in_s=5.0)
    paused = msgspec.structs.replace(waits, why="paused")

    assert NOW_MS + 5000 == host_row(waits, NOW_MS, {}).until_ms
    assert host_row(paused, NOW_MS, {}).until_ms is None


@given(rows=ROWS, query=QUERIES)
def test_a_selection_has_each_matching_host_once_in_order(rows: list[HostRow], query: HostQuery) -> None:
    """The reverse order has the same hosts."""
    found = selected_hosts(rows, query)
    wanted = [
        row
        for row in rows
        if query.state in {"", row.state} and query.text.strip().lower() in row.host.lower()
    ]

    assert Counter(found) == Counter(wanted)
    if query.sort is HostSort.WAITING:
        numbers = [row.waiting for row in found]
        assert numbers == sorted(numbers, reverse=not query.reverse)


@example(
    batch=BatchSummary(id="0" * 16, created_ms=0, cancel_ms=None, counts=Counts(total=1, sealed=True)),
    newest=NewestResults(length=0, number=0, oldest_ms=0, now_ms=NOW_MS),
    bound=5e-324,  # a division by it is above any number
)
@given(batch=BATCHES, newest=NEWEST, bound=st.one_of(st.none(), st.floats(0, 1e6)))
def test_rates_and_estimates_are_finite_and_never_negative(
    batch: BatchSummary, newest: NewestResults, bound: float | None
) -> None:
    """Whatever Redis holds. An open batch without a rate has no estimate."""
    row = batch_row(batch, newest, bound)

    assert row.rate_per_s is None or 0 <= row.rate_per_s < math.inf
    assert row.eta_s is None or 0 <= row.eta_s < math.inf
    assert row.left == max(0, batch.counts.total - row.done)
    assert batch.counts.sealed or row.eta_s is None


@given(left=st.integers(1, 10**9), rate=st.floats(0.001, 1e6), bound=st.floats(0.001, 1e6))
def test_the_slower_rate_decides_the_estimate(left: int, rate: float, bound: float) -> None:
    """The estimate uses that of the policy or the recent one."""
    both = time_left_s(left, [rate, bound])
    assume(both is not None)

    assert both == max(time_left_s(left, [rate]) or 0, time_left_s(left, [bound]) or 0)


@given(
    left=st.integers(0, 10**9),
    rates=st.lists(st.none() | st.floats(0, 1e6), max_size=3),
    waits=st.lists(st.none() | st.floats(0, 1e9), max_size=3),
)
def test_the_time_left_is_at_least_each_wait_for_a_host(
    left: int, rates: list[float | None], waits: list[float | None]
) -> None:
    """It is unknown without a rate, as before, and 0 if nothing is left."""
    without = time_left_s(left, rates)
    seconds = time_left_s(left, rates, waits)

    assert (seconds is None) == (without is None)
    assert seconds is None or seconds == (max([without or 0, *filter(None, waits)]) if left else 0)
    assert seconds is None or math.isfinite(seconds)


@pytest.mark.parametrize(
    ("done", "created_s_ago", "length", "number", "oldest_s_ago", "expected"),
    [
        (0, 100, 0, 0, 0, None),
        (50, 100, 50, 50, 10, 5.0),
        (5, 100, 5, 5, 10, 0.05),
        (500, 1000, 3, 3, 10, 0.5),
        (500, 1000, 500, 0, 0, 0.0),
        (500, 1000, 500, 6, 100, 0.02),
    ],
    ids=["no result", "recent ones", "young", "removed by readers", "stalled", "slow"],
)
def test_the_rate_is_that_of_the_newest_results(
    done: int, created_s_ago: int, length: int, number: int, oldest_s_ago: int, expected: float | None
) -> None:
    """Few results in the stream, of which readers may have removed some, count since the first submit."""
    counts = Counts(total=1000, sealed=True, stored=done)
    batch = BatchSummary(id="0" * 16, created_ms=NOW_MS - 1000 * created_s_ago, cancel_ms=None, counts=counts)

    assert expected == rate_of(batch, NewestResults(length, number, NOW_MS - 1000 * oldest_s_ago, NOW_MS))


@given(
    reports=st.lists(
        st.builds(
            WorkerTotals,
            finished=st.dictionaries(
                st.sampled_from(["stored", "failed", "odd"]),
                st.dictionaries(st.sampled_from(["none", "tls", "new"]), st.integers(0, 10**17), max_size=3),
            ),
        ).map(lambda totals: WorkerReport(totals=totals)),
        max_size=4,
    )
)
def test_sums_of_reports_lose_nothing(reports: list[WorkerReport]) -> None:
    """Unknown names are summed as `other`."""
    found = finished_of(reports)
    total = sum(
        count for report in reports for of in report.totals.finished.values() for count in of.values()
    )

    assert found.keys() <= {"stored", "failed", "other"}
    assert total == sum(count for of in found.values() for count in of.values())
