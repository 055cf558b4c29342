"""The progress of a batch on a screen."""

import io

import msgspec
import pytest
from rich.console import Console, RenderableType

from fetchfleet import Outcome, Reason, Result
from fetchfleet.jobs.client.batch import Counts
from fetchfleet.worker.inspect.snapshot import LaneSnapshot, WorkerReport
from fetchfleet.worker.local.output.progress import (
    BatchProgress,
    duration,
    lacks_of,
    live_view,
    progress_line,
    summary,
)
from fetchfleet.worker.local.run_record import Tally

REPORTS = {"one": WorkerReport(lacking="writing", lacking_error="Disk quota exceeded"), "two": WorkerReport()}
LACK = "one cannot store bodies: it lacks a disk that takes bodies (Disk quota exceeded)"

COUNTS = Counts(total=12_345_678, stored=1_234_567, failed=1_234)
LANES = [
    LaneSnapshot(
        name=f"{number}.a-host-with-a-long-name.example.com",
        in_flight=8,
        waiting=9_999,
        why=why,
        opens_in_s=42,
    )
    for number, why in enumerate(["", "cool-down", "breaker open", "paused"])
]
WORST = [(f"{number}.another-host-with-a-long-name.example.com:8080", 400) for number in range(3)]


def text_of(shown: RenderableType, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width, record=True)
    console.print(shown)
    return console.export_text()


def test_a_worker_that_cannot_store_bodies_is_named() -> None:
    """The view on a terminal and the lines of a log name it."""
    progress = BatchProgress(Counts(total=1), lacks=lacks_of(REPORTS))

    assert [LACK] == progress.lacks
    assert LACK in text_of(live_view(progress, 40))
    assert f"0 B/s, {LACK}" in progress_line(progress)
    assert "lacks" not in progress_line(
        BatchProgress(Counts(total=1), lacks=lacks_of({"two": WorkerReport()}))
    )


def test_the_rates_the_time_left_and_the_worst_hosts_are_shown() -> None:
    """They have units."""
    progress = BatchProgress(
        Counts(total=1000, stored=400), (), 20.0, 2_500_000.0, 100.0, (), [("a.example", 3)]
    )
    rates = ("20 fetches/s", "2.5 MB/s", "about 30 s left", "most failures: a.example (3)")

    assert [part for part in rates if part not in text_of(live_view(progress, 40))] == []
    assert [part for part in rates if part not in progress_line(progress)] == []


CLOSED = LaneSnapshot(
    "a.example", 0, 2, "breaker", 58.7, last_failure="connect, [Errno 111] Connection refused"
)


def test_a_waiting_host_has_the_words_of_its_last_failure() -> None:
    """A long text is cut short on a terminal and in a line."""
    text = "waiting: a.example (2: breaker, 58.7 s; last: connect, [Errno 111] Connection refused)"
    long = msgspec.structs.replace(CLOSED, last_failure="x" * 300)

    assert text in progress_line(BatchProgress(Counts(total=2), [CLOSED]))
    assert "breaker, 58.7 s; last: connect" in text_of(
        live_view(BatchProgress(Counts(total=2), [CLOSED]), 24)
    )
    assert len(progress_line(BatchProgress(Counts(total=2), [long]))) < 300
    assert max(map(len, text_of(live_view(BatchProgress(COUNTS, [long]), 24)).splitlines())) <= 80


def test_the_time_left_is_at_least_the_wait_for_a_host_of_the_batch() -> None:
    """Those of other batches do not count."""
    left = Counts(total=102, stored=100)
    times = [
        BatchProgress(left, lanes, 2.0, hosts=hosts).left_s
        for lanes, hosts in [((), None), ([CLOSED], None), ([CLOSED], ["a.example"]), ([CLOSED], [])]
    ]

    assert times == [1.0, 58.7, 58.7, 1.0]


@pytest.mark.parametrize(("done", "per_s"), [(10, 0.0), (1000, 5.0)])
def test_the_time_left_is_left_out_if_nothing_ends_or_nothing_is_left(done: int, per_s: float) -> None:
    """No estimate can be made."""
    assert "left" not in progress_line(BatchProgress(Counts(total=1000, stored=done), (), per_s))


def test_the_display_fits_80_columns() -> None:
    """Long names are cut short, not wrapped."""
    progress = BatchProgress(COUNTS, LANES, 12_345.6, 999_900_000.0, 86_399.0, [], WORST)
    lines = text_of(live_view(progress, 24)).splitlines()

    assert max(map(len, lines)) <= 80
    assert len([line for line in lines if "a-host-with" in line]) == len(LANES)
    assert len(lines) == 4 + len(LANES)


def test_the_summary_names_the_three_worst_hosts() -> None:
    """Those with the most failed fetches."""
    tally = Tally()
    for host, failed in {"a": 1, "b": 4, "c": 2, "d": 3}.items():
        failure = Result(
            id="x", url=f"http://{host}.example/x", outcome=Outcome.FAILED, reason=Reason.TLS, worker="w"
        )
        tally.add(*[failure] * failed)
    tally.add(Result(id="x", url="http://e.example/", outcome=Outcome.STORED, worker="w"))

    shown = text_of(summary(Counts(total=11, failed=10, stored=1), tally, 1.0))
    rows = [line.replace("│", "").split() for line in shown.splitlines() if "most failures" in line]
    assert [row[2:] for row in rows] == [["b.example", "4"], ["d.example", "3"], ["c.example", "2"]]


def test_the_summary_has_the_note_of_one_failure_for_each_reason() -> None:
    """Without secrets. A run without notes has no column for them."""
    tally = Tally()
    failure = Result(id="x", url="http://a/", outcome=Outcome.FAILED, reason=Reason.CONNECT, worker="w")
    tally.add(failure)
    assert "note" not in text_of(summary(Counts(), tally, 1.0))

    refused, reset = "refused by http://a/?token=hunter2", "reset"
    tally.add(*(msgspec.structs.replace(failure, note=note) for note in (refused, reset)))
    shown = text_of(summary(Counts(), tally, 1.0), 120)
    [row] = [line for line in shown.splitlines() if "connect" in line]
    assert row.replace("│", " ").split()[2:] == ["3", "refused", "by", "http://a/?token=***"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (185, "3 min 5 s"), (7800, "2 h 10 min")],
)
def test_durations_have_units(seconds: float, text: str) -> None:
    """A duration has at most two units."""
    assert duration(seconds) == text
