"""Find leaks of a test: processes, asyncio tasks, open sockets and files, temporary files."""

import asyncio
import gc
import os
import tempfile
from collections import Counter
from contextlib import suppress
from pathlib import Path

RUNTIME_DESCRIPTORS = ("pipe:", "anon_inode:", "/dev/", "/proc/")
"""Descriptors that Python, the event loop and multiprocessing keep open."""

PYTESTS = "pytest-of-"


def children() -> dict[int, str]:
    """Return the child processes by pid, zombies included, without Python's resource tracker."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if int(parent) == os.getpid() and "resource_tracker" not in command:
                found[int(folder.name)] = command
    return found


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
    for number in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            what = str(number.readlink())
            if not what.startswith(RUNTIME_DESCRIPTORS):
                found[what] += 1
    return found


def _temporary() -> set[str]:
    """Return the files in the test run's temporary folder, without those of pytest."""
    found = Path(tempfile.gettempdir()).iterdir()
    return {str(path) for path in found if not path.name.startswith(PYTESTS)}
