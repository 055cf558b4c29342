"""The record of a run: the state from which the next part continues, and the summary of an ended run."""

from pathlib import Path

import msgspec
import pytest

from fetchfleet.jobs.client.batch import FROM_THE_START, Counts
from fetchfleet.jobs.contract.result import Outcome, Reason, Result
from fetchfleet.worker.local.run_record import EndedRunError, RunPart, RunRecord, Tally, ended_run, load

BATCH = "0123456789abcdef"
BEGAN = "2030-01-02T03:04:05+00:00"


def result(outcome: Outcome, reason: Reason | None = None) -> Result:
    """Return a result."""
    return Result(
        id="i", url="http://a/", outcome=outcome, reason=reason, worker="w", attempts=3, throttles=1
    )


def resumed(record: RunRecord, folder: Path, report: Path | None) -> RunPart:
    """Return the next part of the run."""
    return RunPart(record, folder / "run.json", report, resumes=True)


def interrupted(folder: Path, report: Path | None) -> RunRecord:
    """Return the record of a part that has read three results and reported them."""
    part = RunPart(RunRecord(batch=BATCH, began=BEGAN), folder / "run.json", report, resumes=False)
    for read in (result(Outcome.STORED), result(Outcome.STORED), result(Outcome.FAILED, Reason.DNS)):
        part.tally.add(read)
    if report is not None:
        report.write_bytes(b"three\n")
    part.advance("7-1")
    if report is not None:
        report.write_bytes(b"three\nhalf of one that the disk did not ta")
    part.save()
    return load(folder / "run.json")


def test_the_same_report_continues_where_it_was_saved(tmp_path: Path) -> None:
    """Lines after the last save are cut off, because their results are read again."""
    report, warnings = tmp_path / "report", list[str]()
    record = interrupted(tmp_path, report)
    report.write_bytes(b"three\nmore, and a ha")
    part = resumed(record, tmp_path, report)
    part.restore(4, warnings.append)

    assert ("7-1", b"three\n", []) == (record.position, report.read_bytes(), warnings)
    assert {("stored", ""): 2, ("failed", "dns"): 1} == part.tally.ends
    assert (6, 3, 4) == (part.tally.retries, part.tally.throttles, part.tally.done_before)
    assert part.appends


def test_a_report_beside_an_export_keeps_all_its_lines(tmp_path: Path) -> None:
    """The state of the export has the position, and each line was written before that was saved."""
    report = tmp_path / "report"
    record = interrupted(tmp_path, report)
    report.write_bytes(b"three\nfour\n")
    resumed(record, tmp_path, report).restore(4, pytest.fail, exports=True)

    assert b"three\nfour\n" == report.read_bytes()


def test_without_a_report_in_either_part_only_the_tally_continues(tmp_path: Path) -> None:
    """No result is read twice."""
    record = interrupted(tmp_path, None)
    part = resumed(record, tmp_path, None)
    part.restore(3, pytest.fail)

    assert ("7-1", 3) == (record.position, sum(part.tally.ends.values()))


def test_a_report_that_is_given_later_has_the_whole_batch(tmp_path: Path) -> None:
    """Without a report, no result was dropped from Redis: all are read again."""
    record = interrupted(tmp_path, None)
    part = resumed(record, tmp_path, tmp_path / "report")
    part.restore(3, pytest.fail)

    assert (FROM_THE_START, {}) == (record.position, part.tally.ends)
    assert not part.appends


def test_another_report_has_the_rest_with_a_notice(tmp_path: Path) -> None:
    """The table has the whole batch."""
    report, warnings = tmp_path / "other", list[str]()
    record = interrupted(tmp_path, tmp_path / "report")
    part = resumed(record, tmp_path, report)
    part.restore(3, warnings.append)

    assert [f"{report} will have only later results; the earlier ones are in {record.report}"] == warnings
    assert ("7-1", 3) == (record.position, sum(part.tally.ends.values()))
    assert not part.appends


def test_a_report_that_was_cut_or_deleted_is_named(tmp_path: Path) -> None:
    """The report can no longer have all results."""
    report, warnings = tmp_path / "report", list[str]()
    record = interrupted(tmp_path, report)
    report.unlink()
    resumed(record, tmp_path, report).restore(3, warnings.append)

    assert "lacks earlier results" in warnings[0]


def test_a_report_continues_from_the_record_of_an_older_version(tmp_path: Path) -> None:
    """The record has the batch only. Further results are appended, and counted by outcome."""
    note = tmp_path / "run.json"
    note.write_text(f'{{"batch": "{BATCH}"}}')
    part = resumed(load(note), tmp_path, tmp_path / "report")
    part.restore(3, pytest.fail)

    assert BATCH == part.record.batch
    assert part.appends


def test_outcomes_of_a_part_that_was_killed_are_counted_without_their_reasons() -> None:
    """Totals are those of the batch."""
    tally = Tally()
    tally.add(result(Outcome.FAILED, Reason.DNS))
    tally.complete(Counts(total=6, stored=2, failed=3, cancelled=1))

    assert {
        ("failed", "dns"): 1,
        ("failed", "of an earlier part"): 2,
        ("stored", "of an earlier part"): 2,
        ("cancelled", "of an earlier part"): 1,
    } == tally.ends


def failure(host: str, note: str | None) -> Result:
    """Return the result of a failed fetch of a host."""
    return Result(
        id="i", url=f"http://{host}/", outcome=Outcome.FAILED, reason=Reason.DNS, worker="w", note=note
    )


def test_the_hosts_and_notes_of_earlier_parts_are_counted(tmp_path: Path) -> None:
    """An interruption loses none of them. The record of the ended run has neither."""
    first = RunPart(RunRecord(batch=BATCH, began=BEGAN), tmp_path / "run.json", None, resumes=False)
    first.tally.add(failure("a", "no name"), failure("a", None), failure("b", None))
    first.save()
    second = resumed(load(tmp_path / "run.json"), tmp_path, None)
    second.restore(3, pytest.fail)
    second.tally.add(failure("b", "a later note"), failure("b", None), failure("c", None))
    second.save()
    second.end(tmp_path / "runs" / "ended.json", Counts(total=6, failed=6))
    ended = load(tmp_path / "runs" / "ended.json")

    assert [("b", 3), ("a", 2), ("c", 1)] == second.tally.worst()
    assert {("failed", "dns"): "no name"} == second.tally.notes
    assert ({}, [], 6) == (ended.failed_hosts, ended.notes, ended.counts and ended.counts.failed)


def test_a_record_that_is_saved_often_has_the_hosts_with_the_most_failures(tmp_path: Path) -> None:
    """Its size is bounded, whatever the number of hosts."""
    part = RunPart(RunRecord(batch=BATCH, began=BEGAN), tmp_path / "run.json", None, resumes=False)
    part.tally.add(failure("a", None), *[failure("b", None)] * 3, *[failure("c", None)] * 2)
    part.save(most_hosts=2)

    assert {"b": 3, "c": 2} == load(tmp_path / "run.json").failed_hosts


def test_notes_of_failures_are_expected_unless_every_failure_is_known_to_have_none() -> None:
    """A failure of a killed part may have one. That of another outcome is none of a failure."""
    tally = Tally()
    tally.add(failure("a", None), msgspec.structs.replace(failure("a", "x"), outcome=Outcome.CANCELLED))
    assert not tally.may_have_failure_notes
    tally.complete(Counts(total=3, failed=2, cancelled=1))
    assert tally.may_have_failure_notes
    noted = Tally()
    noted.add(failure("a", "x"))
    assert noted.may_have_failure_notes


def test_an_ended_run_names_its_end_its_outcomes_and_the_remedy(tmp_path: Path) -> None:
    """The error names the report from which the failed fetches can be repeated."""
    ended, note = tmp_path / f"{BATCH}.json", tmp_path / "run.json"
    counts = Counts(total=1500, stored=1480, failed=20)
    record = RunRecord(
        batch=BATCH, began=BEGAN, ended="2030-01-02T04:00:00+00:00", report="/r", counts=counts
    )
    ended.write_bytes(msgspec.json.encode(record))
    with pytest.raises(EndedRunError) as caught:
        ended_run(ended, note, tmp_path, None)

    assert "ended at 2030-01-02 04:00:00 UTC: 1,480 stored, 20 failed." in str(caught.value)
    assert "--only-failed /r" in str(caught.value)
    assert 2 == caught.value.exit_code
    note.write_bytes(msgspec.json.encode(RunRecord(batch=BATCH, began=BEGAN)))
    # A run of it again, which was interrupted, continues.
    assert None is ended_run(ended, note, tmp_path, None)


def test_a_record_is_replaced_in_one_step(tmp_path: Path) -> None:
    """A run that is killed while it saves keeps the previous record."""
    interrupted(tmp_path, None)
    with (tmp_path / "run.json").open("rb") as before:
        part = RunPart(RunRecord(batch=BATCH, position="8-0"), tmp_path / "run.json", None, resumes=True)
        part.save()

        assert "7-1" == msgspec.json.decode(before.read())["position"]
    assert "8-0" == load(tmp_path / "run.json").position
    assert ["run.json"] == [path.name for path in tmp_path.iterdir()]


def test_an_unreadable_record_is_ignored(tmp_path: Path) -> None:
    """The file may have any content."""
    (tmp_path / "run.json").write_bytes(b"\xff{")

    assert "" == load(tmp_path / "run.json").batch
