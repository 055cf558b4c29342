"""The machine and the software versions of a benchmark, and its working folder."""

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PACKAGES = ("httpx", "httptools", "uvloop", "arq", "aiofiles", "aiohttp", "scrapy")
COMMANDS = {
    "redis-server": ["redis-server", "--version"],
    "nginx": ["nginx", "-v"],
    "aria2c": ["aria2c", "--version"],
    "curl": ["curl", "--version"],
    "wget2": ["wget2", "--version"],
}
MB = 1 << 20
MEMORY = Path("/dev/shm")  # noqa: S108 TemporaryDirectory makes a private folder in it
"""The mount point of a tmpfs on Linux."""


@contextmanager
def workspace(*, disk: bool) -> Iterator[Path]:
    """Yield a new folder in memory, or on the disk of TMPDIR; remove it at the end of the block."""
    parent = MEMORY if MEMORY.is_dir() and not disk else None
    with tempfile.TemporaryDirectory(prefix="ff-bench-", dir=parent) as name:
        yield Path(name)


def machine() -> dict[str, Any]:
    """Return the machine's cores, memory, system and current load, and the command line."""
    memory_mb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // MB
    return {
        "cores": os.cpu_count(),
        "cpu": _cpu(),
        "memory_mib": memory_mb,
        "system": platform.platform(),
        "load": os.getloadavg()[0],
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "command": " ".join(["./scripts/bench", *sys.argv[1:]]),
    }


def versions() -> dict[str, str]:
    """Return the versions of the programs and packages that are installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        if version := _version(package):
            found[package] = version
    for name, command in COMMANDS.items():
        if shutil.which(name):
            found[name] = _first_number(command)
    return found


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _first_number(command: list[str]) -> str:
    printed = subprocess.run(command, capture_output=True, text=True, check=False)
    number = re.search(r"\d+(\.\d+)+", printed.stdout + printed.stderr)
    return number.group() if number else "?"


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
