"""Run one program and measure its duration, and the CPU time and peak memory of its processes."""

import os
import resource
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from tools.bench.stats import Run

POLL_S = 0.05
TIMEOUT_S = 600.0


class BenchError(Exception):
    """A program failed its task. The message names the program, and its exit code or the difference."""


def run(name: str, command: list[str], folder: Path, environment: Mapping[str, str]) -> Run:
    """Run the command with `folder` as TMPDIR; raise BenchError if it fails or does not end."""
    began_s, before_s = time.monotonic(), _children_s()
    peaks_bytes: dict[int, int] = {}
    with subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, **environment, "TMPDIR": str(folder)},
    ) as process:
        while process.poll() is None:
            for pid in _family(process.pid):
                peaks_bytes[pid] = max(peaks_bytes.get(pid, 0), _peak_bytes(pid))
            if time.monotonic() - began_s > TIMEOUT_S:
                process.kill()
                raise BenchError(f"{name} did not end within {TIMEOUT_S:.0f} s")
            with suppress(subprocess.TimeoutExpired):
                process.wait(POLL_S)
        took_s = time.monotonic() - began_s
        assert process.stderr is not None
        stderr = process.stderr.read().decode(errors="replace")
    if process.returncode != 0:
        raise BenchError(f"{name} exited with {process.returncode}: {stderr[-500:]}")
    return Run(took_s, [*peaks_bytes.values()] or [0], _children_s() - before_s)


def _children_s() -> float:
    """Return the CPU time of ended children, and of those of their descendants that were waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _family(pid: int) -> Iterator[int]:
    """Yield the PIDs of the process and its descendants."""
    yield pid
    with suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            for child in (thread / "children").read_text().split():
                yield from _family(int(child))


def _peak_bytes(pid: int) -> int:
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0
