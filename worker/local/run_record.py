"""The record of a run: how far it has come while it is unfinished, and its end, for the next command."""

import os
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from fetchfleet.jobs.client.batch import FROM_THE_START, Counts
from fetchfleet.jobs.contract.model import encode
from fetchfleet.worker.errors import BAD_USE, CommandError
from fetchfleet.worker.local.progress import Tally

ENDED_RUNS = "runs"
"""The folder of the records of ended runs, in that of the state; each is named by its batch."""


class RunRecord(msgspec.Struct, kw_only=True):
    """One run of a list, in all its parts.

    began, ended: ISO 8601, UTC. position: of the last result that a part has read; report: where that part
    wrote it, with report_bytes so far. ends: outcome, reason and count of the results up to there. counts: at
    the end.
    """

    batch: str = ""
    began: str = ""
    ended: str = ""
    position: str = FROM_THE_START
    report: str | None = None
    report_bytes: int = 0
    ends: list[tuple[str, str, int]] = []
    retries: int = 0
    throttles: int = 0
    interruptions: int = 0
    counts: Counts | None = None


class RunPart:
    """A part of a run: from its start, or from where the part before was interrupted."""

    def __init__(self, record: RunRecord, file: Path, report: Path | None, *, resumes: bool) -> None:
        self.record = record
        self.tally = Tally()
        self.resumes = resumes
        self._file = file
        self._report = report
        place = str(report.resolve()) if report is not None else None
        self.appends = resumes and place in {record.report, None if record.began else place}
        """Whether the report has results of the part before."""
        if not self.appends:
            record.report_bytes = 0

    def note(self, position: str) -> None:
        """Note that the results up to the position are counted, and in the report."""
        self.record.position = position
        if self._report is not None:
            self.record.report_bytes = self._report.stat().st_size if self._report.is_file() else 0

    def save(self) -> None:
        """Save how far the part has come."""
        tally, record = self.tally, self.record
        if self._report is not None:
            record.report = str(self._report.resolve())
        record.ends = [(*end, count) for end, count in tally.ends.items()]
        record.retries, record.throttles = tally.retries, tally.throttles
        record.interruptions = tally.interruptions
        new = self._file.with_suffix(".new")
        new.write_bytes(encode(record))
        new.replace(self._file)  # in one step: this process may be killed at any time


class EndedRunError(CommandError):
    """The list has been fetched into the out folder before."""

    exit_code = BAD_USE


def load(file: Path) -> RunRecord:
    """Return the record in a file, one without a batch if it cannot be read."""
    with suppress(OSError, msgspec.MsgspecError):
        return msgspec.json.decode(file.read_bytes(), type=RunRecord)
    return RunRecord()


def resume(
    record: RunRecord,
    tally: Tally,
    report: Path | None,
    done_before: int,
    warn: Callable[[str], None],
    *,
    exports: bool = False,
) -> None:
    """Continue the tally, and the report if it is that of the part before, from where the record was saved.

    done_before: the results of the batch so far. warn: called if the report can have the rest only. exports:
    records are written as well, whose own state says what was read.
    """
    tally.done_before = done_before
    place = str(report.resolve()) if report is not None else None
    if place is not None and record.report is None and record.began:
        record.position = FROM_THE_START  # no result was dropped: all are read again, into the new report
        return
    tally.ends = Counter({(outcome, reason): count for outcome, reason, count in record.ends})
    tally.retries, tally.throttles = record.retries, record.throttles
    tally.interruptions = record.interruptions
    if report is None or exports or not record.began:
        return
    if place != record.report:
        warn(f"{report} gets the results from here on; those of the part before are in {record.report}")
    elif not report.is_file() or report.stat().st_size < record.report_bytes:
        warn(f"{report} lacks results of the part before: it is not as that part has left it")
    else:
        os.truncate(report, record.report_bytes)  # what follows was written, but not saved as read


def refuse_again(ended_note: Path, run_note: Path, out: Path) -> None:
    """Raise EndedRunError for a list that was fetched before, unless a later run of it is unfinished."""
    record = load(ended_note)
    if not (run_note.exists() and load(run_note).batch == ended_note.stem):
        raise refusal(record, out)


def refusal(record: RunRecord, out: Path) -> EndedRunError:
    """Return the error for a list that was fetched before; it says when, the outcome, and what to do."""
    when = "before"
    with suppress(ValueError):
        when = f"{datetime.fromisoformat(record.ended).astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
    counts = record.counts or Counts()
    numbers = [
        f"{count:,} {outcome}"
        for outcome in ("stored", "unchanged", "failed", "cancelled")
        if (count := getattr(counts, outcome))
    ]
    report = record.report or "REPORT (the file of --report)"
    return EndedRunError(
        f"this list was fetched into {out} already; the run ended at {when}: {', '.join(numbers)}."
        " Nothing was fetched now. To fetch all of it again: --again, or another --out."
        + (f" To fetch what failed: --only-failed {report}" if counts.failed + counts.cancelled else "")
    )
