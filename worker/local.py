"""A whole fleet on this machine: the embedded Redis and worker processes, for the length of a run."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from worker.embedded import die_with_parent

STOP_TIMEOUT_S = 30.0
MAX_QUICK_ENDS = 3
QUICK_END_S = 5.0


class WorkersError(Exception):
    """The workers cannot be kept running; the message says where their logs are."""


class WorkerProcess:
    """One worker as a process of its own, started again when it dies."""

    def __init__(self, name: str, arguments: list[str], log: Path) -> None:
        self._command = [sys.executable, "-m", "worker", "worker", *arguments]
        self._environment = {**os.environ, "FETCHFLEET_WORKER_ID": name}
        self._log = log
        self._quick_ends = 0
        self.start()

    def start(self) -> None:
        """Start the process; its lines go to its log."""
        self._started_s = time.monotonic()
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(  # noqa: S603
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment,
                start_new_session=True,
                preexec_fn=die_with_parent,  # noqa: PLW1509 the caller has no threads that hold locks
            )

    def keep_alive(self) -> None:
        """Start it again if it died; WorkersError if it will not live."""
        if self.process.poll() is None:
            return
        quick = time.monotonic() - self._started_s < QUICK_END_S
        self._quick_ends = self._quick_ends + 1 if quick else 0
        if self._quick_ends >= MAX_QUICK_ENDS:
            raise WorkersError(f"a worker ends as soon as it starts; {self._log} says why")
        self.start()

    def stop(self) -> None:
        """Ask it to hand back what it holds and end."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)

    def wait(self) -> None:
        """Until it has ended; killed if it does not."""
        try:
            self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@contextmanager
def worker_processes(
    count: int, arguments: list[str], logs: Path, *, first: int = 1
) -> Iterator[list[WorkerProcess]]:
    """That many workers, numbered from `first`, all ended when the block is left."""
    workers: list[WorkerProcess] = []
    try:
        for number in range(first, first + count):
            name = f"worker-{number}"
            workers.append(WorkerProcess(name, arguments, logs / f"{name}.log"))
        yield workers
    finally:
        for worker in workers:
            worker.stop()
        for worker in workers:
            worker.wait()
