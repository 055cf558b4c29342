"""Find resources that a test leaks: processes, asyncio tasks, open sockets and files, temporary files."""

import asyncio
import gc
import os
import tempfile
from collections import Counter
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

RUNTIME_DESCRIPTORS = ("pipe:", "anon_inode:", "/dev/", "/proc/")
"""Targets of descriptors that Python, the event loop and multiprocessing keep open."""

PYTEST_PREFIX = "pytest-of-"


def processes() -> set[int]:
    """Return the PIDs of all processes of the machine."""
    return {int(name) for name in os.listdir("/proc") if name.isdecimal()}  # noqa: PTH208 it is fast


def children(apart_from: Collection[int] = ()) -> dict[int, str]:
    """Return the command line of each child process by PID, zombies included.

    Python's resource tracker is left out.
    """
    found = {}
    for pid in processes().difference(apart_from):
        with suppress(OSError):
            if _parent_of(pid) == os.getpid():
                command = (
                    Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                )
                if "resource_tracker" not in command:
                    found[pid] = command
    return found


def _parent_of(pid: int) -> int:
    with open(f"/proc/{pid}/stat", "rb", buffering=0) as stat:  # noqa: PTH123 faster
        return int(stat.read().rpartition(b")")[2].split()[1])


def tasks() -> list[str]:
    """Return the other tasks of the running loop."""
    return sorted(repr(task) for task in asyncio.all_tasks() - {asyncio.current_task()})


class OpenResources:
    """A snapshot of the open sockets and files of this process, and of its temporary files."""

    def __init__(self) -> None:
        self._open = _open_descriptors()
        self._temporary = _temporary()

    def since(self) -> list[str]:
        """Return the sockets (by inode number) and files opened since the snapshot and still open."""
        leaked = self._opened_since()
        if leaked:
            gc.collect()  # a resource that the collector closes raises a ResourceWarning of its own
            leaked = self._opened_since()
        return leaked

    def _opened_since(self) -> list[str]:
        return sorted((_open_descriptors() - self._open).elements()) + sorted(_temporary() - self._temporary)


def _open_descriptors() -> Counter[str]:
    found: Counter[str] = Counter()
    for number in os.listdir("/proc/self/fd"):  # noqa: PTH208 it is fast
        with suppress(OSError):
            target = os.readlink(f"/proc/self/fd/{number}")  # noqa: PTH115 it is fast
            if not target.startswith(RUNTIME_DESCRIPTORS):
                found[target] += 1
    return found


def _temporary() -> set[str]:
    """Return the files in the test run's temporary folder, without those of pytest."""
    folder = tempfile.gettempdir()
    return {f"{folder}/{name}" for name in os.listdir(folder) if not name.startswith(PYTEST_PREFIX)}  # noqa: PTH208
