"""The command line as a user runs it: output, files and exit codes."""

import asyncio
import base64
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fetchfleet import Fleet, __version__
from tests.support.fork_server import COMMAND, Process
from tests.support.waiting import wait_until
from tests.support.workers import fetchfleet, workers
from tools.origin.behaviours import by_path, latency, ok, sequence, slow, status
from tools.origin.judge import most_at_once
from tools.origin.server import Origin

LOOPBACK = ("--allow-net", "127.0.0.0/8")


async def run(*arguments: str | Path, stdin: str = "") -> "subprocess.CompletedProcess[str]":
    """Run the command in a thread, so that the loop can serve the origins."""
    return await asyncio.to_thread(fetchfleet, *arguments, stdin=stdin)


async def test_run_stores_a_list_reports_each_result_and_exits_0(tmp_path: Path) -> None:
    """The command needs no setup."""
    async with Origin.serving("127.0.0.161", ok(b"body")) as origin:
        listed = tmp_path / "list"
        listed.write_text(f"# a comment\n\n{origin.url('/a')}\n" + json.dumps({"url": origin.url("/b")}))
        report = tmp_path / "report.jsonl"
        ended = await run("run", listed, "--out", tmp_path / "out", "--report", report, *LOOPBACK)
    results = [json.loads(line) for line in report.read_text().splitlines()]

    assert 0 == ended.returncode, ended.stderr
    assert {origin.url("/a"), origin.url("/b")} == {result["url"] for result in results}
    assert {b"body"} == {(tmp_path / "out" / result["path"]).read_bytes() for result in results}
    assert "2 of 2 fetches" in ended.stderr


async def test_options_of_run_set_the_policy_and_headers(tmp_path: Path) -> None:
    """The workers apply them: one fetch at a time, one attempt, a size limit, a header field."""
    behaviour = by_path({"/large": ok(b"x" * 2000), "/bad": status(500)}, otherwise=latency(0.02))
    async with Origin.serving("127.0.0.169", behaviour) as origin:
        listed = [origin.url(f"/{name}") for name in ("large", "bad", *range(8))]
        limits = ("--concurrency", "1", "--attempts", "1", "--max-bytes", "1kB", "--set", "context=true")
        options = (*limits, "--header", "X-Team: data", "--allow-net", "loopback")
        ended = await run("run", "-", "--out", tmp_path / "out", *options, stdin="\n".join(listed))

    assert ended.returncode == 1, ended.stderr
    assert "too_large" in ended.stderr
    assert len(origin.requests) == 10
    assert most_at_once(origin.requests) == 1
    assert {origin.header(request, "x-team") for request in origin.requests} == {"data"}
    assert all(origin.header(request, "x-request-id") for request in origin.requests)


async def test_run_without_standard_streams_keeps_its_exit_code(tmp_path: Path) -> None:
    """All three streams are closed, as for a daemon."""
    behaviour = by_path({"/gone": status(404)}, otherwise=ok(b"here"))
    async with Origin.serving("127.0.0.168", behaviour) as origin:
        (tmp_path / "list").write_text(f"{origin.url('/here')}\n{origin.url('/gone')}\n")
        command = f"exec '{sys.executable}' -m fetchfleet.worker run list --out out {' '.join(LOOPBACK)}"
        closed = ["/bin/sh", "-c", f"{command} <&- >&- 2>&-"]
        ended = await asyncio.to_thread(lambda: subprocess.run(closed, cwd=tmp_path, timeout=60, check=False))

    assert 1 == ended.returncode
    assert 1 == len(stored(tmp_path / "out"))


async def test_run_exits_1_after_a_failure_and_retries_it_from_the_report(tmp_path: Path) -> None:
    """`--only-failed` fetches only what failed, with its fields. The list comes from standard input."""
    behaviour = by_path({"/gone": sequence(status(404), ok(b"back"))}, otherwise=ok(b"here"))
    out, report = tmp_path / "out", tmp_path / "report"
    async with Origin.serving("127.0.0.162", behaviour) as origin:
        gone = json.dumps({"url": origin.url("/gone"), "dest": "g", "key": "k"})
        listed = f"{origin.url('/here')}\n{gone}"
        ended = await run("run", "-", "--out", out, "--report", report, *LOOPBACK, stdin=listed)
        retried = await run("run", "--only-failed", report, "--out", out, *LOOPBACK)

    assert 1 == ended.returncode, ended.stderr
    assert "http_status" in ended.stderr
    assert "notes on" not in ended.stderr + retried.stderr
    assert 0 == retried.returncode, retried.stderr
    assert ["/gone"] == [request.target for request in origin.requests[2:]]
    assert b"back" == (out / "g").read_bytes()


def test_bad_lines_are_named_and_nothing_is_enqueued(tmp_path: Path) -> None:
    """The error has the number of each bad line. Valid lines are not fetched either."""
    listed = tmp_path / "list"
    listed.write_text('http://127.0.0.1/\nftp://x/\n{"url": "http://a/", "colour": "red"}\n')
    ended = fetchfleet("run", listed, "--out", tmp_path / "out")

    assert 2 == ended.returncode
    assert "line 2: url:" in ended.stderr
    assert "line 3:" in ended.stderr
    assert "colour" in ended.stderr
    assert not (tmp_path / "out").exists()


async def test_skip_invalid_writes_invalid_lines_with_their_reasons(tmp_path: Path) -> None:
    """The other lines are fetched. The summary counts skipped lines; the exit code ignores them."""
    listed, rejects = tmp_path / "list", tmp_path / "rejects"
    async with Origin.serving("127.0.0.167", ok(b"x")) as origin:
        lines = [origin.url("/a"), "ftp://x/", json.dumps({"url": origin.url("/b"), "dest": "b"})]
        twice = json.dumps({"url": origin.url("/c"), "dest": "b"})
        listed.write_bytes("\ufeff".encode() + "\r\n".join([*lines, "", twice]).encode() + b"\r\ncaf\xe9\r\n")
        refused = await run("run", listed, "--out", tmp_path / "out", *LOOPBACK)
        requests_before = len(origin.requests)
        ended = await run("run", listed, "--out", tmp_path / "out", "--skip-invalid", rejects, *LOOPBACK)
    rejected = [json.loads(line) for line in rejects.read_text().splitlines()]

    assert (2, 0) == (refused.returncode, requests_before)
    assert "line 5: dest: 'b' is also the dest of line 3" in refused.stderr
    assert "iconv -f" in refused.stderr
    assert "--skip-invalid" in refused.stderr
    assert 0 == ended.returncode, ended.stderr
    assert {"/a", "/b"} == {request.target for request in origin.requests}
    assert "lines skipped" in ended.stderr
    assert [(2, "ftp://x/"), (5, twice), (6, None)] == [(line["line"], line.get("text")) for line in rejected]
    assert b"caf\xe9" == base64.b64decode(rejected[2]["base64"])
    assert 0o600 == rejects.stat().st_mode & 0o777


@pytest.mark.parametrize("from_file", [True, False])
def test_a_line_that_is_not_utf8_is_named(tmp_path: Path, *, from_file: bool) -> None:
    """The command exits with code 2 for a file and for standard input, and changes no URL."""
    listed = tmp_path / "list"
    listed.write_bytes(b"http://127.0.0.1/\nhttp://127.0.0.1/caf\xe9\n")
    command = [sys.executable, "-m", "fetchfleet.worker", "run", str(listed) if from_file else "-"]
    with listed.open("rb") as stdin:
        ended = subprocess.run(command, stdin=stdin, capture_output=True, timeout=60, check=False)

    assert 2 == ended.returncode
    assert b"line 2: url:" in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("run", "no-such-file"), "no-such-file: No such file"),
        (("run", "-"), "no fetches; give a URL"),
        (("run",), "no list of fetches; give FILE"),
        (("run", "--only-failed", "no-such-report"), "--only-failed no-such-report: No such file"),
        (("run", "-", "--policy", "no-such-policy"), "--policy no-such-policy"),
        (("run", "-", "--allow-net", "everywhere"), "everywhere"),
        (("run", "-", "--engine", "steam"), "--engine steam"),
        (("run", "-", "--report", "no/such/report"), "--report no/such/report: No such file or directory"),
        (("submit", "-", "--report", "/"), "--report /: Is a directory"),
        (("submit", "-", "--skip-invalid", "/"), "--skip-invalid /: Is a directory"),
        (("run", "README.md", "--skip-invalid", "README.md"), "FILE and --skip-invalid are the same file"),
        (("worker", "--redis", "http://x/"), "not a Redis URL"),
        (("fly",), "fly"),
    ],
)
def test_a_usage_error_exits_2_and_names_the_fault(arguments: tuple[str, ...], named: str) -> None:
    """No traceback is printed."""
    ended = fetchfleet(*arguments)

    assert 2 == ended.returncode, ended.stderr
    assert named in ended.stderr
    assert "Traceback" not in ended.stderr


def test_an_unusable_out_folder_is_reported_before_any_work(redis_url: str, tmp_path: Path) -> None:
    """`run` and `worker` exit with code 2 and print one line that names the flag."""
    (tmp_path / "file").touch()
    a_list = "http://127.0.0.1/"
    no_folder = fetchfleet("run", "-", "--out", tmp_path / "file", stdin=a_list)
    below = fetchfleet("run", "-", "--out", tmp_path / "file/out", stdin=a_list)
    worker = fetchfleet("worker", "--redis", redis_url, "--out", tmp_path / "file/out")

    for ended, message in (
        (no_folder, "is not a folder"),
        (below, "Not a directory"),
        (worker, "Not a directory"),
    ):
        assert (2, 1) == (ended.returncode, len(ended.stderr.splitlines())), ended.stderr
        assert f"--out {tmp_path}/file" in ended.stderr
        assert message in ended.stderr


def test_a_worker_that_cannot_reach_redis_exits_1() -> None:
    """The message has no traceback and no password."""
    ended = fetchfleet("worker", "--redis", "redis://:hunter2@127.0.0.1:1/0")

    assert 1 == ended.returncode
    assert "cannot reach Redis" in ended.stderr
    assert "hunter2" not in ended.stderr
    assert "Traceback" not in ended.stderr


async def test_an_interrupted_run_exits_130_and_the_same_command_continues_it(tmp_path: Path) -> None:
    """Finished fetches are not repeated, although Redis and the workers have ended in between.

    Table and report have the whole batch. A finished batch is fetched again only with `--again`. Its end
    removes the fetches, which have secrets, from the disk.
    """
    listed, out, report = tmp_path / "list", tmp_path / "out", tmp_path / "report"
    secret = "k4n4ryheader"
    header = ("--header", f"Authorization: Bearer {secret}")
    command: list[str | Path] = ["run", listed, "--out", out, "--report", report, *header, *LOOPBACK]
    async with (
        Origin.serving("127.0.0.163", ok(b"quick")) as quick,
        Origin.serving("127.0.0.164", sequence(slow(b"s", 0.1, 900), ok(b"s"))) as slow_one,
    ):
        listed.write_text("\n".join([slow_one.url("/s"), *(quick.url(f"/{i}") for i in range(20))]))
        grace = {**os.environ, "FETCHFLEET_GRACE_S": "0.2"}
        first = Process(COMMAND, *command, env=grace, stderr=subprocess.PIPE)
        await wait_until(lambda: len(quick.requests) == 20 and slow_one.in_progress, "the quick ones", 30)
        await wait_until(lambda: len(stored(out)) == 20, "their files")
        first.send_signal(signal.SIGINT)
        await wait_until(lambda: first.poll() is not None, "the end of the run", 30)
        message = first.communicate()[1].decode()
        interrupted_with_secret = files_with(out, secret)
        other = await run("run", "-", "--out", out, *LOOPBACK, stdin=quick.url("/other"))
        second = await run(*command)
        written = report.read_text()
        ended_with_secret = files_with(tmp_path, secret)
        third = await run(*command)
        asked = len(quick.requests)
        again = await run(*command, "--again")

    assert 130 == first.returncode, message
    assert "repeat the command to continue" in message
    assert interrupted_with_secret
    assert [] == ended_with_secret
    assert 2 == other.returncode
    assert "interrupted run of another list" in other.stderr
    assert 0 == second.returncode, second.stderr
    assert "21 of 21; 1 in this part" in second.stderr
    assert "stored               │        │      21" in second.stderr
    assert 21 == len({json.loads(line)["id"] for line in written.splitlines()}) == len(written.splitlines())
    assert (2, 20) == (third.returncode, asked)
    assert "the run ended at 20" in third.stderr
    assert "21 stored" in third.stderr
    assert "--again" in third.stderr
    assert 0 == again.returncode, again.stderr
    assert 40 == len(quick.requests)
    assert 21 == len(stored(out))


async def test_the_summary_of_a_continued_run_has_the_failures_of_each_part_and_the_place_of_their_notes(
    tmp_path: Path,
) -> None:
    """The notes are in the report, or without one in the logs."""
    listed, report = tmp_path / "list", tmp_path / "report"
    async with (
        Origin.serving("127.0.0.173", ok(b"small")) as refused,
        Origin.serving("127.0.0.174", sequence(slow(b"s", 0.1, 900), ok(b"s"))) as slow_one,
    ):
        fetches = [{"url": refused.url(f"/{place}"), "accept": {"min_bytes": 9}} for place in range(3)]
        listed.write_text("\n".join(map(json.dumps, [{"url": slow_one.url("/s")}, *fetches])))
        env = {**os.environ, "FETCHFLEET_GRACE_S": "0.2"}
        command: list[str | Path] = ["run", listed, *LOOPBACK, "--out"]
        reported: list[str | Path] = [*command, tmp_path / "a", "--report", report]
        first = Process(COMMAND, *reported, env=env, stderr=subprocess.DEVNULL)
        await wait_until(lambda: report.exists() and report.read_bytes().count(b"\n") == 3, "three", 30)
        first.send_signal(signal.SIGTERM)
        await wait_until(lambda: first.poll() is not None, "the end of the run", 30)
        second, other = await run(*reported), await run(*command, tmp_path / "b")

    lines = second.stderr.replace("│", " ").splitlines()
    assert "4 of 4; 1 in this part" in second.stderr
    assert [["failures", refused.url("").removeprefix("http://"), "3"]] == [
        line.split()[1:] for line in lines if "most failures" in line
    ]
    assert [] != [line for line in lines if line.split()[:3] == ["failed", "too_small", "3"] and "9" in line]
    assert f"notes on failed fetches are in {report}\n" in second.stderr
    assert f"notes on failed fetches are in {tmp_path}/b/.fetchfleet/worker-*.log" in other.stderr


def files_with(folder: Path, text: str) -> list[Path]:
    """Return the files below a folder that hold a text."""
    return [path for path in folder.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]


def stored(out: Path) -> list[Path]:
    """Return the bodies in an out folder."""
    return [path for path in out.rglob("*") if path.is_file() and ".fetchfleet" not in path.parts]


async def test_submit_prints_the_batch_id_and_follows_it_with_wait(
    redis_url: str, fleet: Fleet, tmp_path: Path
) -> None:
    """Standard output has only the ID. With --wait the exit code tells whether all fetches succeeded."""
    listed, report = tmp_path / "list", tmp_path / "report"
    async with Origin.serving("127.0.0.165", latency(0.01, ok(b"x"))) as origin:
        listed.write_text("\n".join(origin.url(f"/{i}") for i in range(30)))
        with workers(1, redis_url, tmp_path):
            some, rejects = tmp_path / "some", tmp_path / "rejects"
            some.write_text(f"{listed.read_text()}\nno URL\n")
            enqueued = await run("submit", some, "--redis", redis_url, "--skip-invalid", rejects)
            counts = await fleet.batch(enqueued.stdout.strip()).wait()
            waited = await run("submit", listed, "--redis", redis_url, "--wait", "--report", report)
            no_room = await run("submit", listed, "--redis", redis_url, "--report", "/dev/full")

    assert 0 == enqueued.returncode, enqueued.stderr
    assert "1 invalid line skipped, 30 fetches enqueued" in enqueued.stderr
    assert 31 == json.loads(rejects.read_text())["line"]
    assert (30, 30) == (counts.total, counts.stored)
    assert 0 == waited.returncode, waited.stderr
    assert 30 == len(report.read_text().splitlines())
    assert 1 == no_room.returncode
    assert "--report /dev/full: No space left on device" in no_room.stderr


def test_the_command_prints_its_version() -> None:
    """It needs no Redis."""
    printed = fetchfleet("--version")

    assert (0, f"fetchfleet {__version__}\n", "") == (printed.returncode, printed.stdout, printed.stderr)


async def test_health_exits_0_while_the_worker_sends_heartbeats(redis_url: str, tmp_path: Path) -> None:
    """The command exits with 1 before the start, after the end, and for another worker's ID."""
    asked = {"FETCHFLEET_REDIS_URL": redis_url, "FETCHFLEET_WORKER_ID": "worker-1"}
    before = fetchfleet("health", **asked)
    with workers(1, redis_url, tmp_path) as running:
        await wait_until(running.started, "the worker to start")
        during = await asyncio.to_thread(fetchfleet, "health", **asked)
        another = await asyncio.to_thread(fetchfleet, "health", **{**asked, "FETCHFLEET_WORKER_ID": "w"})
    after = fetchfleet("health", **asked)

    assert [1, 0, 1, 1] == [ended.returncode for ended in (before, during, another, after)]
    assert "has sent a heartbeat" in before.stderr


async def test_a_run_without_a_terminal_prints_plain_lines(tmp_path: Path) -> None:
    """Progress lines have no escape sequences."""
    async with Origin.serving("127.0.0.166", slow(b"drop", 0.2, 30)) as origin:
        ended = await run("run", "-", "--out", tmp_path / "out", *LOOPBACK, stdin=origin.url("/"))

    assert "\x1b" not in ended.stderr
    assert "0 of 1 done" in ended.stderr
    assert "1 in flight" in ended.stderr
