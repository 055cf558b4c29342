"""`--lines-to`: the records of a batch's bodies in one file, each once, also after an interruption."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path

from tests.support.fork_server import COMMAND, Process
from tests.support.waiting import wait_until
from tests.support.workers import fetchfleet, workers
from tools.origin.behaviours import by_path, held, ok, sequence, status
from tools.origin.server import Origin

LOOPBACK = ("--allow-net", "127.0.0.0/8")


def records_of(target: str) -> list[str]:
    """Return three records that name the target."""
    return [json.dumps({"of": target, "row": row}) for row in range(3)]


def body_of(target: str) -> bytes:
    """Return a body with the records, blank lines and spaces."""
    one, two, three = records_of(target)
    return f"\n  {one}\r\n\r\n{two}\n{three}".encode()


async def run(*arguments: str | Path, stdin: str = "") -> "subprocess.CompletedProcess[str]":
    """Run the command in a thread, so that the loop can serve the origins."""
    return await asyncio.to_thread(fetchfleet, *arguments, stdin=stdin)


async def test_records_of_all_bodies_are_exported_to_one_file(tmp_path: Path) -> None:
    """A body's records stay together, failed fetches add nothing, and an old file is replaced."""
    behaviour = by_path({"/gone": status(404), "/bad": ok(b"1\n{\n")}, otherwise=ok(body_of))
    gathered = tmp_path / "records.jsonl"
    gathered.write_text("old\n" * 1000)
    async with Origin.serving("127.0.0.191", behaviour) as origin:
        urls = [origin.url(path) for path in ("/a", "/gone", "/bad", "/b")]
        arguments = ("--out", tmp_path / "out", "--report", tmp_path / "report", "--lines-to", gathered)
        ended = await run("run", "-", *arguments, *LOOPBACK, stdin="\n".join(urls))
    results = {r["url"]: r for r in map(json.loads, (tmp_path / "report").read_text().splitlines())}
    lines = gathered.read_text().splitlines()

    assert 1 == ended.returncode, ended.stderr
    assert lines in (records_of("/a") + records_of("/b"), records_of("/b") + records_of("/a"))
    assert [3, None, None, 3] == [results[url]["lines"] for url in urls]
    assert ("bad_line", 2) == (results[urls[2]]["reason"], results[urls[2]]["bad_line"])


async def test_a_continued_run_exports_each_record_once(tmp_path: Path) -> None:
    """The first run is killed. A partial record at the end of the file is cut off."""
    go_on, gathered = asyncio.Event(), tmp_path / "records.jsonl"
    report, note = tmp_path / "report.jsonl", tmp_path / "out/.fetchfleet/lines.json"
    targets = [f"/{place}" for place in range(20)]
    behaviour = sequence(*[ok(body_of)] * 10, held(go_on, ok(body_of)))
    async with Origin.serving("127.0.0.193", behaviour) as origin:
        (tmp_path / "list").write_text("\n".join(origin.url(target) for target in targets))
        arguments: list[str | Path] = ["run", tmp_path / "list", "--out", tmp_path / "out", *LOOPBACK]
        arguments += ["--lines-to", gathered, "--report", report]
        first = Process(COMMAND, *arguments, stderr=subprocess.DEVNULL)
        await wait_until(lambda: note.exists() and json.loads(note.read_bytes())["results"] == 10, "ten", 30)
        first.kill()
        await wait_until(lambda: first.poll() is not None, "the end of the run", 30)
        with gathered.open("a") as file:
            file.write('{"of": "half a bo')
        go_on.set()
        second = await run(*arguments)
    wanted = [record for target in targets for record in records_of(target)]

    assert 0 == second.returncode, second.stderr
    assert sorted(wanted) == sorted(gathered.read_text().splitlines())
    assert 20 == len(report.read_text().splitlines())
    assert not note.exists()


async def test_an_export_without_the_bodies_exits_1(redis_url: str, tmp_path: Path) -> None:
    """The workers' out folder must be local. The message names the missing body and the remedy."""
    gathered = tmp_path / "records.jsonl"
    async with Origin.serving("127.0.0.194", ok(body_of)) as origin:
        with workers(1, redis_url, tmp_path):
            arguments = ("submit", "-", "--redis", redis_url, "--lines-to", gathered, "--out", tmp_path)
            ended = await run(*arguments, stdin=origin.url("/b"))

    assert 1 == ended.returncode
    assert f"{origin.url('/b')}: records left out" in ended.stderr
    assert "With --out, give" in ended.stderr
    assert "" == gathered.read_text()


async def test_a_closed_pipe_ends_the_export(tmp_path: Path) -> None:
    """Records are written to standard output as bodies arrive. No traceback is printed."""
    async with Origin.serving("127.0.0.195", ok(lambda target: body_of(target) * 20_000)) as origin:
        (tmp_path / "list").write_text("\n".join(origin.url(f"/{place}") for place in range(3)))
        command: list[str | Path] = [
            sys.executable,
            "-m",
            "fetchfleet.worker",
            "run",
            tmp_path / "list",
            "--out",
            tmp_path / "out",
        ]
        reading = subprocess.Popen(  # noqa: ASYNC220 it only starts it
            [*command, "--lines-to", "stream", *LOOPBACK], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert reading.stdout is not None
        first = await asyncio.to_thread(reading.stdout.readline)
        reading.stdout.close()
        _, errors = await asyncio.to_thread(reading.communicate)

    assert (1, "row") == (reading.returncode, list(json.loads(first))[1])
    assert b"--lines-to stream: Broken pipe" in errors
    assert b"Traceback" not in errors


def test_an_export_path_that_cannot_be_opened_exits_2(tmp_path: Path) -> None:
    """The command exits before any fetch."""
    ended = fetchfleet(
        "run", "-", "--out", tmp_path / "out", "--lines-to", "no/such/file", stdin="http://127.0.0.1/"
    )

    assert (2, False) == (ended.returncode, (tmp_path / "out").exists())
    assert "--lines-to no/such/file: No such file or directory" in ended.stderr
