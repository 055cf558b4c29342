"""Workers that are started before their settings are known."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

from fetchfleet import Fleet, Outcome
from fetchfleet.worker.local import dead_worker
from fetchfleet.worker.local.process import MAX_QUICK_ENDS, WorkersError, configured, prestarted
from tests.support import leaks
from tests.support.waiting import wait_until
from tests.support.workers import LOOPBACK
from tools.origin.behaviours import held, ok
from tools.origin.server import Origin

FORKING = """
import sys
from fetchfleet.worker.local.prestart import main
from fetchfleet.worker.local.process import wait_or_kill, prestarted

with prestarted(2, main) as workers:
    print(*(worker.process.pid for worker in workers), flush=True)
    sys.stdin.read(1)
    workers[0].process.stdin.close()
    wait_or_kill(workers[0].process, 5)
    print(workers[0].process.poll(), workers[1].process.poll(), flush=True)
    sys.stdin.read()
"""


async def test_forked_workers_share_no_descriptor_and_no_session_and_die_with_the_command() -> None:
    """They die even while stopped. A file inherited by the command is open in the command alone."""
    inherited, pipe = os.pipe()
    file = f"pipe:[{os.fstat(pipe).st_ino}]"
    command = subprocess.Popen(  # noqa: ASYNC220 it only starts it
        [sys.executable, "-c", FORKING],
        pass_fds=[inherited],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
    )
    with command:
        assert command.stdout is not None
        assert command.stdin is not None
        pids = [int(pid) for pid in command.stdout.readline().split()]
        await wait_until(lambda: ["worker-1", "worker-2"] == [named(pid) for pid in pids], "both workers")
        threads = threads_of(command.pid)
        sessions = [os.getsid(pid) for pid in pids]
        have_file = [pid for pid in (command.pid, *pids) if file in files_of(pid)]
        command.stdin.write(b"x")
        first_ended_alone = command.stdout.readline()
        os.kill(pids[1], signal.SIGSTOP)
        command.kill()
        await wait_until(lambda: "" == named(pids[1]), "its end")
    os.close(inherited)
    os.close(pipe)

    assert 1 == len(threads)
    assert pids == sessions
    assert [command.pid] == have_file
    assert b"0 None\n" == first_ended_alone


def threads_of(pid: int) -> list[Path]:
    """Return the threads of a process."""
    return [*Path(f"/proc/{pid}/task").iterdir()]


def files_of(pid: int) -> set[str]:
    """Return the targets of a process's descriptors."""
    return {str(descriptor.readlink()) for descriptor in Path(f"/proc/{pid}/fd").iterdir()}


def named(pid: int) -> str:
    """Return the name of a process, empty if it has ended."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def test_the_command_imports_the_worker_only_to_share_it_between_several() -> None:
    """A single worker imports its modules itself, while the command starts Redis."""
    module = "fetchfleet.worker.runtime.arq_worker"

    assert [False, True] == [module in imports_of_run("--workers", number) for number in ("1", "2")]


def imports_of_run(*arguments: str) -> set[str]:
    """Return the modules that the process of `fetchfleet run` imports; it ends because it has no list."""
    command = [sys.executable, "-X", "importtime", "-m", "fetchfleet.worker", "run", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert 2 == ended.returncode
    return {line.rpartition("|")[2].strip() for line in ended.stderr.splitlines()}


def test_unused_prestarted_workers_end_with_the_block() -> None:
    """The workers get no order, as when a list has a bad line."""
    with prestarted(2) as processes:
        pids = {process.process.pid for process in processes}
        assert pids <= leaks.children().keys()

    assert set() == pids & leaks.children().keys()


async def test_a_prestarted_worker_exits_0_when_its_pipe_is_closed() -> None:
    """The parent has ended or closed the pipe; it is not an error."""
    with prestarted(1) as (worker,):
        assert worker.process.stdin
        worker.process.stdin.close()
        await wait_until(lambda: worker.process.poll() is not None, "its end")

        assert 0 == worker.process.returncode


async def test_a_prestarted_worker_that_died_is_replaced_and_gets_its_settings(
    redis_url: str, fleet: Fleet, tmp_path: Path
) -> None:
    """The replacement does the work."""
    settings = {"redis_url": redis_url, "out": str(tmp_path / "bodies"), "allow_net": LOOPBACK}
    async with Origin.serving("127.0.0.155", ok(b"late")) as origin:
        batch = await fleet.submit([origin.url("/")])
        with prestarted(1) as (worker,):
            worker.process.kill()
            await wait_until(lambda: worker.process.poll() is not None, "its death")
            with configured([worker], settings, tmp_path):
                assert (-signal.SIGKILL, True) == worker.end()
                worker.restart()
                results = [result async for result in batch.results()]
                worker.stop()
                await wait_until(lambda: worker.process.poll() is not None, "its end", 20)

    assert [Outcome.STORED] == [result.outcome for result in results]
    assert 0 == worker.process.returncode
    assert "worker.started" in (tmp_path / "worker-1.log").read_text()


async def test_the_fetch_of_a_killed_worker_is_repeated_long_before_its_lease_ends(
    redis_url: str, fleet: Fleet, tmp_path: Path
) -> None:
    """The end of the process is known, so the next one need not wait for an hour."""
    go_on = asyncio.Event()
    settings = {
        "redis_url": redis_url,
        "out": str(tmp_path / "bodies"),
        "allow_net": LOOPBACK,
        "lease_s": "3600",
    }
    said: list[str] = []
    async with Origin.serving("127.0.0.155", held(go_on, ok(b"late"))) as origin:
        batch = await fleet.submit([origin.url("/")])
        with prestarted(1, quick_end_s=0) as (worker,), configured([worker], settings, tmp_path):
            await wait_until(lambda: origin.requests, "the request", 20)
            worker.process.kill()
            await wait_until(lambda: worker.process.poll() is not None, "its death")
            go_on.set()
            end = worker.end()
            assert (-signal.SIGKILL, False) == end
            await dead_worker.replace(worker, end, redis_url, said.append)
            results = [result async for result in batch.results()]

    assert [(Outcome.STORED, 1)] == [(result.outcome, result.interruptions) for result in results]
    assert ["worker-1 ended by SIGKILL and was started again; its fetches in flight are repeated"] == said


async def test_a_worker_with_bad_settings_is_given_up_after_three_quick_ends(tmp_path: Path) -> None:
    """The error names the log, which has the reason of each end."""

    def is_given_up() -> bool:
        try:
            if worker.end():
                worker.restart()
        except WorkersError as error:
            return str(tmp_path / "worker-1.log") in str(error)
        return False

    # On a busy machine a worker may need long to start, so each of its ends here counts as a quick one.
    with (
        prestarted(1, quick_end_s=60) as (worker,),
        configured([worker], {"engine": "none"}, tmp_path),
    ):
        await wait_until(is_given_up, "the error", 60)

    assert MAX_QUICK_ENDS == (tmp_path / "worker-1.log").read_text().count("--engine none")
