"""What a test must not leave running: child processes and asyncio tasks."""

import asyncio
import os
from contextlib import suppress
from pathlib import Path


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
