"""Reports as CSV, Parquet and SQLite: made from JSON Lines, completely or not at all."""

import asyncio
import csv
import json
import os
import resource
import sqlite3
import subprocess
import sys
from contextlib import closing, nullcontext
from io import BytesIO
from pathlib import Path
from secrets import token_hex
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from fetchfleet.jobs.contract.fetch import encode
from fetchfleet.jobs.contract.result import Outcome, Result, Timings
from fetchfleet.jobs.contract.safe_text import UNSAFE, shown
from fetchfleet.worker.errors import BAD_USE, CommandError
from fetchfleet.worker.local.lists.failed import read_failed, restore_fetches
from fetchfleet.worker.local.output import reports, table
from fetchfleet.worker.local.output.output_files import Outputs, check_outputs
from fetchfleet.worker.local.output.progress import StandardError
from fetchfleet.worker.local.output.reports import ReportFormat
from fetchfleet.worker.local.output.table_files import quoted, unquoted

TABLES = [ReportFormat.CSV, ReportFormat.PARQUET, ReportFormat.SQLITE]
Row = dict[str, Any]


def result(meta: Any = None, place: int = 0, **fields: Any) -> Result:
    """Return a result with this `meta`."""
    given_fields = {"url": "http://a.example/", "outcome": Outcome.STORED, "worker": "w", **fields}
    return Result(id=f"0123456789abcdef-{place:08x}", meta=meta, **given_fields)


def convert(results: list[Result], to: Path) -> list[Row]:
    """Convert the results to a report, and return its rows."""
    lines = b"".join(encode(each) + b"\n" for each in results)
    asyncio.run(reports.convert(BytesIO(lines), "lines", to, reports.format_of(to)))
    return rows_of(to)


def rows_of(report: Path) -> list[Row]:
    """Return the rows of a report, read as its users read it. A cell of CSV is text, or None."""
    if report.suffix == ".csv":
        with report.open(encoding="utf-8", newline="") as file:
            return [{name: cell or None for name, cell in row.items()} for row in csv.DictReader(file)]
    if report.suffix == ".parquet":
        return list(parquet.read_table(report).to_pylist())
    with closing(sqlite3.connect(report)) as database:
        database.row_factory = sqlite3.Row
        return [dict(row) for row in database.execute("SELECT * FROM results ORDER BY id")]


FULL = Result(
    id="0123456789abcdef-00000001",
    url="http://a.example/?q=1",
    outcome=Outcome.FAILED,
    worker="w",
    status=404,
    unverified=True,
    attempts=3,
    timings=Timings(queue_ms=1.5, total_ms=10.0),
    meta={"order": 7, "caption": 'a "b",\nc', "tags": ["x", {"y": None}], "big": 1 << 60, "ok": False},
    etag='"=1"',
    omitted=["headers", "body"],
    note="connection refused",
)


@pytest.mark.parametrize("kind", TABLES)
def test_a_report_has_a_column_for_each_field_and_each_key_of_meta(tmp_path: Path, kind: str) -> None:
    """The fields that readers look for come first. Numbers and booleans keep their types."""
    [row] = convert([FULL], tmp_path / f"report.{kind}")
    fields = {**msgspec.to_builtins(FULL), **msgspec.to_builtins(FULL.timings)}
    wanted: Row = {name: fields[name] for name in row if not name.startswith("meta.")}
    wanted["omitted"] = '["headers","body"]'
    for name, value in FULL.meta.items():
        wanted[f"meta.{name}"] = '["x",{"y":null}]' if name == "tags" else value

    assert list(table.FIRST) == list(row)[: len(table.FIRST)]
    assert fields.keys() - {"meta", "timings"} == row.keys() - {f"meta.{name}" for name in FULL.meta}
    if kind == ReportFormat.CSV:
        wanted = {
            name: of if of is None or isinstance(of, str) else json.dumps(of) for name, of in wanted.items()
        }
    assert wanted == row


INTEGERS = st.integers(-(1 << 80), 1 << 80)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
SCALARS = st.none() | st.booleans() | INTEGERS | FLOATS | st.text()
SHAPES = st.recursive(SCALARS, lambda of: st.lists(of) | st.dictionaries(st.text(), of), max_leaves=4)
OBJECTS = st.dictionaries(st.sampled_from(["a", "A", "b"]) | st.text(), SHAPES)
METAS = st.lists(OBJECTS | SHAPES, max_size=6)


@settings(max_examples=25)
@example([{"a": 1}, {"a": 2.5}, {"A": True}])
@example([{"a": 1 << 53 | 1}, {"a": 0.5}])
@example([1, {"": None}, "x"])
@example([{"\x00": "\x00", "a\nb": "\x1b[31m"}])
@given(METAS)
def test_every_value_of_meta_is_in_the_table(metas: list[Any]) -> None:
    """A string is there as it is, another value as itself or as JSON. No column hides another."""
    results = [result(json.loads(json.dumps(meta)), place) for place, meta in enumerate(metas)]
    names = {name for meta in metas if isinstance(meta, dict) for name in meta}
    with TemporaryDirectory() as folder:
        for kind in (ReportFormat.PARQUET, ReportFormat.SQLITE):
            rows = convert(results, Path(folder) / f"report.{kind}")
            columns = meta_columns(results)

            assert len(metas) == len(rows)
            assert len({name.casefold() for name in columns.values()}) == len(columns)
            assert names == columns.keys() - {None}
            for row, meta in zip(rows, metas, strict=True):
                items = meta if isinstance(meta, dict) else {None: meta}
                for name, column in columns.items():
                    assert same(items.get(name), row[column]), (name, items.get(name), row[column])


def meta_columns(results: list[Result]) -> dict[str | None, str]:
    """Return the name of the column of each key of `meta`, and by None of a `meta` that is not an object."""
    columns = table.MetaColumns()
    columns.add([table.RowMeta(each.meta) for each in results])
    keys = list(dict.fromkeys(key for each in results if isinstance(each.meta, dict) for key in each.meta))
    names = [column.name for column in columns.columns() if column.name.startswith("meta")]
    found: dict[str | None, str] = dict(zip(keys, names, strict=False))
    return {**found, None: names[-1]} if len(names) > len(keys) else found


def same(value: Any, cell: Any) -> bool:
    """Return whether the cell holds the value: as it is, as a wider number, or as JSON."""
    if value == cell:
        return True
    return not isinstance(value, str) and isinstance(cell, str) and json.loads(cell) == value


@given(st.text())
@example("=1+1")
@example("'=1+1")
@example("-1")
@example("\uff1d1")
def test_a_cell_of_csv_is_never_a_formula(text: str) -> None:
    """The quote before it can be removed again. Numbers need none."""
    assert quoted(text)[:1] not in {*"=@\uff1d\uff20"}
    assert text == unquoted(quoted(text))
    assert "-1.5" == quoted("-1.5")


def test_csv_is_safe_on_a_terminal(tmp_path: Path) -> None:
    """The other formats have the text as it is."""
    text = "a\x1b[31m\u202eb\r\nc"
    [row] = convert([result({text: text}, key=text)], tmp_path / "report.csv")

    assert not UNSAFE.search((tmp_path / "report.csv").read_text().replace("\n", "").replace("\r", ""))
    assert row[f"meta.{shown(text)}"] == row["key"] == "a\\u001b[31m\\u202eb\\u000d\nc"
    assert text == convert([result({"a": text})], tmp_path / "report.sqlite")[0]["meta.a"]


@pytest.mark.parametrize("kind", TABLES)
def test_forged_results_and_very_many_keys_do_not_stop_a_conversion(tmp_path: Path, kind: str) -> None:
    """An integer that no column can have is left out, and `meta` is one column of JSON."""
    forged = [result({f"key-{place}": place}, place, bytes=1 << 70) for place in range(600)]
    rows = convert(forged, tmp_path / f"report.{kind}")

    assert 600 == len(rows)
    assert {None} == {row["bytes"] for row in rows}
    assert [{"key-599": 599}] == [json.loads(row["meta"]) for row in rows[-1:]]


def test_the_last_result_of_an_id_counts_in_a_database(tmp_path: Path) -> None:
    """Its key is the ID, and an outcome is found by an index."""
    twice = [result(outcome=Outcome.FAILED), result(outcome=Outcome.STORED)]

    assert ["stored"] == [row["outcome"] for row in convert(twice, tmp_path / "report.sqlite")]
    with closing(sqlite3.connect(tmp_path / "report.sqlite")) as database:
        plan = database.execute("EXPLAIN QUERY PLAN SELECT url FROM results WHERE outcome = 'failed'")
        assert "results_by_outcome" in str(plan.fetchall())


@pytest.mark.parametrize("kind", TABLES)
def test_a_failed_conversion_keeps_the_old_report_and_the_lines(tmp_path: Path, kind: str) -> None:
    """The error names the lines and the command that converts them. No partial file remains."""
    report = tmp_path / f"report.{kind}"
    lines = reports.lines_of(report)
    report.write_text("old")
    lines.write_bytes(
        b"".join(encode(result({"text": token_hex(99)}, place)) + b"\n" for place in range(3000))
    )
    code = (
        "import asyncio, sys; from pathlib import Path; from fetchfleet.worker.local.output import reports;"
        "asyncio.run(reports.finish(Path(sys.argv[1]), print))"
    )

    def finish(most_bytes: int) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-c", code, report],
            capture_output=True,
            text=True,
            check=False,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes)),
        )

    full = finish(20_000)
    assert f"every result is in {lines}; convert it with:\nfetchfleet export" in full.stderr
    assert ("old", {report, lines}) == (report.read_text(), {*tmp_path.iterdir()})
    ended = finish(1 << 30)
    assert 0 == ended.returncode, ended.stderr
    assert (3000, {report}) == (len(rows_of(report)), {*tmp_path.iterdir()})


def test_a_line_that_is_not_a_result_is_named(tmp_path: Path) -> None:
    """The report is not replaced."""
    lines = BytesIO(encode(result()) + b'\n\n{"url": 1}\n')
    with pytest.raises(CommandError, match="lines: line 3: not a result"):
        asyncio.run(reports.convert(lines, "lines", tmp_path / "report.csv", ReportFormat.CSV))
    assert [] == [*tmp_path.iterdir()]


def test_files_of_an_old_database_are_removed(tmp_path: Path) -> None:
    """SQLite would apply its log to the new one."""
    report = tmp_path / "report.sqlite"
    (tmp_path / "report.sqlite-wal").write_bytes(b"old")
    link = tmp_path / "link.sqlite"
    link.symlink_to(report)
    convert([result()], link)

    assert {report, link} == {*tmp_path.iterdir()}
    assert link.is_symlink()


def outputs_to(report: Path) -> Outputs:
    """Return the outputs of a command with a report."""
    return Outputs(StandardError, report=report)


def test_an_output_that_a_report_cannot_have_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as a pipe, the list itself, and Parquet without its extra. Nothing was enqueued then."""
    with pytest.raises(
        CommandError, match=r"a.xlsx: a report is not written as .xlsx; .* .csv, .*, or .jsonl"
    ):
        check_outputs("-", outputs_to(tmp_path / "a.xlsx"))
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(CommandError, match=r"pipe.csv: not a file; only JSON Lines can go to a pipe"):
        check_outputs("-", outputs_to(tmp_path / "pipe.csv"))
    listed = tmp_path / "a.csv.part.jsonl"
    listed.touch()
    with pytest.raises(CommandError, match=r"FILE and --report .* are the same file"):
        check_outputs(str(listed), outputs_to(tmp_path / "a.csv"))
    check_outputs("-", outputs_to(tmp_path / "a.parquet"))
    monkeypatch.setattr(reports, "find_spec", lambda _: None)
    with pytest.raises(CommandError, match=r"pip install 'fetchfleet\[parquet\]'") as refused:
        check_outputs("-", outputs_to(tmp_path / "a.parquet"))
    assert BAD_USE == refused.value.exit_code
    assert [ReportFormat.JSONL, ReportFormat.CSV] == [
        reports.format_of(Path(name)) for name in ("a", "a.CSV")
    ]


@pytest.mark.parametrize(
    ("name", "fits"),
    [
        *((name, True) for name in ("a", "a.jsonl", "a.ndjson", "a.json", "a.txt", "a.log", "a.LOG")),
        *(
            (name, True)
            for name in ("a.csv", "a.PARQUET", "a.sqlite", "a.2030-01-31", "a.1", "-", ".a", "a.")
        ),
        *((name, False) for name in ("a.xlsx", "a.jsonl.gz", "a.tsv", "a.db", "a.html", "a.csv.bak")),
    ],
)
def test_a_report_has_an_ending_that_names_its_format(tmp_path: Path, name: str, *, fits: bool) -> None:
    """Text without a format of its own is JSON Lines, and so is a pipe. Any other ending is refused."""
    with nullcontext() if fits else pytest.raises(CommandError, match="a report is not written as"):
        reports.check_ending("FILE", tmp_path / name)
    os.mkfifo(tmp_path / "pipe.xlsx")
    reports.check_ending("FILE", tmp_path / "pipe.xlsx")


def test_an_interrupted_conversion_keeps_the_lines(tmp_path: Path) -> None:
    """A message has the command that converts them, and no partial report remains."""
    report, warnings = tmp_path / "report.sqlite", list[str]()
    lines = reports.lines_of(report)
    lines.write_bytes(encode(result({"text": "x" * 1000})) + b"\n")

    async def interrupt() -> None:
        converting = asyncio.create_task(reports.finish(report, warnings.append))
        for _ in range(2):  # it has begun, and has read the first page
            await asyncio.sleep(0)
        converting.cancel()
        await converting

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(interrupt())

    assert [f"every result is in {lines}; convert it with:\n{reports.command_to_convert(report)}"] == warnings
    assert [lines] == [*tmp_path.iterdir()]


def most_memory_mib(lines: Path, report: Path) -> int:
    """Convert the lines in a process of its own, and return its peak of resident memory."""
    code = (
        "import asyncio, sys; from pathlib import Path;"
        "from fetchfleet.worker.local.output import reports;"
        "asyncio.run(reports.finish(Path(sys.argv[1]), print));"
        "print(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])"
    )
    assert lines == reports.lines_of(report)
    ended = subprocess.run([sys.executable, "-c", code, report], capture_output=True, check=True)
    return int(ended.stdout) >> 10


@pytest.mark.parametrize("kind", [ReportFormat.PARQUET, ReportFormat.SQLITE])
def test_a_large_report_is_converted_in_pages(tmp_path: Path, kind: str) -> None:
    """Five pages of results need hardly more memory than two of them."""
    text, peaks = "x" * 2000, []
    for pages in (2, 5):
        report = tmp_path / f"report.{kind}"
        lines = reports.lines_of(report)
        line = encode(result({"text": text})) + b"\n"
        lines.write_bytes(line * (pages * reports.PAGE_BYTES // len(line)))
        peaks.append(most_memory_mib(lines, report))

    assert peaks[1] - peaks[0] < reports.PAGE_BYTES >> 20, peaks


FAILED = [
    result(place=1, outcome=Outcome.FAILED, method="GET", dest="=d", key="null", omitted=[]),
    result({"n": 1}, place=2, outcome=Outcome.FAILED, method="GET", omitted=["headers"]),
    result(place=3, outcome=Outcome.CANCELLED, method="GET", key="7", retry_of="x", omitted=[], lines=3),
]


def parts(of: Result) -> tuple[Any, ...]:
    """Return the fields that identify the fetch of a result."""
    return of.id, of.outcome, of.method, of.dest, of.key, of.lines, of.retry_of


@pytest.mark.parametrize("kind", TABLES)
def test_a_table_is_read_as_the_list_of_what_failed(tmp_path: Path, kind: str) -> None:
    """Columns do not show the types in `meta`, so a fetch with `meta` is one of those that need the list."""
    report = tmp_path / f"report.{kind}"
    convert([result(place=0), *FAILED], report)
    found = [failed.result for failed in read_failed(report)]

    assert [parts(each) for each in FAILED] == [parts(each) for each in found]
    assert ["headers", "meta"] == found[1].omitted
    with pytest.raises(CommandError, match=r"row 3: the fetch also has headers, meta"):
        restore_fetches(report, read_failed(report), lines=False)


def test_csv_with_a_long_cell_or_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    """A text of `meta` may be as long as a fetch. Spreadsheets add the mark."""
    report = tmp_path / "report.csv"
    convert([result("x" * 200_000, outcome=Outcome.FAILED)], report)

    report.write_bytes(b"\xef\xbb\xbf" + report.read_bytes())

    assert [each.result.url for each in read_failed(report)] == ["http://a.example/"]


def test_csv_with_more_cells_than_its_header_is_refused(tmp_path: Path) -> None:
    """An unquoted comma was added by hand."""
    (tmp_path / "report.csv").write_text("id,url,outcome\n1,http://a.example/,failed,x\n")

    with pytest.raises(CommandError, match="line 2 has more cells than the header"):
        read_failed(tmp_path / "report.csv")


@pytest.mark.parametrize("kind", TABLES)
def test_a_file_that_is_not_a_report_is_refused(tmp_path: Path, kind: str) -> None:
    """A report with masked secrets is refused too."""
    report = tmp_path / f"report.{kind}"
    report.write_bytes(b"not a report")
    with pytest.raises(CommandError, match=r"not a re(port|sult)"):
        read_failed(report)
    masked = msgspec.to_builtins(FAILED[0])
    line = BytesIO(msgspec.json.encode({**masked, "redacted": True}) + b"\n")
    asyncio.run(reports.convert(line, "lines", report, reports.format_of(report)))
    with pytest.raises(CommandError, match="row 1: secrets are masked"):
        read_failed(report)
