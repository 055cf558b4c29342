"""The commands of the operations page: backup, restore, upgrade."""

import asyncio
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import redis
from redis.asyncio import Redis

from fetchfleet import Fleet
from fetchfleet.jobs import keys
from fetchfleet.jobs.redis_connection import connect
from fetchfleet.worker.local.process import die_with_parent
from tests.support.own_redis import OwnRedis, own_redis
from tests.support.redis import server_binary
from tests.support.waiting import wait_until
from tests.support.workers import LOOPBACK

PAGE = (Path(__file__).parents[3] / "docs" / "operations.md").read_text()

REDIS_CLI = """\
#!{python}
import sys
import redis
def lines(reply):
    if isinstance(reply, list):
        for part in reply:
            yield from lines(part)
    else:
        yield reply.decode() if isinstance(reply, bytes) else str(reply)
client = redis.Redis.from_url({url!r})
client.response_callbacks.clear()
try:
    print("\\n".join(lines(client.execute_command(*sys.argv[1:]))))
except redis.ConnectionError as error:
    sys.exit(0 if sys.argv[1] == "SHUTDOWN" else str(error))
"""
"""Prints replies as redis-cli does when its output is not a terminal."""


class Machine:
    """A folder for the page's paths, and stand-ins for the commands of a machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bin = folder / "bin"
        for name in ("bin", "redis", "backup"):
            (folder / name).mkdir()

    def command(self, name: str, text: str) -> None:
        """Put a command on the PATH of this machine."""
        file = self.bin / name
        file.write_text(text)
        file.chmod(0o755)

    async def run(self, block: str) -> str:
        """Run a block of the page; return its output."""
        block = block.replace("/var/lib/redis", str(self.folder / "redis"))
        block = block.replace("/srv/backup", str(self.folder / "backup"))
        block = block.replace("/opt/fetchfleet/bin/", "")
        done = await asyncio.to_thread(
            subprocess.run,
            ["bash", "-eu", "-c", block],
            env={**os.environ, "PATH": f"{self.bin}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A machine without commands."""
    return Machine(tmp_path)


@pytest.fixture
def server(machine: Machine) -> Iterator[OwnRedis]:
    """A Redis with its data in the machine's /var/lib/redis, and the commands that reach it."""
    with own_redis() as server:
        server.shut_down()
        socket = server.socket
        server.start("--dir", str(machine.folder / "redis"))
        machine.command("redis-cli", REDIS_CLI.format(python=sys.executable, url=server.url))
        options = shlex.join(["--port", "0", "--unixsocket", str(socket), "--save", ""])
        machine.command("redis-server", f'#!/bin/sh\nexec {server_binary()} "$@" {options}\n')
        yield server
        with suppress(redis.RedisError, OSError), redis.Redis.from_url(server.url) as left:
            left.shutdown(nosave=True)  # the page's background server, if it still runs


def blocks_of(heading: str) -> list[str]:
    """Return the bash blocks of a section of the page."""
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return re.findall(r"```bash\n(.*?)```", section, re.DOTALL)


async def paths_in(client: Redis) -> list[bytes]:
    """Return the waiting entries."""
    found: list[bytes] = await client.lrange(keys.waiting_at("a.example", "normal"), 0, -1)  # type: ignore[misc]
    return found


async def test_a_backup_is_restored_by_the_commands_of_the_page(machine: Machine, server: OwnRedis) -> None:
    """Fetches submitted before the snapshot are back, later ones are gone, and AOF is on again."""
    backup, restore = blocks_of("Backup")
    await wait_until(server.responds, "Redis")
    async with connect(server.url) as client, Fleet(server.url) as fleet:
        batch = await fleet.submit([f"http://a.example/{place}" for place in range(100)])
        before = await paths_in(client)
        await machine.run(backup)
        await fleet.submit(["http://a.example/lost"])
    server.kill()
    await machine.run(restore)
    assert not server.socket.exists()
    server.start("--dir", str(machine.folder / "redis"))
    await wait_until(server.responds, "Redis again")
    async with connect(server.url) as client, Fleet(server.url) as fleet:
        after = await paths_in(client)
        counts = await fleet.batch(batch.id).counts()
        config = await client.config_get("appendonly")

    assert before == after
    assert (100, True) == (counts.total, counts.sealed)
    assert {"appendonly": "yes"} == config


async def test_a_worker_is_upgraded_by_the_commands_of_the_page(
    machine: Machine, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop ends once the new process is ready, and status lists it."""
    (upgrade,) = blocks_of("Stop and upgrade")
    workers: list[subprocess.Popen[bytes]] = []
    name, restarted = f"{socket.gethostname()}-{os.getpid()}", machine.folder / "restarted"
    command = [sys.executable, "-m", "fetchfleet.worker"]

    def restart(number: int, _: object) -> None:  # the signal of systemctl, below
        del number
        for old in workers[-1:]:
            old.terminate()
            old.wait()
        workers.append(
            subprocess.Popen(
                [*command, "worker", "--out", str(machine.folder / "bodies"), "--allow-net", LOOPBACK],
                env={**os.environ, "FETCHFLEET_WORKER_ID": name},
                stderr=subprocess.DEVNULL,
                preexec_fn=die_with_parent,  # noqa: PLW1509 no threads hold locks here
            )
        )
        restarted.touch()

    monkeypatch.setenv("FETCHFLEET_REDIS_URL", redis_url)
    ask = f"rm {restarted}; kill -USR1 {os.getpid()}; until [ -e {restarted} ]; do sleep 0.05; done"
    machine.command("systemctl", f"#!/bin/sh\n{ask}\n")
    machine.command("pip", "#!/bin/sh\ntrue\n")
    machine.command("fetchfleet", f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n')
    before = signal.signal(signal.SIGUSR1, restart)
    try:
        restart(0, None)
        output = await machine.run(upgrade.replace("1 2 3", str(os.getpid())))
    finally:
        signal.signal(signal.SIGUSR1, before)
        for worker in workers:
            with suppress(ProcessLookupError):
                worker.terminate()
            worker.wait()

    assert 2 == len(workers)
    assert name in output
    assert "1 worker" in output
