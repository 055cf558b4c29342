"""Runs that are suspended or killed, or whose embedded server is."""

import asyncio
import fcntl
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import termios
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.support.fork_server import COMMAND, Process
from tests.support.waiting import wait_until
from tests.support.workers import fetchfleet
from tools.origin.behaviours import held, ok, sequence
from tools.origin.server import Exchange, Origin

LEASE_S = 1.0
STARTS_S = 30.0


class TerminalRun:
    """`fetchfleet run` in the foreground of its own terminal."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.keyboard, terminal = pty.openpty()
        self._screen = folder / "screen"

        def take_terminal() -> None:
            fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)

        with self._screen.open("wb") as screen:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "fetchfleet.worker", "run", *arguments],
                stdin=terminal,
                stdout=screen,
                stderr=screen,
                env={**os.environ, "FETCHFLEET_LEASE_S": str(LEASE_S), "COLUMNS": "200"},
                start_new_session=True,
                preexec_fn=take_terminal,  # noqa: PLW1509 no threads hold locks here
            )
        os.close(terminal)

    def children(self) -> dict[int, str]:
        """Return the child processes, each with its name and its command."""
        return children_of(self.process.pid)

    def the_child(self, name: str) -> int:
        """Return the pid of the child with this text in its name or command, 0 if there is none."""
        return child_of(self.process.pid, name)

    def output(self) -> str:
        """Return its output."""
        return self._screen.read_text(errors="replace")


def children_of(process: int) -> dict[int, str]:
    """Return the child processes of a process, each with its name and its command."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            if int(parent) == process:
                command = (folder / "cmdline").read_text().replace("\0", " ")
                found[int(folder.name)] = f"{(folder / 'comm').read_text()} {command}"
    return found


def child_of(process: int, name: str) -> int:
    """Return the pid of the child with this text in its name or command, 0 if there is none."""
    return next((pid for pid, command in children_of(process).items() if name in command), 0)


def state_of(pid: int) -> str:
    """Return the state of a process: T if it is stopped, Z if it has ended."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return "Z"


@contextmanager
def terminal_run(folder: Path, *arguments: str) -> Iterator[TerminalRun]:
    """Yield a run; kill it at the end of the block."""
    running = TerminalRun(folder, *arguments)
    try:
        yield running
    finally:
        running.process.kill()
        running.process.wait()
        os.close(running.keyboard)


async def test_ctrl_z_suspends_the_workers_and_a_killed_server_is_started_again(tmp_path: Path) -> None:
    """The suspension outlasts a lease. The report has each result once."""
    go_on = asyncio.Event()
    async with Origin.serving("127.0.0.196", sequence(*[ok(b"x")] * 10, held(go_on, ok(b"x")))) as origin:
        (tmp_path / "list").write_text("\n".join(origin.url(f"/{place}") for place in range(30)))
        report = tmp_path / "report"
        places = (str(tmp_path / "list"), "--out", str(tmp_path / "out"), "--report", str(report))
        with terminal_run(tmp_path, *places, "--allow-net", "127.0.0.0/8") as run:
            await wait_until(lambda: len(origin.requests) > 10, "the work", STARTS_S)
            worker = run.the_child("worker-1")
            os.write(run.keyboard, b"\x1a")
            await wait_until(lambda: {state_of(pid) for pid in (run.process.pid, worker)} == {"T"}, "a stop")
            await asyncio.sleep(1.5 * LEASE_S)  # the suspension
            os.killpg(run.process.pid, signal.SIGCONT)
            await wait_until(lambda: "T" not in {state_of(run.process.pid), state_of(worker)}, "the work")

            server = run.the_child("redis.sock")
            os.kill(server, signal.SIGKILL)
            await wait_until(lambda: run.the_child("redis.sock") not in {0, server}, "another server")
            go_on.set()
            await wait_until(lambda: run.process.poll() is not None, "the end", 30)
            output = run.output()
    results = Counter(json.loads(line)["url"] for line in report.read_text().splitlines())

    assert 0 == run.process.returncode, output
    assert 30 == len(results) == results.total()
    away, back = [line for line in output.splitlines() if line.startswith("Redis ")]
    assert away.startswith("Redis does not answer: ")
    assert back.endswith("the server was restarted")


async def test_a_suspended_run_that_is_killed_leaves_no_process(tmp_path: Path) -> None:
    """A stopped process does not handle SIGTERM; its workers still end with it."""
    go_on = asyncio.Event()
    async with Origin.serving("127.0.0.197", held(go_on)) as origin:
        (tmp_path / "list").write_text(origin.url("/x"))
        places = (str(tmp_path / "list"), "--out", str(tmp_path / "out"), "--allow-net", "127.0.0.0/8")
        with terminal_run(tmp_path, *places) as run:
            await wait_until(lambda: origin.requests, "the work", STARTS_S)
            children = run.children()
            run.process.send_signal(signal.SIGTSTP)
            await wait_until(lambda: state_of(run.process.pid) == "T", "a stop")
            run.process.kill()
            await wait_until(lambda: {state_of(pid) for pid in children} == {"Z"}, "their end", 20)
        go_on.set()
    shutil.rmtree((tmp_path / "out/.fetchfleet/redis/lock").read_text())  # as the next run does


async def test_a_run_says_that_a_worker_was_killed_and_started_again(tmp_path: Path) -> None:
    """The text reaches a standard error that is a file, once for each end."""
    go_on, errors = asyncio.Event(), tmp_path / "errors"
    async with Origin.serving("127.0.0.198", held(go_on, ok(b"x"))) as origin:
        (tmp_path / "list").write_text(origin.url("/x"))
        places = (str(tmp_path / "list"), "--out", str(tmp_path / "out"), "--allow-net", "127.0.0.0/8")
        with errors.open("wb") as stderr:
            run = subprocess.Popen(  # noqa: ASYNC220 it only starts it
                [sys.executable, "-m", "fetchfleet.worker", "run", *places],
                stderr=stderr,
                stdout=subprocess.DEVNULL,
                env={**os.environ, "FETCHFLEET_LEASE_S": str(LEASE_S)},
            )
        try:
            await wait_until(lambda: origin.requests, "the work", STARTS_S)
            os.kill(child_of(run.pid, "worker-1"), signal.SIGKILL)
            await wait_until(lambda: "ended" in errors.read_text(), "the message", 20)
            go_on.set()
            await wait_until(lambda: run.poll() is not None, "the end", 30)
        finally:
            run.kill()
            run.wait()

    assert 0 == run.returncode, errors.read_text()
    assert ["worker-1 ended by SIGKILL and was started again; its fetches in flight are repeated"] == [
        line for line in errors.read_text().splitlines() if "ended" in line
    ]


@pytest.mark.parametrize("sink", ["files", "warc"])
async def test_a_run_that_was_killed_and_continued_leaves_no_partial_file(tmp_path: Path, sink: str) -> None:
    """Those of another batch stay, because workers of a fleet may share the folder."""
    out, go_on, bodies = tmp_path / "out", asyncio.Event(), 3
    parts = out / ".fetchfleet/parts"
    half = b"x" * 1_000_000

    async def two_halves(x: Exchange) -> None:
        """Send the second half of a body only if the run was killed."""
        await x.send_head(200, [("Content-Length", str(2 * len(half)))])
        await x.send(half)
        await go_on.wait()
        await x.send(half)

    def received() -> bool:
        files = [*parts.iterdir()] if parts.is_dir() else []
        return bodies == len([file for file in files if file.stat().st_size >= len(half) // 2])

    async with Origin.serving("127.0.0.198", two_halves) as origin:
        (tmp_path / "list").write_text("\n".join(origin.url(f"/{place}") for place in range(bodies)))
        command = ["run", str(tmp_path / "list"), "--out", str(out), "--sink", sink]
        command += ["--allow-net", "127.0.0.0/8"]
        lease = {"FETCHFLEET_LEASE_S": str(LEASE_S)}
        first = Process(COMMAND, *command, env={**os.environ, **lease}, stderr=subprocess.DEVNULL)
        await wait_until(received, "the first halves", STARTS_S)
        first.kill()
        await wait_until(lambda: first.poll() is not None, "the end of the run", STARTS_S)
        of_another = parts / "fedcba9876543210-00000000.1"
        of_another.write_bytes(half)
        go_on.set()
        second = await asyncio.to_thread(fetchfleet, *command, **lease)

    assert 0 == second.returncode, second.stderr
    assert [of_another] == [*parts.iterdir()]
