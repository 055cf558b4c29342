"""Reports as tables, written by `run` and `submit`, also after an interruption."""

import asyncio
import csv
import json
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path
from typing import Any

from pyarrow import parquet

from tests.support.fork_server import COMMAND, Process
from tests.support.waiting import wait_until
from tests.support.workers import fetchfleet, workers
from tools.origin.behaviours import by_path, held, ok, sequence, status
from tools.origin.server import Origin

LOOPBACK = ("--allow-net", "127.0.0.0/8")


async def run(*arguments: str | Path, stdin: str = "") -> "subprocess.CompletedProcess[str]":
    """Run the command in a thread, so that the loop can serve the origins."""
    return await asyncio.to_thread(fetchfleet, *arguments, stdin=stdin)


def rows_of(report: Path) -> list[dict[str, Any]]:
    """Return the rows of a table."""
    if report.suffix == ".csv":
        with report.open(encoding="utf-8", newline="") as file:
            return [*csv.DictReader(file)]
    if report.suffix == ".parquet":
        return list(parquet.read_table(report).to_pylist())
    with closing(sqlite3.connect(report)) as database:
        database.row_factory = sqlite3.Row
        return [dict(row) for row in database.execute("SELECT * FROM results")]


async def interrupt_and_continue(folder: Path, kind: str, host: str, together: asyncio.Barrier) -> None:
    """Kill a run, let the conversion of the second fail, and check the report of the third."""
    go_on, report = asyncio.Event(), folder / f"report.{kind}"
    lines, obstacle = folder / f"report.{kind}.part.jsonl", folder / f".report.{kind}.new"
    behaviour = sequence(*[ok(b"x")] * 6, held(go_on, ok(b"x")))
    async with Origin.serving(host, behaviour) as origin:
        urls = [origin.url(f"/{place}") for place in range(12)]
        listed = [json.dumps({"url": url, "meta": {"place": place}}) for place, url in enumerate(urls)]
        (folder / "list").write_text("\n".join(listed))
        arguments: list[str | Path] = ["run", folder / "list", "--out", folder / "out", *LOOPBACK]
        arguments += ["--report", report]
        first = Process(COMMAND, *arguments, stderr=subprocess.DEVNULL)
        await wait_until(lambda: lines.exists() and lines.read_bytes().count(b"\n") == 6, "six", 30)
        await together.wait()  # while a command starts, this process would adopt the workers of a killed one
        first.kill()
        await wait_until(lambda: first.poll() is not None, "the end of the run", 30)
        await together.wait()
        obstacle.mkdir()
        go_on.set()
        second = await run(*arguments)
    has_report = report.exists()
    obstacle.rmdir()
    third = await run(*arguments)
    fourth = await run(*arguments)
    places = sorted((row["url"], int(row["meta.place"])) for row in rows_of(report))

    assert (1, False) == (second.returncode, has_report)
    assert f"every result is in {lines}; convert it with:\nfetchfleet export {lines}" in second.stderr
    assert 0 == third.returncode, third.stderr
    assert sorted((url, place) for place, url in enumerate(urls)) == places
    assert not lines.exists()
    assert (2, True) == (fourth.returncode, "this list was already fetched" in fourth.stderr)


async def test_a_continued_run_has_each_result_once_in_its_table(tmp_path: Path) -> None:
    """One run for each format, at the same time. A repeated command finishes a conversion that failed."""
    kinds = {"csv": "127.0.0.141", "parquet": "127.0.0.143", "sqlite": "127.0.0.144"}
    folders = {kind: tmp_path / kind for kind in kinds}
    for folder in folders.values():
        folder.mkdir()
    together = asyncio.Barrier(len(kinds))
    async with asyncio.TaskGroup() as group:
        for kind, host in kinds.items():
            group.create_task(interrupt_and_continue(folders[kind], kind, host, together))


async def test_a_submit_with_a_table_keeps_the_results_of_an_earlier_one(
    redis_url: str, tmp_path: Path
) -> None:
    """Redis no longer has them. The message has the command that converts them."""
    report = tmp_path / "report.parquet"
    lines = tmp_path / "report.parquet.part.jsonl"
    behaviour = by_path({"/gone": status(404)}, otherwise=ok(b"x"))
    async with Origin.serving("127.0.0.142", behaviour) as origin:
        listed = "\n".join([origin.url("/a"), origin.url("/gone")])
        with workers(1, redis_url, tmp_path / "out"):
            arguments = ("submit", "-", "--redis", redis_url, "--wait", "--report", report)
            ended = await run(*arguments, stdin=listed)
            lines.write_bytes(b"{}\n")
            refused = await run(*arguments, stdin=listed)

    assert 1 == ended.returncode, ended.stderr
    assert {"stored": None, "failed": 404} == {
        row["outcome"]: None if row["outcome"] == "stored" else row["status"] for row in rows_of(report)
    }
    assert 2 == refused.returncode
    assert (
        f"{lines} has results of an earlier command; delete it, or convert it with:\nfetchfleet"
        in refused.stderr
    )
    assert b"{}\n" == lines.read_bytes()
