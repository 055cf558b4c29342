"""Health of a worker process: its socket, and systemd's watchdog."""

import asyncio
import os
import socket
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fetchfleet.jobs import keys
from fetchfleet.worker.cli.app import app
from fetchfleet.worker.observability.process_health import ProcessHealth, ask_workers
from tests.component.conftest import Start
from tests.support.waiting import wait_until

NAME = f"health-{os.getpid()}"


async def reasons(name: str = NAME) -> list[list[str]]:
    """Return for each worker of the name the reasons it is not ready."""
    return [at.reply.not_ready for at in await asyncio.to_thread(ask_workers, name) if at.reply]


async def test_a_worker_reports_the_reasons_why_it_is_not_ready(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is starting or stopping, has no answer from Redis, or lacks disk space."""
    health = ProcessHealth(NAME)
    async with health.serve({}):
        replies = [await reasons()]
        worker = await start(worker_id=NAME)
        health.not_ready = worker.runtime.not_ready
        replies.append(await reasons())
        monkeypatch.setattr(keys, "WORKER_TTL_MS", 0)
        replies.append(await reasons())
        monkeypatch.undo()
        worker.runtime.disk_guard.shortage = "bytes"
        replies.append(await reasons())
        worker.runtime.begin_stop()
        replies.append(await reasons())
        await worker.stop()
    gone = await reasons()

    assert replies == [
        [["is starting"]],
        [[]],
        [["has no answer from Redis"]],
        [["lacks disk space (bytes)"]],
        [["is stopping", "lacks disk space (bytes)"]],
    ]
    assert gone == []


async def test_a_blocked_event_loop_gives_no_answer_until_it_runs_again() -> None:
    """Requests that timed out meanwhile do not disturb the next one."""
    async with ProcessHealth(NAME).serve({}):
        asking = [asyncio.to_thread(ask_workers, NAME, 0.2) for _ in range(3)]
        blocked = asyncio.gather(*asking)
        await asyncio.sleep(0)  # the threads begin
        time.sleep(0.5)  # noqa: ASYNC251 blocking the loop is the test
        replies = [[(at.pid, at.reply) for at in asked] for asked in await blocked]
        after = await reasons()

    assert replies == [[(os.getpid(), None)]] * 3
    assert after == [["is starting"]]


async def test_health_finds_each_worker_of_a_machine_by_its_name() -> None:
    """A name may have any length and any characters. Without a name, all workers are listed."""
    names = [NAME, f"{NAME}-2", "wörker 3/\n" * 40]
    async with (
        ProcessHealth(names[0]).serve({}),
        ProcessHealth(names[1]).serve({}),
        ProcessHealth(names[2]).serve({}),
    ):
        each = [await asyncio.to_thread(ask_workers, name) for name in names]
        every_worker = await asyncio.to_thread(ask_workers, None)

    assert [[name] for name in names] == [[at.reply.worker for at in asked if at.reply] for asked in each]
    assert set(names) <= {at.reply.worker for at in every_worker if at.reply}


async def test_health_without_a_worker_of_that_name_fails() -> None:
    """Neither `--live` nor `--ready` needs Redis to report it."""
    environment = {"FETCHFLEET_WORKER_ID": f"{NAME}-none", "FETCHFLEET_REDIS_URL": "redis://127.0.0.1:1"}
    ended = [CliRunner(env=environment).invoke(app, ["health", how]) for how in ("--live", "--ready")]

    assert ["no worker of this user runs"] * 2 == [str(run.exception)[:27] for run in ended]


@pytest.mark.parametrize("missing", [None, "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"])
async def test_systemds_watchdog_is_fed_if_the_environment_names_it(
    tmp_path: Path, missing: str | None
) -> None:
    """No message is sent if a variable is missing or WATCHDOG_PID is another process."""
    address = str(tmp_path / "notify")
    environment = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "100000", "WATCHDOG_PID": str(os.getpid())}
    if missing == "WATCHDOG_PID":
        environment[missing] = "1"
    else:
        environment.pop(missing or "", None)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(address)
        systemd.settimeout(0)
        received: list[bytes] = []

        def receive() -> bool:
            try:
                received.append(systemd.recv(100))
            except BlockingIOError:
                return False
            return len(received) >= 3

        async with ProcessHealth(NAME).serve(environment):
            if missing:
                await reasons()
                receive()
            else:
                await wait_until(receive, "the third message")

    assert received == ([] if missing else [b"WATCHDOG=1"] * 3)
