"""A sink whose process is killed before each of its steps in turn.

A step is a call that changes the disk. Run n is killed before step n. The last run has no such step and ends
normally. With `if_exists=suffix`, each run is repeated to its end, as another attempt. The driver forks a
process for each run. It reads orders from standard input and prints the state after each run, both as lines
of JSON.
"""

import asyncio
import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fetchfleet.jobs.contract.checks.field_checks import IfExists
from fetchfleet.worker.sink.base import StorageOptions
from fetchfleet.worker.sink.files.buffered_body import BatchTimings
from tests.support.disks import disable_unnamed_files, files, opened, some_bytes, store_body
from tests.support.forked_child import is_killed

STEPS = ("mkdir", "open", "write", "writev", "fsync", "rename", "link", "unlink", "close")
ROOT = Path(__file__).parents[2]
DEST = "folder/deeper/a"
NEVER = 0
"""The step before which no run is killed."""


class KilledSink:
    """The driver."""

    def __init__(self, driver: "subprocess.Popen[str]") -> None:
        self._driver = driver

    def __call__(
        self,
        folder: Path,
        size_bytes: int,
        durability: str,
        if_exists: str,
        old: str | None,
        *,
        unnamed: bool,
    ) -> Any:
        """Return for each run: `killed`, its `steps`, the file `found` at the final name, the `parts` left.

        With `if_exists=suffix` also `bodies`: the files after the repetition, by path and digest.

        old: the body at the final name before the run. unnamed: True if the file system supports O_TMPFILE.
        """
        assert self._driver.stdin
        assert self._driver.stdout
        order = [str(folder), size_bytes, durability, if_exists, old, unnamed]
        self._driver.stdin.write(json.dumps(order) + "\n")
        self._driver.stdin.flush()
        return json.loads(self._driver.stdout.readline())


@contextmanager
def driver() -> Iterator[KilledSink]:
    """Run the driver for the length of the block."""
    command = [sys.executable, "-m", "tests.support.killed_sink"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, text=True, stdin=pipe, stdout=pipe) as process:
        yield KilledSink(process)


def _run_once(
    out: Path,
    body: bytes,
    options: StorageOptions,
    if_exists: str,
    killed_at: int,
    steps: int,
    *,
    unnamed: bool,
) -> None:
    """Store a body; kill this process before step `killed_at`. Each step is first written to `steps`."""
    if not unnamed:
        disable_unnamed_files(pytest.MonkeyPatch())
    count = 0

    def step(name: str) -> None:
        nonlocal count
        os_write(steps, name.encode() + b" ")
        count += 1
        if count == killed_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def counted(name: str) -> Callable[..., Any]:
        real = getattr(os, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            step(name)
            return real(*args, **kwargs)

        return call

    async def run() -> None:
        with opened(out, BatchTimings(turn_s=60.0)) as sink:  # opens its folders once, even when slow
            for name in STEPS:
                setattr(os, name, counted(name))
            await store_body(sink, body, DEST, options, if_exists=if_exists)

    os_write = os.write
    asyncio.run(run())


def _forked(
    out: Path, body: bytes, options: StorageOptions, if_exists: str, killed_at: int, *, unnamed: bool
) -> tuple[bool, list[str]]:
    """Run `_run_once` in a child process; return whether it was killed, and its steps."""
    steps_read, steps_write = os.pipe()
    killed = is_killed(
        lambda: _run_once(out, body, options, if_exists, killed_at, steps_write, unnamed=unnamed)
    )
    os.close(steps_write)
    steps = os.read(steps_read, 1 << 16).decode().split()
    os.close(steps_read)
    return killed, steps


def _run_all(
    folder: Path, size_bytes: int, durability: str, if_exists: str, old: bytes | None, *, unnamed: bool
) -> list[dict[str, Any]]:
    body, options = some_bytes(size_bytes), StorageOptions(durability=durability)
    runs: list[dict[str, Any]] = []
    killed = True
    while killed:
        out = folder / str(len(runs))
        if old is not None:
            (out / DEST).parent.mkdir(parents=True)
            (out / DEST).write_bytes(old)
        killed, steps = _forked(out, body, options, if_exists, len(runs) + 1, unnamed=unnamed)
        content = (out / DEST).read_bytes() if (out / DEST).exists() else None
        found = {old: "old", body: "whole", None: "nothing"}.get(content, "half")
        parts = sorted(files(out / ".fetchfleet/parts"))
        runs.append({"killed": killed, "steps": steps, "found": found, "parts": parts})
        if if_exists == IfExists.SUFFIX:
            _forked(out, body, options, if_exists, NEVER, unnamed=unnamed)
            bodies = sorted(files(out))
            runs[-1]["bodies"] = {
                path: hashlib.sha256((out / path).read_bytes()).hexdigest() for path in bodies
            }
    return runs


if __name__ == "__main__":
    for line in sys.stdin:
        folder, size_bytes, durability, if_exists, old, unnamed = json.loads(line)
        old_body = None if old is None else old.encode()
        runs = _run_all(Path(folder), size_bytes, durability, if_exists, old_body, unnamed=unnamed)
        print(json.dumps(runs), flush=True)  # noqa: T201
