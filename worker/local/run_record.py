"""The record of a run, for the next command: its progress while it is unfinished, and its end."""

import hashlib
import os
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from fetchfleet.jobs.client.batch import FROM_THE_START, Counts
from fetchfleet.jobs.contract.fetch import encode
from fetchfleet.jobs.contract.ids import BATCH_ID_CHARS
from fetchfleet.jobs.contract.result import Outcome, Result
from fetchfleet.worker.errors import BAD_USE, CommandError
from fetchfleet.worker.local.output.reports import check_converted, is_unconverted, lines_of
from fetchfleet.worker.util.clock import mono_s

ENDED_RUNS = "runs"
"""The folder with the records of ended runs, named by batch ID, in the state folder."""
HOSTS_NAMED = 3
HOSTS_SAVED = 1000
"""The most hosts that are saved while a part runs, because it is saved often. At its end, all are."""
EARLIER = "of an earlier part"
"""The reason of results of which only the outcome is known."""


class Tally:
    """The counts of the results that a command has read."""

    def __init__(self) -> None:
        self.started_s = mono_s()
        self.ends: Counter[tuple[str, str]] = Counter()
        """The number of results by outcome and reason (empty without one)."""
        self.notes: dict[tuple[str, str], str] = {}
        """The note of one result for each outcome and reason, if it has one."""
        self.failed_hosts: Counter[str] = Counter()
        """The number of failed fetches by host."""
        self.retries = self.throttles = self.interruptions = 0
        self.read = 0
        """The results that this process has counted."""
        self.done_before: int | None = None
        """The results that earlier parts of a run have read; None in its first part."""

    def complete(self, counts: Counts) -> None:
        """Add the results that a killed part has read but not saved; only their outcomes are known."""
        for outcome in Outcome:
            known = sum(count for (of, _), count in self.ends.items() if of == outcome)
            if (missing := getattr(counts, outcome.value) - known) > 0:
                self.ends[outcome.value, EARLIER] += missing

    def add(self, *results: Result) -> None:
        """Count results."""
        self.read += len(results)
        self.ends.update([(result.outcome, result.reason or "") for result in results])
        for result in results:
            if result.outcome == Outcome.FAILED:
                self.failed_hosts[urlsplit(result.url).netloc] += 1
            if result.note:
                self.notes.setdefault((result.outcome, result.reason or ""), result.note)
            if result.attempts > 1:
                self.retries += result.attempts - 1
            self.throttles += result.throttles
            self.interruptions += result.interruptions

    @property
    def may_have_failure_notes(self) -> bool:
        """True if a failed fetch has a note, or if that is unknown for one."""
        return any(outcome == Outcome.FAILED for outcome, _ in self.notes) or (
            (Outcome.FAILED.value, EARLIER) in self.ends
        )

    def worst(self) -> list[tuple[str, int]]:
        """Return the hosts with the most failed fetches, and the number of these."""
        return self.failed_hosts.most_common(HOSTS_NAMED)


class RunRecord(msgspec.Struct, kw_only=True):
    """A run of a list, which has several parts if it was interrupted."""

    batch: str = ""
    """The batch ID."""
    began: str = ""
    """The time of its start, ISO 8601, UTC; empty in a record that could not be read."""
    ended: str = ""
    """The time of its end, ISO 8601, UTC; empty while it is unfinished."""
    position: str = FROM_THE_START
    """The position of the last result that was read."""
    report: str | None = None
    """The path of the report."""
    report_bytes: int = 0
    """The size of the report with the results read."""
    ends: list[tuple[str, str, int]] = []
    """The outcome, reason and number of the results read."""
    failed_hosts: dict[str, int] = {}
    """The number of failed fetches by host; empty in the record of an ended run, as is `notes`."""
    notes: list[tuple[str, str, str]] = []
    """The outcome, reason and note of one result each."""
    retries: int = 0
    """The retries of the fetches whose results were read. The next two fields are of these fetches too."""
    throttles: int = 0
    interruptions: int = 0
    counts: Counts | None = None
    """The counts of the batch; None while the run is unfinished."""


class RunPart:
    """A part of a run: from its start, or from an interruption, to the next interruption or its end."""

    def __init__(self, record: RunRecord, file: Path, report: Path | None, *, resumes: bool) -> None:
        self.record = record
        self.tally = Tally()
        self.resumes = resumes
        self._file = file
        self._report = report
        self._report_path = None if report is None else str(report.resolve())
        self._lines = None if report is None else lines_of(report)
        self.appends = resumes and (self._report_path in {None, record.report} or not record.began)
        """True if the report has results of an earlier part."""
        if not self.appends:
            record.report_bytes = 0

    def restore(self, done_before: int, warn: Callable[[str], None], *, exports: bool = False) -> None:
        """Continue the tally and the report of the earlier parts from the record.

        done_before: the number of results of the batch so far. warn: called if the report will have later
        results only. exports: the run also exports records, and the state of the export decides where to
        continue.
        """
        record, tally, lines = self.record, self.tally, self._lines
        tally.done_before = done_before
        if lines is not None and record.report is None and record.began:
            record.position = FROM_THE_START  # no result was deleted, so all are read into the new report
            return
        tally.ends = Counter({(outcome, reason): count for outcome, reason, count in record.ends})
        tally.failed_hosts = Counter(record.failed_hosts)
        tally.notes = {(outcome, reason): note for outcome, reason, note in record.notes}
        tally.retries, tally.throttles = record.retries, record.throttles
        tally.interruptions = record.interruptions
        if lines is None or exports or not record.began:
            return
        if self._report_path != record.report:
            earlier = lines_of(Path(record.report or ""))
            warn(f"{self._report} will have only later results; the earlier ones are in {earlier}")
        elif not lines.is_file() or lines.stat().st_size < record.report_bytes:
            warn(f"{lines} was removed or truncated after the interruption: it lacks earlier results")
        else:
            os.truncate(lines, record.report_bytes)  # the rest is not recorded as read, so it is read again

    def advance(self, position: str) -> None:
        """Record that the results up to a position are counted and in the report."""
        self.record.position = position
        if self._lines is not None:
            self.record.report_bytes = self._lines.stat().st_size if self._lines.is_file() else 0

    def save(self, *, most_hosts: int | None = None) -> None:
        """Write the record to its file. most_hosts: the number of failing hosts to save; None for all."""
        tally, record = self.tally, self.record
        if self._report_path is not None:
            record.report = self._report_path
        record.ends = [(*end, count) for end, count in tally.ends.items()]
        record.failed_hosts = dict(tally.failed_hosts.most_common(most_hosts))
        record.notes = [(*end, note) for end, note in tally.notes.items()]
        record.retries, record.throttles = tally.retries, tally.throttles
        record.interruptions = tally.interruptions
        new = self._file.with_suffix(".new")
        new.write_bytes(encode(record))
        new.replace(self._file)  # atomic, because this process may be killed

    def end(self, ended_file: Path, counts: Counts) -> None:
        """Record the end of the run: the record of an unfinished run becomes that of an ended one."""
        self.record.ended, self.record.counts = _now(), counts
        self.record.failed_hosts, self.record.notes = {}, []
        ended_file.parent.mkdir(exist_ok=True)
        ended_file.write_bytes(encode(self.record))
        self._file.unlink(missing_ok=True)


class EndedRunError(CommandError):
    """An ended run has fetched the list into the out folder."""

    exit_code = BAD_USE


def batch_id_of(list_id: str, store: str) -> str:
    """Return the batch ID of a run: that of the list, or a digest of it and the URL of an object store.

    So a list that was fetched into one store can be fetched into another one with the same spool.
    """
    if not store:
        return list_id
    return hashlib.sha256(f"{store} {list_id}".encode()).hexdigest()[:BATCH_ID_CHARS]


def load(file: Path) -> RunRecord:
    """Return the record in a file, or an empty record if it cannot be read."""
    with suppress(OSError, msgspec.MsgspecError):
        return msgspec.json.decode(file.read_bytes(), type=RunRecord)
    return RunRecord()


def begin_part(batch_id: str, file: Path, report: Path | None, *, resumes: bool) -> RunPart:
    """Return the part of a run that begins now. Raises CommandError if its report has other results."""
    saved = load(file)
    if report is not None and not is_report_of(saved, report):
        check_converted(report)
    record = saved if resumes else RunRecord(batch=batch_id, began=_now())
    return RunPart(record, file, report, resumes=resumes)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def is_report_of(record: RunRecord, report: Path) -> bool:
    """Return whether the file is the report of the run."""
    return record.report == str(report.resolve())


def ended_run(ended_file: Path, record_file: Path, bodies: Path | str, report: Path | None) -> Counts | None:
    """Return the counts of an ended run whose report is not converted yet; None if the run goes on.

    The run goes on if a later run of the list is unfinished. Raises EndedRunError if nothing is left to do.
    """
    if record_file.exists() and load(record_file).batch == ended_file.stem:
        return None
    record = load(ended_file)
    if report is not None and is_report_of(record, report) and is_unconverted(report):
        return record.counts or Counts()
    raise refusal(record, bodies)


def refusal(record: RunRecord, bodies: Path | str) -> EndedRunError:
    """Return the error for a list that was fetched, with the end of that run, its outcomes and the remedy."""
    when = ""
    with suppress(ValueError):
        when = f" at {datetime.fromisoformat(record.ended).astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
    counts = record.counts or Counts()
    numbers = [
        f"{number:,} {outcome}"
        for outcome in ("stored", "unchanged", "failed", "cancelled")
        if (number := getattr(counts, outcome))
    ]
    report = record.report or "REPORT (the file of --report)"
    return EndedRunError(
        f"this list was already fetched into {bodies}; the run ended{when}: {', '.join(numbers)}."
        " To fetch all of it again, give --again or another --out."
        + (f" To fetch what failed: --only-failed {report}" if counts.failed + counts.cancelled else "")
    )
