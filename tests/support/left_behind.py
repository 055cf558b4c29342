"""Find leaks of a test: processes, asyncio tasks, open sockets and files, temporary files."""

import asyncio
import gc
import os
import tempfile
from collections import Counter
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

RUNTIME_DESCRIPTORS = ("pipe:", "anon_inode:", "/dev/", "/proc/")
"""Descriptors that Python, the event loop and multiprocessing keep open."""

PYTESTS = "pytest-of-"


def processes() -> set[int]:
    """Return the pids of all processes of the machine."""
    return {int(name) for name in os.listdir("/proc") if name.isdecimal()}  # noqa: PTH208 it is fast


def children(apart_from: Collection[int] = ()) -> dict[int, str]:
    """Return the child processes by pid, zombies included, without Python's resource tracker."""
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
    with open(f"/proc/{pid}/stat", "rb", buffering=0) as stat:  # noqa: PTH123 each test reads some
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
        """Return what was opened since the snapshot and is still open; sockets by inode number."""
        left = self._more()
        if left:
            gc.collect()  # what only this closes is reported by its ResourceWarning
            left = self._more()
        return left

    def _more(self) -> list[str]:
        return sorted((_open_descriptors() - self._open).elements()) + sorted(_temporary() - self._temporary)


def _open_descriptors() -> Counter[str]:
    found: Counter[str] = Counter()
    for number in os.listdir("/proc/self/fd"):  # noqa: PTH208 it is fast
        with suppress(OSError):
            what = os.readlink(f"/proc/self/fd/{number}")  # noqa: PTH115 it is fast
            if not what.startswith(RUNTIME_DESCRIPTORS):
                found[what] += 1
    return found


def _temporary() -> set[str]:
    """Return the files in the test run's temporary folder, without those of pytest."""
    folder = tempfile.gettempdir()
    return {f"{folder}/{name}" for name in os.listdir(folder) if not name.startswith(PYTESTS)}  # noqa: PTH208
