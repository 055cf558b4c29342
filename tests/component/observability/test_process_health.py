"""A worker tells its own health over a socket, and systemd that its loop turns."""

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
    """The reasons why the workers of that name are not ready."""
    return [at.reply.not_ready for at in await asyncio.to_thread(ask_workers, name) if at.reply]


async def test_a_worker_tells_what_it_is_not_ready_for(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """While it starts, without an answer from Redis, without space, and while it stops."""
    health = ProcessHealth(NAME)
    async with health.serve({}):
        replies = [await reasons()]
        worker = await start(worker_id=NAME)
        health.not_ready = worker.runtime.not_ready
        replies.append(await reasons())
        monkeypatch.setattr(keys, "WORKER_TTL_MS", 0)
        replies.append(await reasons())
        monkeypatch.undo()
        worker.runtime.disk_guard.lacking = "bytes"
        replies.append(await reasons())
        worker.runtime.leave()
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


async def test_a_loop_that_does_not_turn_gives_no_answer_and_then_all_of_them() -> None:
    """However often it was asked meanwhile."""
    async with ProcessHealth(NAME).serve({}):
        asking = [asyncio.to_thread(ask_workers, NAME, 0.2) for _ in range(3)]
        blocked = asyncio.gather(*asking)
        await asyncio.sleep(0)  # the threads begin
        time.sleep(0.5)  # noqa: ASYNC251 this is what is tested
        replies = [[(at.pid, at.reply) for at in asked] for asked in await blocked]
        after = await reasons()

    assert replies == [[(os.getpid(), None)]] * 3
    assert after == [["is starting"]]


async def test_workers_of_one_machine_are_told_apart_by_their_names() -> None:
    """Any that does not answer is named; a name of any length and of any characters will do."""
    names = [NAME, f"{NAME}-2", "wörker 3/\n" * 40]
    async with (
        ProcessHealth(names[0]).serve({}),
        ProcessHealth(names[1]).serve({}),
        ProcessHealth(names[2]).serve({}),
    ):
        each = [await asyncio.to_thread(ask_workers, name) for name in names]
        everyone = await asyncio.to_thread(ask_workers, None)

    assert [[name] for name in names] == [[at.reply.worker for at in asked if at.reply] for asked in each]
    assert set(names) <= {at.reply.worker for at in everyone if at.reply}


async def test_health_without_a_worker_of_that_name_fails() -> None:
    """Whichever of the two is asked for, and without any Redis."""
    environment = {"FETCHFLEET_WORKER_ID": f"{NAME}-none", "FETCHFLEET_REDIS_URL": "redis://127.0.0.1:1"}
    ended = [CliRunner(env=environment).invoke(app, ["health", how]) for how in ("--live", "--ready")]

    assert ["no worker of this user runs"] * 2 == [str(run.exception)[:27] for run in ended]


@pytest.mark.parametrize("missing", [None, "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"])
async def test_systemds_watchdog_is_fed_twice_in_its_interval(tmp_path: Path, missing: str | None) -> None:
    """Unless the environment names none, or that of another process."""
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
