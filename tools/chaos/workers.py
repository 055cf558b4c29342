"""The worker processes of a run, each with a line to Redis of its own; none may end unless it is ended."""

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
from tools.chaos.history import Died, History
from tools.chaos.proxy import Line
from tools.chaos.schedule import LEASE_S

GRACE_S = 2.0
ENDS_WITHIN_S = 60.0
"""After a SIGTERM: the grace, and as long as a frozen Redis can keep it."""

LOOK_EVERY_S = 0.1
START_AGAIN_S = 0.5
TAIL_LINES = 15


class Worker:
    """One place in the pool, and whichever process has it; `lock` is for who does something to it."""

    def __init__(self, number: int, line: Line, arguments: list[str], history: History) -> None:
        self.line = line
        self.lock = asyncio.Lock()
        self._number = number
        self._arguments = arguments
        self._history = history
        self._starts = 0
        self.failed_starts = 0
        self.start()

    @property
    def name(self) -> str:
        """Of the process: no two have the same."""
        return f"w{self._number}.{self._starts}"

    @property
    def started(self) -> bool:
        """Whether it has come so far as to take lanes."""
        return b'"worker.started"' in self._log.read_bytes()

    def start(self) -> None:
        """A new process."""
        self._starts += 1
        self._log = self._history.folder / f"{self.name}.log"
        own = {
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
                env={**os.environ, **own},
                start_new_session=True,
                preexec_fn=die_with_parent,  # noqa: PLW1509 the caller has no threads that hold locks
            )

    async def kill(self) -> None:
        """As the kernel would."""
        self.process.kill()
        await self._ended()

    async def replace(self, after_s: float) -> None:
        """A deploy."""
        await self.end()
        await asyncio.sleep(after_s)
        self.start()

    async def end(self) -> None:
        """SIGTERM, and its end with 0."""
        self.process.terminate()
        try:
            async with asyncio.timeout(ENDS_WITHIN_S):
                await self._ended()
        except TimeoutError:
            self._tell(f"did not end within {ENDS_WITHIN_S:.0f} s of its SIGTERM")
            await self.kill()
        else:
            if self.process.returncode != 0 and self.started:
                self._tell(f"ended with {self.process.returncode} on SIGTERM")

    async def watch(self) -> None:
        """Start it again if it has ended by itself; that is a breach once it had started. Until cancelled."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            async with self.lock:
                if self.process.poll() is not None:
                    await self._start_again()

    async def _start_again(self) -> None:
        if self.started:
            self._tell(f"ended by itself with {self.process.returncode}")
        else:
            self.failed_starts += 1
        await asyncio.sleep(START_AGAIN_S)
        self.start()

    async def _ended(self) -> None:
        while self.process.poll() is None:  # noqa: ASYNC110 it happens in another process
            await asyncio.sleep(LOOK_EVERY_S / 5)

    def _tell(self, how: str) -> None:
        tail = self._log.read_text(errors="replace").splitlines()[-TAIL_LINES:]
        self._history.add("died", [Died(self.name, "\n".join([f"{how}; {self._log} ends:", *tail]))])


class WorkerPool:
    """All of them."""

    def __init__(self, workers: list[Worker]) -> None:
        self.workers = workers

    @property
    def names(self) -> set[str]:
        """Of those that live."""
        return {worker.name for worker in self.workers}

    @property
    def ready(self) -> bool:
        """Whether all have started."""
        return all(worker.started for worker in self.workers)

    @property
    def failed_starts(self) -> int:
        """How often a worker met no Redis when it started, and ended."""
        return sum(worker.failed_starts for worker in self.workers)


@asynccontextmanager
async def worker_pool(
    count: int, redis_socket: Path, arguments: list[str], history: History
) -> AsyncIterator[WorkerPool]:
    """That many workers for the length of a block; they are killed when it is left."""
    async with AsyncExitStack() as stack:
        workers: list[Worker] = []
        for number in range(1, count + 1):
            socket = history.folder / f"{number}.sock"
            line = await stack.enter_async_context(Line.between(socket, redis_socket))
            workers.append(Worker(number, line, ["--redis", f"unix://{socket}", *arguments], history))
        watching = [asyncio.create_task(worker.watch(), name="watch") for worker in workers]
        try:
            yield WorkerPool(workers)
        finally:
            await aio.end(*watching)
            for worker in workers:
                worker.process.send_signal(signal.SIGKILL)
                worker.process.wait()
