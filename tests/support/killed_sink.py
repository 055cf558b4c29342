"""A sink whose process is killed before each of its steps in turn.

A step is a call that changes the disk. Run n is killed before step n, until a run ends by itself. The driver
forks a process for each run. It reads orders from standard input, and prints what the runs of each left.
Both are lines of JSON.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fetchfleet.worker.sink.base import StorageOptions
from fetchfleet.worker.sink.files.buffered_body import BatchTimings
from tests.support.disks import disable_nameless_files, files, keep, opened, some_bytes

STEPS = ("mkdir", "open", "write", "writev", "fsync", "rename", "link", "unlink", "close")
ROOT = Path(__file__).parents[2]
DEST = "folder/deeper/a"


class Deaths:
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
        nameless: bool,
    ) -> Any:
        """Return for each run: `killed`, its `steps`, what it `found` at the final name, the `parts` left.

        nameless: whether the file system supports O_TMPFILE.
        """
        assert self._driver.stdin
        assert self._driver.stdout
        order = [str(folder), size_bytes, durability, if_exists, old, nameless]
        self._driver.stdin.write(json.dumps(order) + "\n")
        self._driver.stdin.flush()
        return json.loads(self._driver.stdout.readline())


@contextmanager
def driver() -> Iterator[Deaths]:
    """Run the driver for the length of the block."""
    command = [sys.executable, "-m", "tests.support.killed_sink"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, text=True, stdin=pipe, stdout=pipe) as process:
        yield Deaths(process)


def _run_once(
    out: Path,
    body: bytes,
    care: StorageOptions,
    if_exists: str,
    dies_at: int,
    steps: int,
    *,
    nameless: bool,
) -> None:
    """Store a body; die before step `dies_at`. Each step is written to the descriptor `steps` first."""
    if not nameless:
        disable_nameless_files(pytest.MonkeyPatch())
    count = 0

    def step(name: str) -> None:
        nonlocal count
        os_write(steps, name.encode() + b" ")
        count += 1
        if count == dies_at:
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
            await keep(sink, body, DEST, care, if_exists=if_exists)

    os_write = os.write
    asyncio.run(run())


def _run_all(
    folder: Path, size_bytes: int, durability: str, if_exists: str, old: bytes | None, *, nameless: bool
) -> list[dict[str, Any]]:
    body = some_bytes(size_bytes)
    runs: list[dict[str, Any]] = []
    killed = True
    while killed:
        out = folder / str(len(runs))
        if old is not None:
            (out / DEST).parent.mkdir(parents=True)
            (out / DEST).write_bytes(old)
        steps, told = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                care = StorageOptions(durability=durability)
                _run_once(out, body, care, if_exists, len(runs) + 1, told, nameless=nameless)
                os._exit(0)
            except BaseException:  # noqa: BLE001 - the child must not continue as the parent
                traceback.print_exc()
                sys.stderr.flush()
            finally:
                os._exit(1)
        ended = os.waitpid(child, 0)[1]
        killed = os.WIFSIGNALED(ended)
        assert killed or ended == 0, "a run failed, see above"
        os.close(told)
        steps_done = os.read(steps, 1 << 16).decode().split()
        os.close(steps)
        found = (out / DEST).read_bytes() if (out / DEST).exists() else None
        what = {old: "old", body: "whole", None: "nothing"}.get(found, "half")
        left = sorted(files(out / ".fetchfleet/parts"))
        runs.append({"killed": killed, "steps": steps_done, "found": what, "parts": left})
    return runs


if __name__ == "__main__":
    for line in sys.stdin:
        where, size, how, exists, before, has_nameless = json.loads(line)
        there = None if before is None else before.encode()
        print(  # noqa: T201
            json.dumps(_run_all(Path(where), size, how, exists, there, nameless=has_nameless)), flush=True
        )
