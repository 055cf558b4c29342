"""Named worker processes that tests start, kill and freeze."""

import asyncio
import os
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from fetchfleet import Fleet, Result
from tests.support.fork_server import COMMAND, Process
from tests.support.waiting import wait_until
from tests.support.workers import LOOPBACK, QUICK_POLICY
from tools.origin.server import Origin, Seen

BATCH_S = 60.0
START_TIMEOUT_S = 30.0
END_TIMEOUT_S = 40.0


def worker_of(seen: Seen) -> str:
    """Return the name of the worker that sent the request."""
    return Origin.header(seen, "User-Agent") or ""


async def results_of(fleet: Fleet, batch_id: str) -> dict[str, Result]:
    """Return the results of a batch by URL; fail if a fetch has more than one."""
    async with asyncio.timeout(BATCH_S):
        found = [result async for result in fleet.batch(batch_id).results()]
    assert [1] == list(set(Counter(result.id for result in found).values()))
    return {result.url: result for result in found}


class NamedWorker:
    """One worker process. Its User-Agent is its name, so that an origin can identify it."""

    def __init__(self, name: str, arguments: list[str], log: Path, environment: dict[str, str]) -> None:
        self.name = name
        self._log = log
        self._begins = log.stat().st_size if log.exists() else 0
        identity = {"FETCHFLEET_WORKER_ID": name, "FETCHFLEET_USER_AGENT": name}
        with log.open("ab") as lines:
            self.process = Process(
                COMMAND,
                *arguments,
                stdin=subprocess.DEVNULL,
                stdout=lines,
                stderr=lines,
                env={**os.environ, **identity, **environment},
                start_new_session=True,
            )

    def send(self, number: int) -> None:
        """Send a signal to the process."""
        self.process.send_signal(number)

    def kill(self) -> None:
        """Kill the process, frozen or not, and wait for its end."""
        self.process.kill()
        self.process.wait()

    def events(self, name: str) -> list[dict[str, Any]]:
        """Return the worker's log lines with this event since its start."""
        with self._log.open("rb") as log:
            log.seek(self._begins)
            lines = [
                msgspec.json.decode(line) for line in log if line.startswith(b"{") and line.endswith(b"}\n")
            ]
        return [line for line in lines if line["event"] == name]

    async def started(self) -> None:
        """Wait until the worker is ready to take lanes."""

        def is_ready() -> bool:
            assert self.process.poll() is None, f"{self.name} ended: {self._log.read_text()[-2000:]}"
            return bool(self.events("worker.started"))

        await wait_until(is_ready, f"{self.name} to start", START_TIMEOUT_S, 0.05)

    async def ended(self) -> int:
        """Wait for the end of the process; return its exit code."""
        await wait_until(
            lambda: self.process.poll() is not None, f"the end of {self.name}", END_TIMEOUT_S, 0.05
        )
        return self.process.returncode

    async def terminated(self) -> int:
        """Send SIGTERM; return the exit code."""
        self.send(signal.SIGTERM)
        return await self.ended()


class NamedWorkers:
    """Workers on one Redis that share an out folder. A name may be reused after its worker has ended."""

    def __init__(self, redis_url: str, folder: Path, policy: str, environment: dict[str, str]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.out = folder / "bodies"
        self.members: dict[str, NamedWorker] = {}
        self._folder = folder
        self._environment = environment
        (folder / "policy.toml").write_text(policy)
        self._arguments = ["worker", "--redis", redis_url, "--allow-net", LOOPBACK]
        self._arguments += ["--out", str(self.out), "--policy", str(folder / "policy.toml")]

    def start(self, name: str, **environment: str) -> NamedWorker:
        """Start a worker. An earlier one of this name must have ended."""
        variables = {**self._environment, **environment}
        member = NamedWorker(name, self._arguments, self._folder / f"{name}.log", variables)
        self.members[name] = member
        return member

    async def start_all(self, *names: str, **environment: str) -> list[NamedWorker]:
        """Start workers and wait until they are ready."""
        members = [self.start(name, **environment) for name in names]
        await asyncio.gather(*(member.started() for member in members))
        return members

    def alive(self) -> list[str]:
        """Return the names of the running workers."""
        return [name for name, member in self.members.items() if member.process.poll() is None]

    def events(self, name: str) -> list[dict[str, Any]]:
        """Return the log lines of all workers with this event."""
        return [line for member in self.members.values() for line in member.events(name)]

    def files(self) -> set[str]:
        """Return the files in the out folder with a final name."""
        return {name for name in self._names() if not name.startswith(".fetchfleet/")}

    def parts(self) -> set[str]:
        """Return the files in the out folder with a temporary name."""
        return self._names() - self.files()

    def _names(self) -> set[str]:
        return {str(path.relative_to(self.out)) for path in self.out.rglob("*") if not path.is_dir()}


@contextmanager
def named_workers(
    redis_url: str, folder: Path, policy: str = QUICK_POLICY, **environment: str
) -> Iterator[NamedWorkers]:
    """Yield the workers; kill those that still run at the end of the block."""
    made = NamedWorkers(redis_url, folder, policy, environment)
    try:
        yield made
    finally:
        for member in made.members.values():
            member.kill()
