"""The programs to compare: the command line with which each fetches a list of URLs into a folder.

Each runs eight fetches at once per host. A program that has only a total limit gets the equivalent total. To
measure another configuration of fetchfleet, add a line to PEERS.
"""

import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from fetchfleet.worker import settings
from tools.bench.bodies import in_files, in_segments
from tools.bench.stats import BASE

A_HOST = 8
MOST_AT_ONCE = 160
PROGRAMS = "tools.bench.contenders"
PYTHON = os.environ.get("BENCH_PYTHON") or sys.executable
"""The Python that has aiohttp and Scrapy. It is separate because structlog loads Twisted if installed."""


class Task(NamedTuple):
    """The task of each program: fetch the URLs, one a line in `listed`, into the folder `out`."""

    urls: Sequence[str]
    listed: Path
    out: Path
    hosts: int = 1

    @property
    def at_once(self) -> int:
        """The total limit of concurrent fetches, for programs without a limit per host."""
        return min(A_HOST * self.hosts, MOST_AT_ONCE)


Command = Callable[[Task], list[str]]


class Peer(NamedTuple):
    """A program: its command line, whether it is installed, its environment, and the check of its output."""

    name: str
    command: Command
    there: bool
    environment: Mapping[str, str] = {}
    stored: Callable[[Path, Counter[int]], str] = in_files
    share: float = 1.0
    """The part of the list that it fetches: a slow program would take minutes for all of it."""


def _fetchfleet(task: Task, *flags: str) -> list[str]:
    policy = task.listed.with_name("policy.toml")
    policy.write_text(f"[default]\nconcurrency = {A_HOST}\n")
    arguments = ["--out", str(task.out), "--policy", str(policy), "--allow-net", "127.0.0.0/8", *flags]
    return [sys.executable, "-m", "fetchfleet.worker", "run", str(task.listed), *arguments]


def _aria2c(task: Task) -> list[str]:
    # One connection a file, as the other programs use; preallocation would write every file twice.
    options = ["-q", "-j", str(task.at_once), "-x", "1", "-s", "1", "--file-allocation=none"]
    return ["aria2c", *options, "-i", str(task.listed), "-d", str(task.out)]


def _wget2(task: Task) -> list[str]:
    return ["wget2", "-q", f"--max-threads={task.at_once}", "-i", str(task.listed), "-P", str(task.out)]


def _curl(task: Task) -> list[str]:
    config = task.listed.with_name("curl.conf")
    config.write_text("".join(f"url = {url}\n" for url in task.urls))
    options = ["-s", "--parallel", "--parallel-max", str(task.at_once), "--remote-name-all", "--create-dirs"]
    return ["curl", *options, "--output-dir", str(task.out), "--config", str(config)]


def _program(python: str, name: str, task: Task) -> list[str]:
    return [python, "-m", f"{PROGRAMS}.{name}", str(task.listed), str(task.out), str(task.at_once)]


def _command(program: str, command: Command, share: float = 1.0) -> Peer:
    return Peer(program, command, shutil.which(program.split(maxsplit=1)[0]) is not None, share=share)


def _library(name: str, program: str, library: str, share: float = 1.0) -> Peer:
    probe = [PYTHON, "-c", f"import {library}"]
    there = subprocess.run(probe, capture_output=True, check=False).returncode == 0
    return Peer(name, partial(_program, PYTHON, program), there, share=share)


def _own(how: str = "", *, workers: int = 1, engine: str = "httpx", sink: str = "files") -> Peer:
    """A configuration of fetchfleet. how: suffix of its name."""
    there = engine in settings.ENGINES and sink in settings.SINKS
    chosen = {"FETCHFLEET_ENGINE": engine, "FETCHFLEET_SINK": sink}
    command = partial(_with_flags, ("--workers", str(workers)))
    stored = in_files if sink == "files" else in_segments
    return Peer(f"fetchfleet{how}", command, there, chosen, stored)


def _with_flags(flags: Sequence[str], task: Task) -> list[str]:
    return _fetchfleet(task, *flags)


A_QUARTER = 0.25

PEERS = (
    _own(),
    _own(", 2 workers", workers=2),
    _own(", warc", sink="warc"),
    _own(", direct", engine="direct"),
    _own(", direct, 2 workers", workers=2, engine="direct"),
    _own(", direct, warc", engine="direct", sink="warc"),
    _library(BASE, "aiohttp_script", "aiohttp"),
    Peer(
        "arq + httpx by hand",
        partial(_program, sys.executable, "arq_httpx"),
        there=True,
        share=A_QUARTER,
    ),
    _library("scrapy", "scrapy_spider", "scrapy", A_QUARTER),
    _command("aria2c", _aria2c, A_QUARTER),
    _command("curl --parallel", _curl),
    _command("wget2", _wget2),
)
