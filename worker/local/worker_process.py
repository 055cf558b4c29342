"""A fleet's worker processes on this machine, for the length of a run."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from fetchfleet.worker.errors import CommandError
from fetchfleet.worker.local.child_process import await_end, die_with_parent

STOP_TIMEOUT_S = 30.0
MAX_QUICK_ENDS = 3
QUICK_END_S = 5.0


class WorkersError(CommandError):
    """The workers cannot be kept running; the message says where their logs are."""


class WorkerProcess:
    """One worker as a process of its own: started, then told what to do; started again when it dies.

    An interpreter takes a while until it can be a worker. What the worker is to do may be found out
    meanwhile (worker/local/prestart.py).
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._environment = {**os.environ, "FETCHFLEET_WORKER_ID": name}
        self._log: Path | None = None
        self._orders = b""
        self._quick_ends = 0
        self._start()

    def begin(self, arguments: list[str], log: Path) -> None:
        """Be a worker with these arguments of `fetchfleet worker`; its lines go to the log."""
        self._log = log
        self._orders = json.dumps({"arguments": arguments, "log": str(log)}).encode()
        self._tell()

    def keep_alive(self) -> None:
        """Start it again if it died; WorkersError if it will not live."""
        if self.process.poll() is None:
            return
        quick = time.monotonic() - self._started_s < QUICK_END_S
        self._quick_ends = self._quick_ends + 1 if quick else 0
        if self._quick_ends >= MAX_QUICK_ENDS:
            raise WorkersError(f"a worker ends as soon as it starts; {self._log} says why")
        self._start()
        self._tell()

    def stop(self) -> None:
        """Ask it to hand back what it holds and end."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)

    def wait(self) -> None:
        """Until it has ended; killed if it does not."""
        await_end(self.process, STOP_TIMEOUT_S)
        if self.process.stdin:
            self.process.stdin.close()

    def _start(self) -> None:
        self._started_s = time.monotonic()
        # From the second time on, so that it can say why it cannot even hear what it is to do.
        with self._log.open("ab") if self._log else nullcontext(subprocess.DEVNULL) as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "fetchfleet.worker.local.prestart"],
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                env=self._environment,
                start_new_session=True,
                preexec_fn=die_with_parent,  # noqa: PLW1509 the caller has no threads that hold locks
            )

    def _tell(self) -> None:
        with suppress(BrokenPipeError):  # it has died: it will be kept alive
            assert self.process.stdin
            with self.process.stdin as orders:
                orders.write(self._orders)


@contextmanager
def started_ahead(count: int, *, first: int = 1) -> Iterator[list[WorkerProcess]]:
    """The interpreters of that many workers, numbered from `first`, all ended when the block is left."""
    workers: list[WorkerProcess] = []
    try:
        for number in range(first, first + count):
            workers.append(WorkerProcess(f"worker-{number}"))  # noqa: PERF401 if one fails, the others end
        yield workers
    finally:
        _end(workers)


@contextmanager
def at_work(workers: list[WorkerProcess], arguments: list[str], logs: Path) -> Iterator[None]:
    """They are workers with these arguments, each with a log in that folder, and end with the block."""
    try:
        for worker in workers:
            worker.begin(arguments, logs / f"{worker.name}.log")
        yield
    finally:
        _end(workers)


@contextmanager
def worker_processes(
    count: int, arguments: list[str], logs: Path, *, first: int = 1
) -> Iterator[list[WorkerProcess]]:
    """That many workers, numbered from `first`, all ended when the block is left."""
    with started_ahead(count, first=first) as workers, at_work(workers, arguments, logs):
        yield workers


def _end(workers: list[WorkerProcess]) -> None:
    for worker in workers:
        worker.stop()
    for worker in workers:
        worker.wait()
