"""Worker processes for tests, started like those of `fetchfleet run`."""

import json
import os
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fetchfleet.worker.local.process import WORKER_ID, WorkerProcess, configured
from tests.support.fork_server import COMMAND, WORKER, Process
from tests.support.log_lines import assert_registered

LOOPBACK = "127.0.0.0/8"
QUICK_POLICY = """\
[default]
retry_base_s = 0.05
retry_cap_s = 0.2
breaker_reset_s = 0.5
"""


@contextmanager
def workers(
    count: int,
    redis_url: str,
    folder: Path,
    policy: str = QUICK_POLICY,
    *,
    first: int = 1,
    settings: Mapping[str, str] | None = None,
) -> Iterator["Workers"]:
    """Yield `count` worker processes on one Redis, numbered from `first`; bodies go to `folder`/bodies.

    settings: further settings of the workers, which override the others.
    """
    folder.mkdir(exist_ok=True)
    (folder / "policy.toml").write_text(policy)
    defaults = {"redis_url": redis_url, "out": str(folder / "bodies"), "allow_net": LOOPBACK}
    settings = {**defaults, "policy": str(folder / "policy.toml"), **(settings or {})}
    processes: list[WorkerProcess] = [
        ForkedWorker(f"worker-{number}") for number in range(first, first + count)
    ]
    with configured(processes, settings, folder):
        yield Workers(processes, folder)


class ForkedWorker(WorkerProcess):
    """A worker process of the fork server."""

    def _execute(self) -> Process:
        environment = {**os.environ, WORKER_ID: self.name}
        streams = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        return Process(WORKER, bufsize=0, env=environment, start_new_session=True, **streams)


class Workers:
    """Worker processes that share an out folder, and their logs."""

    def __init__(self, processes: Sequence[WorkerProcess], folder: Path) -> None:
        self.processes = [process.process for process in processes]
        self.out = folder / "bodies"
        self._folder = folder

    def events(self, name: str) -> list[dict[str, Any]]:
        """Return the log lines of all workers with this event."""
        logs = sorted(self._folder.glob("*.log"))
        lines = [line for log in logs for line in log.read_text().splitlines(keepends=True)]
        # A worker may be writing the last line.
        found = [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}\n")]
        return [line for line in found if line["event"] == name]

    def started(self) -> bool:
        """Return whether every worker is ready to take lanes."""
        return len(self.events("worker.started")) >= len(self.processes)


def peak_memory_bytes(pid: int) -> int:
    """Return the largest resident set size of the process so far."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def fetchfleet(
    *arguments: str | Path, stdin: str = "", **environment: str
) -> "subprocess.CompletedProcess[str]":
    """Run the `fetchfleet` command in a process of its own."""
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    variables = {**os.environ, "COLUMNS": "200", **environment}
    with Process(COMMAND, *arguments, env=variables, text=True, **pipes) as command:
        try:
            output, errors = command.communicate(stdin, timeout=90)
        finally:
            command.kill()
    assert_registered(line for line in errors.splitlines() if line.startswith("{"))
    return subprocess.CompletedProcess(command.args, command.returncode, output, errors)
