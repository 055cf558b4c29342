"""A report read as the list of the fetches that failed."""

from pathlib import Path

import msgspec
import pytest

from fetchfleet.jobs.contract.fetch import Fetch, encode
from fetchfleet.jobs.contract.result import Outcome, Result
from fetchfleet.worker.errors import CommandError
from fetchfleet.worker.fetch.rules.result import omitted_of
from fetchfleet.worker.local import run
from fetchfleet.worker.local.lists.failed import Selection, read_failed, restore_fetches
from fetchfleet.worker.local.output.output_files import Outputs
from fetchfleet.worker.local.output.progress import StandardError
from fetchfleet.worker.observability import redact


def result(
    of: Fetch, outcome: Outcome = Outcome.FAILED, place: int = 0, retry_of: str | None = None
) -> Result:
    """Return the result of a fetch as a worker writes it."""
    return Result(
        id=f"0123456789abcdef-{place:08x}",
        url=of.url,
        outcome=outcome,
        worker="w",
        method=of.method,
        dest=of.dest,
        name=of.name,
        key=of.key,
        meta=of.meta,
        omitted=omitted_of(of) if outcome in {Outcome.FAILED, Outcome.CANCELLED} else None,
        retry_of=retry_of,
    )


def reported(folder: Path, *results: Result) -> Path:
    """Write a report and return its path."""
    path = folder / "report.jsonl"
    path.write_bytes(b"".join(encode(item) + b"\n" for item in results))
    return path


A, B = Fetch(url="http://a.example/"), Fetch(url="http://b.example/", dest="b", key="k", meta={"n": 1})
NAMED = Fetch(url="http://a.example/", name="{host}/{stem}{ext}")
HEAD = Fetch(url="http://a.example/", method="HEAD")
POST = Fetch(url="http://a.example/", method="POST", body="x", headers={"A": "b"})


def test_a_failed_fetch_is_restored_from_its_result(tmp_path: Path) -> None:
    """It has URL, method, dest or name, key and meta. Successful ones are left out."""
    stored = [result(A, Outcome.STORED, 5), result(B, Outcome.UNCHANGED, 6)]
    report = reported(
        tmp_path,
        *(result(A), stored[0], result(B, Outcome.CANCELLED, 1), stored[1], result(HEAD, place=2)),
        result(NAMED, place=3),
    )

    assert [A, B, HEAD, NAMED] == restore_fetches(report, read_failed(report), lines=False)


def test_lines_is_set_again_by_the_option(tmp_path: Path) -> None:
    """`--lines-to` sets that field, and may be given again."""
    lines = Fetch(url="http://a.example/", lines=True)
    report = reported(tmp_path, result(lines))

    assert [lines] == restore_fetches(report, read_failed(report), lines=True)
    with pytest.raises(CommandError, match="line 1: the fetch also has lines"):
        restore_fetches(report, read_failed(report), lines=False)


def test_an_incomplete_result_is_refused(tmp_path: Path) -> None:
    """A POST without its body would be another request. The error names the remedy."""
    old = Result(id="0123456789abcdef-00000009", url="http://a.example/", outcome=Outcome.FAILED, worker="w")
    report = reported(tmp_path, result(A), result(POST, place=1), old)
    with pytest.raises(CommandError) as caught:
        restore_fetches(report, read_failed(report), lines=False)

    assert f"fetchfleet run LIST --only-failed {report}" in str(caught.value)
    assert "line 2: the fetch also has headers, body" in str(caught.value)
    assert "line 3: the result is of an older version" in str(caught.value)
    assert 2 == caught.value.exit_code


def test_a_list_and_a_report_give_the_complete_fetches(tmp_path: Path) -> None:
    """The fetches keep the order of the list, and failures that the list lacks are counted."""
    again = Fetch(url="http://b.example/", dest="b2")
    report = reported(
        tmp_path,
        result(POST),
        result(A, Outcome.STORED, 1),
        result(B, place=2),
        result(Fetch(url="http://gone.example/"), place=3),
        Result(id="0123456789abcdef-00000009", url=HEAD.url, outcome=Outcome.FAILED, worker="old"),
    )

    selection = Selection(read_failed(report))
    assert [B, POST, HEAD] == [fetch for fetch in (again, B, POST, B, HEAD) if selection(fetch)]
    assert 1 == selection.missing


def test_the_last_result_of_a_fetch_counts(tmp_path: Path) -> None:
    """A report may hold the retry of a fetch, or one result twice."""
    report = reported(
        tmp_path,
        result(A, place=1),
        result(A, place=1),
        result(B, place=2),
        result(B, Outcome.STORED, 3, retry_of="0123456789abcdef-00000002"),
        result(HEAD, place=4),
        result(HEAD, place=5, retry_of="0123456789abcdef-00000004"),
    )

    assert [A, HEAD] == [Fetch(url=i.result.url, method=i.result.method or "") for i in read_failed(report)]


@pytest.mark.parametrize("text", [b"http://a/\n", b'{"id": 1}\n', b"\xff\n", b"[" * 100_000])
def test_the_error_for_a_file_that_is_not_a_report_names_it(tmp_path: Path, text: bytes) -> None:
    """It also names the line."""
    path = tmp_path / "x"
    path.write_bytes(b"\n" + text)
    with pytest.raises(CommandError, match="line 2: not a result"):
        read_failed(path)
    with pytest.raises(CommandError, match="missing: No such file"):
        read_failed(tmp_path / "missing")


def test_the_omitted_fields_of_a_result_are_named() -> None:
    """Fields of the same name in both structs have another meaning in a result."""
    fetch = Fetch(url="http://a/", sha256="0" * 64, etag='"x"', decode=True, priority="low", meta=1)  # type: ignore[arg-type]

    assert {"sha256", "etag", "decode", "priority"} == set(omitted_of(fetch))
    assert [] == omitted_of(B)


def failed_of(file: str | None, report: Path, outputs: Outputs) -> list[Fetch]:
    """Return the fetches that a command with `--only-failed` makes."""
    with run.open_fetches(file, report, outputs) as stream:
        return list(stream.fetches())


def test_a_command_reads_a_report_with_or_without_its_list(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It names the fetches that it leaves out, and never overwrites the report that it reads."""
    outputs, listed = Outputs(StandardError), tmp_path / "list"
    gone = Fetch(url="http://gone.example/")
    report = reported(tmp_path, result(A), result(B, Outcome.STORED, 1), result(gone, place=2))
    listed.write_bytes(encode(A) + b"\n" + encode(B) + b"\n")

    assert [A, gone] == failed_of(None, report, outputs)
    assert [A] == failed_of(str(listed), report, outputs)
    assert f"are left out, because {listed} does not have them" in capsys.readouterr().err
    with pytest.raises(CommandError, match="--only-failed and --report are the same file"):
        failed_of(None, report, outputs._replace(report=report))
    listed.write_bytes(encode(B))
    with pytest.raises(CommandError, match="none of the 2 failed fetches"):
        failed_of(str(listed), report, outputs)
    reported(tmp_path, result(B, Outcome.STORED))
    assert [] == failed_of(None, report, outputs)
    assert "nothing to do" in capsys.readouterr().err


def test_a_redacted_report_is_refused(tmp_path: Path) -> None:
    """A URL with *** would be fetched literally. `redacted` within meta has no meaning."""
    hidden = result(Fetch(url="http://a.example/?token=hunter2", meta={"redacted": True}))
    printed = tmp_path / "printed.jsonl"
    printed.write_bytes(encode(redact.record(msgspec.to_builtins(hidden))) + b"\n")

    assert [hidden] == [item.result for item in read_failed(reported(tmp_path, hidden))]
    with pytest.raises(CommandError, match="line 1: secrets are masked"):
        read_failed(printed)
