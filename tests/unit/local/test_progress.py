"""The progress of a batch on a screen."""

import io

from rich.console import Console

from fetchfleet.jobs.client.batch import Counts
from fetchfleet.worker.inspect.snapshot import WorkerReport
from fetchfleet.worker.local.progress import lacks_of, picture, plain_line

REPORTS = {"one": WorkerReport(lacking="writing", lacking_error="Disk quota exceeded"), "two": WorkerReport()}
LACK = "one cannot store bodies, it lacks a disk that takes bodies (Disk quota exceeded)"


def test_a_worker_that_cannot_store_bodies_is_named() -> None:
    """On a terminal, and in the lines of a log."""
    lacks = lacks_of(REPORTS)
    console = Console(file=io.StringIO(), width=200, record=True)
    console.print(picture(Counts(total=1), [], 0.0, 1.0, 40, lacks))

    assert [LACK] == lacks
    assert LACK in console.export_text()
    assert f"0 in flight, 0 B/s, {LACK}" in plain_line(Counts(total=1), [], 0.0, 1.0, lacks)
    assert "lacks" not in plain_line(Counts(total=1), [], 0.0, 1.0, lacks_of({"two": WorkerReport()}))
