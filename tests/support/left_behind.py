"""What a test must not leave behind: processes, asyncio tasks, open sockets and files, temporary files."""

import asyncio
import gc
import os
import tempfile
from collections import Counter
from contextlib import suppress
from pathlib import Path

OF_NOBODY = ("pipe:", "anon_inode:", "/dev/", "/proc/")
"""What Python, the event loop and multiprocessing keep open for themselves."""

PYTESTS = "pytest-of-"


def children() -> dict[int, str]:
    """Our child processes, by pid, zombies included; not Python's own helper for semaphores."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if int(parent) == os.getpid() and "resource_tracker" not in command:
                found[int(folder.name)] = command
    return found


def tasks() -> list[str]:
    """The other tasks of the running loop."""
    return sorted(repr(task) for task in asyncio.all_tasks() - {asyncio.current_task()})


class Things:
    """The sockets and files that this process has open, and its temporary files, as they are now."""

    def __init__(self) -> None:
        self._open = _open_things()
        self._temporary = _temporary()

    def since(self) -> list[str]:
        """What has come since then and is still there; a socket by the number that the kernel knows it by."""
        left = self._more()
        if left:
            gc.collect()  # what is closed only by this is told of by its ResourceWarning
            left = self._more()
        return left

    def _more(self) -> list[str]:
        return sorted((_open_things() - self._open).elements()) + sorted(_temporary() - self._temporary)


def _open_things() -> Counter[str]:
    found: Counter[str] = Counter()
    for number in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            what = str(number.readlink())
            if not what.startswith(OF_NOBODY):
                found[what] += 1
    return found


def _temporary() -> set[str]:
    """What is in the folder for temporary files, which is the run's own; pytest keeps its part in order."""
    found = Path(tempfile.gettempdir()).iterdir()
    return {str(path) for path in found if not path.name.startswith(PYTESTS)}
