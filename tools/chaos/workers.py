"""The worker processes of a run, each behind its own proxy to Redis.

A worker that exits unasked after it was ready is a breach.
"""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from fetchfleet.worker.local.process import die_with_parent
from fetchfleet.worker.util import aio
from tools.chaos.history import History, WorkerDeath
from tools.chaos.proxy import Proxy
from tools.chaos.schedule import LEASE_S

GRACE_S = 2.0
EXITS_WITHIN_S = 60.0
"""The time to exit after SIGTERM: the grace period, plus the longest freeze of Redis."""

POLL_S = 0.1
RESTART_DELAY_S = 0.5
TAIL_LINES = 15


class Worker:
    """One slot of the pool and its current process. Hold `lock` while injecting a fault."""

    def __init__(self, number: int, proxy: Proxy, arguments: list[str], history: History) -> None:
        self.proxy = proxy
        self.lock = asyncio.Lock()
        self._number = number
        self._arguments = arguments
        self._history = history
        self._starts = 0
        self.failed_starts = 0
        self.start()

    @property
    def name(self) -> str:
        """The unique name of the process."""
        return f"w{self._number}.{self._starts}"

    @property
    def started(self) -> bool:
        """True if the process is ready to acquire lanes."""
        return b'"worker.started"' in self._log.read_bytes()

    def start(self) -> None:
        """Start a new process."""
        self._starts += 1
        self._log = self._history.folder / f"{self.name}.log"
        variables = {
            "FETCHFLEET_WORKER_ID": self.name,
            "FETCHFLEET_USER_AGENT": self.name,
            "FETCHFLEET_LEASE_S": str(LEASE_S),
            "FETCHFLEET_GRACE_S": str(GRACE_S),
        }
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "fetchfleet.worker", "worker", *self._arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **variables},
                start_new_session=True,
                preexec_fn=die_with_parent,  # noqa: PLW1509 the caller has no threads that hold locks
            )

    async def kill(self) -> None:
        """Kill the process with SIGKILL."""
        self.process.kill()
        await self._ended()

    async def replace(self, after_s: float) -> None:
        """Stop the process, and start a new one after a delay, as in a deploy."""
        await self.end()
        await asyncio.sleep(after_s)
        self.start()

    async def end(self) -> None:
        """Send SIGTERM; record a breach unless the process exits with 0 in time."""
        self.process.terminate()
        try:
            async with asyncio.timeout(EXITS_WITHIN_S):
                await self._ended()
        except TimeoutError:
            self._record_death(f"did not exit within {EXITS_WITHIN_S:.0f} s of SIGTERM")
            await self.kill()
        else:
            if self.process.returncode != 0 and self.started:
                self._record_death(f"exited with {self.process.returncode} on SIGTERM")

    async def watch(self) -> None:
        """Restart the process whenever it exits unasked, and record a breach if it was ready.

        Runs until cancelled.
        """
        while True:
            await asyncio.sleep(POLL_S)
            async with self.lock:
                if self.process.poll() is not None:
                    await self._restart()

    async def _restart(self) -> None:
        if self.started:
            self._record_death(f"exited unasked with {self.process.returncode}")
        else:
            self.failed_starts += 1
        await asyncio.sleep(RESTART_DELAY_S)
        self.start()

    async def _ended(self) -> None:
        while self.process.poll() is None:  # noqa: ASYNC110 another process changes it
            await asyncio.sleep(POLL_S / 5)

    def _record_death(self, cause: str) -> None:
        tail = self._log.read_text(errors="replace").splitlines()[-TAIL_LINES:]
        description = "\n".join([f"{cause}; the end of {self._log}:", *tail])
        self._history.add("died", [WorkerDeath(self.name, description)])


class WorkerPool:
    """The workers of a run."""

    def __init__(self, workers: list[Worker]) -> None:
        self.workers = workers

    @property
    def names(self) -> set[str]:
        """The names of the current processes."""
        return {worker.name for worker in self.workers}

    @property
    def ready(self) -> bool:
        """True if all workers are ready."""
        return all(worker.started for worker in self.workers)

    @property
    def failed_starts(self) -> int:
        """The number of times a worker exited at startup because Redis was unavailable."""
        return sum(worker.failed_starts for worker in self.workers)


@asynccontextmanager
async def worker_pool(
    count: int, redis_socket: Path, arguments: list[str], history: History
) -> AsyncIterator[WorkerPool]:
    """Yield `count` workers; kill them at the end of the block."""
    async with AsyncExitStack() as stack:
        workers: list[Worker] = []
        for number in range(1, count + 1):
            socket = history.folder / f"{number}.sock"
            proxy = await stack.enter_async_context(Proxy.between(socket, redis_socket))
            workers.append(Worker(number, proxy, ["--redis", f"unix://{socket}", *arguments], history))
        watchers = [asyncio.create_task(worker.watch(), name="watch") for worker in workers]
        try:
            yield WorkerPool(workers)
        finally:
            await aio.end(*watchers)
            for worker in workers:
                worker.process.send_signal(signal.SIGKILL)
                worker.process.wait()
