"""The command `export`: the results of a batch as a file."""

import asyncio
import csv
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from pyarrow import parquet

from fetchfleet import Outcome, Result
from fetchfleet.jobs import keys
from fetchfleet.jobs.contract.fetch import encode
from fetchfleet.jobs.redis_connection import connect
from tests.support.commands import Commands

BATCH = "0123456789abcdef"
SECRET = "http://a.example/?token=s3cret"


def result(place: int) -> Result:
    """Return a result with a secret in its URL."""
    return Result(
        id=f"{BATCH}-{place:08x}",
        url=f"{SECRET}&place={place}",
        outcome=Outcome.STORED,
        worker="w",
        meta={"place": place},
    )


async def fill(redis_url: str, total: int) -> None:
    """Write a batch of so many fetches, of which two have a result."""
    async with connect(redis_url) as redis:
        sealed = int(total == 2)
        counts = {"total": total, "sealed": sealed, "stored": 2, "done": 2}
        await redis.hset(keys.batch(BATCH), mapping=counts)  # type: ignore[misc]
        for place in range(2):
            await redis.xadd(keys.results(BATCH), {"r": encode(result(place))})


async def clear(redis_url: str) -> None:
    """Remove the batch."""
    async with connect(redis_url) as redis:
        await redis.delete(keys.batch(BATCH), keys.results(BATCH))


@pytest.fixture
def commands(redis_url: str) -> Iterator[Commands]:
    """Write a batch that has ended, and return the commands of its fleet."""
    asyncio.run(fill(redis_url, 2))
    yield Commands(redis_url)
    asyncio.run(clear(redis_url))


def lines_of(text: str) -> list[dict[str, Any]]:
    """Return the objects of JSON Lines."""
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def test_the_ending_of_the_file_names_its_format(commands: Commands, tmp_path: Path) -> None:
    """Another file is replaced when the new one is complete. Text is JSON Lines."""
    files = {name: tmp_path / name for name in ("a.parquet", "a.csv", "a.txt")}
    files["a.csv"].write_text("old")
    printed = [commands.run("export", BATCH, str(file), "--reveal") for file in files.values()]
    table = parquet.read_table(files["a.parquet"]).to_pylist()
    with files["a.csv"].open(newline="") as file:
        rows = [*csv.DictReader(file)]

    assert {f"2 results written to {file}" for file in files.values()} == {
        text.strip().replace("\n", "") for text in printed
    }
    assert [msgspec.to_builtins(result(place)) for place in range(2)] == lines_of(files["a.txt"].read_text())
    assert [(result(place).url, place) for place in range(2)] == [
        (row["url"], row["meta.place"]) for row in table
    ]
    assert [row["url"] for row in table] == [row["url"] for row in rows]
    assert {*files.values()} == {*tmp_path.iterdir()}


def test_secrets_are_masked_unless_they_are_to_be_shown(commands: Commands) -> None:
    """As by `results --json`. A table has a column that says so."""
    masked = commands.run("export", BATCH, "-")
    _, header, rows = commands.run("export", BATCH, "-", "--format", "csv").partition("url,")
    table = [*csv.DictReader(io.StringIO(header + rows))]

    assert lines_of(commands.run("results", BATCH, "--json")) == lines_of(masked)
    assert "s3cret" not in masked
    assert ("http://a.example/?token=***&place=0", "true") == (table[0]["url"], table[0]["redacted"])
    assert SECRET in commands.run("export", BATCH, "-", "--reveal")


def test_results_that_are_not_there_are_mentioned(redis_url: str, commands: Commands) -> None:
    """They are due, or another reader has deleted them."""
    asyncio.run(trim(redis_url))
    deleted = commands.run("export", BATCH, "-")
    asyncio.run(fill(redis_url, 5))
    unfinished = commands.run("export", BATCH, "-")

    assert "1 result is missing: a reader that deletes results has read it" in deleted
    assert "not ended: 2 of 5 fetches have a result; --follow waits for the others" in unfinished


async def trim(redis_url: str) -> None:
    """Delete the first result."""
    async with connect(redis_url) as redis:
        await redis.xtrim(keys.results(BATCH), maxlen=1, approximate=False)


def test_a_report_is_converted(commands: Commands, tmp_path: Path) -> None:
    """The JSON Lines that an interrupted command left are removed when the report has them."""
    lines, report = tmp_path / "a.sqlite.part.jsonl", tmp_path / "a.sqlite"
    lines.write_bytes(encode(result(0)) + b"\n\n" + encode(result(1)))
    copied = commands.run("export", str(lines), "-")
    converted = commands.run("export", str(lines), str(report), "--reveal")
    (tmp_path / "bad.jsonl").write_bytes(encode(result(0)) + b"\n{}\n")
    bad = commands.invoke("export", str(tmp_path / "bad.jsonl"), str(report))
    table = commands.invoke("export", str(report), str(tmp_path / "a.csv"))

    assert [0, 1] == [line["meta"]["place"] for line in lines_of(copied)]
    assert (True, False) == ("2 results written" in converted, lines.exists())
    assert (2, True) == (bad.exit_code, "bad.jsonl: line 2: not a result" in bad.output)
    assert (2, True) == (table.exit_code, "a report in sqlite; only one in JSON Lines" in table.output)


def test_what_cannot_be_exported_is_refused(commands: Commands, tmp_path: Path) -> None:
    """Before results are read."""
    same = tmp_path / "a.jsonl"
    same.write_bytes(encode(result(0)))
    unknown = commands.invoke("export", "fedcba9876543210", str(tmp_path / "b.csv"))
    for words, message in (
        (["export", "x", "-"], "x is not a batch ID"),
        (["export", BATCH, str(tmp_path / "no/a.csv")], "No such file or directory; make its folder first"),
        (["export", BATCH, str(tmp_path / "a.xlsx")], "a report is not written as .xlsx"),
        (["export", str(same), str(same)], "BATCH and FILE are the same file"),
    ):
        refused = commands.invoke(*words)
        assert (2, True) == (refused.exit_code, message in refused.output), refused.output
    assert (1, True) == (unknown.exit_code, "is not in Redis" in unknown.output)
    assert [same] == [*tmp_path.iterdir()]


def test_a_large_batch_is_exported_in_pages(redis_url: str, tmp_path: Path) -> None:
    """Twice as many results need hardly more memory."""
    code = (
        "from pathlib import Path; from fetchfleet.worker.cli.app import run_command; run_command();"
        "print(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])"
    )
    report = tmp_path / "a.parquet"
    words = ["export", BATCH, str(report), "--reveal", "--redis", redis_url]
    peaks = []
    for total in (2200, 4800):
        asyncio.run(fill_large(redis_url, total))
        ended = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, check=True)
        peaks.append(int(ended.stdout) >> 10)
    asyncio.run(clear(redis_url))

    assert 4800 == parquet.read_metadata(report).num_rows
    assert peaks[1] - peaks[0] < 16, peaks


async def fill_large(redis_url: str, total: int) -> None:
    """Write a batch of results of 8 kB."""
    async with connect(redis_url) as redis, redis.pipeline() as pipe:
        counts = {"total": total, "sealed": 1, "stored": total, "done": total}
        pipe.hset(keys.batch(BATCH), mapping=counts)
        pipe.delete(keys.results(BATCH))
        for place in range(total):
            large = msgspec.structs.replace(result(place), meta={"text": "x" * 8000})
            pipe.xadd(keys.results(BATCH), {"r": encode(large)})
        await pipe.execute()
