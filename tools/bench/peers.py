"""The programs to compare, each with the command that fetches a list of URLs into a folder.

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

PER_HOST = 8
"""Fetches at once per host."""

MAX_AT_ONCE = 160
SEGMENTS = 4
"""Connections for one file, in programs that use several."""

PROGRAMS = "tools.bench.contenders"
PYTHON = os.environ.get("BENCH_PYTHON") or sys.executable
"""The Python with aiohttp and Scrapy. Scrapy's Twisted must not be in .venv: structlog would import it."""

INSTALLED_PYTHON = os.environ.get("BENCH_INSTALLED_PYTHON") or sys.executable
"""The Python with fetchfleet and its dependencies. In .venv they find and import packages for development."""


class Task(NamedTuple):
    """The task of each program: fetch the URLs into a folder."""

    urls: Sequence[str]
    url_file: Path
    """The URLs, one a line."""
    out: Path
    hosts: int = 1

    @property
    def at_once(self) -> int:
        """The total limit of concurrent fetches, for programs without a limit per host."""
        return min(PER_HOST * self.hosts, MAX_AT_ONCE)


Command = Callable[[Task], list[str]]


class Peer(NamedTuple):
    """A program to measure."""

    name: str
    command: Command
    installed: bool
    environment: Mapping[str, str] = {}
    difference: Callable[[Path, Counter[int]], str] = in_files
    """Describes how the stored bodies differ from the served ones; returns '' if they do not."""
    share: float = 1.0
    """The share of the list to fetch, less for a program that would take minutes for the whole list."""


def _fetchfleet(task: Task, *flags: str) -> list[str]:
    policy = task.url_file.with_name("policy.toml")
    policy.write_text(f"[default]\nconcurrency = {PER_HOST}\n")
    arguments = ["--out", str(task.out), "--policy", str(policy), "--allow-net", "127.0.0.0/8", *flags]
    return [INSTALLED_PYTHON, "-m", "fetchfleet.worker", "run", str(task.url_file), *arguments]


def _aria2c(task: Task) -> list[str]:
    # One connection a file, as in the other programs. Preallocation would write every file twice.
    options = ["-q", "-j", str(task.at_once), "-x", "1", "-s", "1", "--file-allocation=none"]
    return ["aria2c", *options, "-i", str(task.url_file), "-d", str(task.out)]


def _aria2c_segments(task: Task) -> list[str]:
    options = ["-q", "-j", "1", "-x", str(SEGMENTS), "-s", str(SEGMENTS), "--file-allocation=none"]
    return ["aria2c", *options, "-i", str(task.url_file), "-d", str(task.out)]


def _wget2(task: Task) -> list[str]:
    return ["wget2", "-q", f"--max-threads={task.at_once}", "-i", str(task.url_file), "-P", str(task.out)]


def _curl(task: Task) -> list[str]:
    config = task.url_file.with_name("curl.conf")
    config.write_text("".join(f"url = {url}\n" for url in task.urls))
    options = ["-s", "--parallel", "--parallel-max", str(task.at_once), "--remote-name-all", "--create-dirs"]
    return ["curl", *options, "--output-dir", str(task.out), "--config", str(config)]


def _program(python: str, name: str, task: Task) -> list[str]:
    return [python, "-m", f"{PROGRAMS}.{name}", str(task.url_file), str(task.out), str(task.at_once)]


def _command(program: str, command: Command, share: float = 1.0) -> Peer:
    return Peer(program, command, shutil.which(program.split(maxsplit=1)[0]) is not None, share=share)


def _library(name: str, program: str, library: str, share: float = 1.0) -> Peer:
    probe = [PYTHON, "-c", f"import {library}"]
    installed = subprocess.run(probe, capture_output=True, check=False).returncode == 0
    return Peer(name, partial(_program, PYTHON, program), installed, share=share)


def _fetchfleet_peer(
    suffix: str = "",
    *,
    workers: int = 1,
    engine: str = "httpx",
    sink: str = "files",
    compression: str = settings.NONE,
) -> Peer:
    """Return a configuration of fetchfleet. suffix: of its name."""
    installed = engine in settings.ENGINES and sink in settings.SINKS
    environment = {
        "FETCHFLEET_ENGINE": engine,
        "FETCHFLEET_SINK": sink,
        "FETCHFLEET_WARC_COMPRESSION": compression,
    }
    command = partial(_with_flags, ("--workers", str(workers)))
    difference = in_files if sink == "files" else in_segments
    return Peer(f"fetchfleet{suffix}", command, installed, environment, difference)


def _with_flags(flags: Sequence[str], task: Task) -> list[str]:
    return _fetchfleet(task, *flags)


QUARTER = 0.25

PEERS = (
    _fetchfleet_peer(),
    _fetchfleet_peer(", 2 workers", workers=2),
    _fetchfleet_peer(", warc", sink="warc"),
    _fetchfleet_peer(", direct", engine="direct"),
    _fetchfleet_peer(", direct, 2 workers", workers=2, engine="direct"),
    _fetchfleet_peer(", direct, warc", engine="direct", sink="warc"),
    _fetchfleet_peer(", direct, warc, gzip", engine="direct", sink="warc", compression=settings.GZIP),
    _library(BASE, "aiohttp_script", "aiohttp"),
    Peer(
        "arq + httpx by hand",
        partial(_program, INSTALLED_PYTHON, "arq_httpx"),
        installed=True,
        share=QUARTER,
    ),
    _library("scrapy", "scrapy_spider", "scrapy", QUARTER),
    _command("aria2c", _aria2c, QUARTER),
    _command("curl --parallel", _curl),
    _command("wget2", _wget2),
)

SEGMENTED_PEERS = (
    _fetchfleet_peer(),
    Peer(
        f"fetchfleet, {SEGMENTS} segments",
        partial(_with_flags, ("--set", f"segments={SEGMENTS}")),
        installed=True,
    ),
    _command("aria2c", _aria2c),
    Peer(f"aria2c -x{SEGMENTS} -s{SEGMENTS}", _aria2c_segments, shutil.which("aria2c") is not None),
)
"""The programs that fetch one large file, some of them on several connections."""
