"""A sink whose process is killed before each of its steps in turn.

A step is a call that changes the disk. Run n is killed before step n, until a run ends by itself. The driver
forks a process for each run and prints, as JSON, what each left behind.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fetchfleet.worker.sink.base import StorageOptions
from fetchfleet.worker.sink.files.buffered_body import BatchTimings
from tests.support.disks import disable_nameless_files, files, keep, opened, some_bytes

STEPS = ("mkdir", "open", "write", "writev", "fsync", "rename", "link", "unlink", "close")
ROOT = Path(__file__).parents[2]
DEST = "folder/deeper/a"


def deaths(
    folder: Path, size_bytes: int, durability: str, if_exists: str, old: bytes | None, *, nameless: bool
) -> Any:
    """Return for each run: `killed`, its `steps`, what it `found` at the final name, and the `parts` left.

    nameless: whether the file system supports O_TMPFILE.
    """
    arguments = [str(folder), str(size_bytes), durability, if_exists, "" if old is None else old.decode()]
    arguments.append("nameless" if nameless else "")
    command = [sys.executable, "-m", "tests.support.killed_sink", *arguments]
    return json.loads(subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout)


def _run_once(out: Path, body: bytes, care: StorageOptions, if_exists: str, dies_at: int, steps: int) -> None:
    """Store a body; die before step `dies_at`. Each step is written to the descriptor `steps` first."""
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


def _run_all(folder: Path, size_bytes: int, durability: str, if_exists: str, old: bytes | None) -> None:
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
                _run_once(out, body, StorageOptions(durability=durability), if_exists, len(runs) + 1, told)
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
    sys.stdout.write(json.dumps(runs))


if __name__ == "__main__":
    where, size, how, exists, before, nameless = sys.argv[1:]
    if not nameless:
        disable_nameless_files(pytest.MonkeyPatch())
    _run_all(Path(where), int(size), how, exists, before.encode() or None)
