"""The programs that are measured side by side: how each is told to fetch a list of URLs into a folder."""

import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

AT_ONCE = 8


class Task(NamedTuple):
    """What each of them is to do: fetch the URLs, one a line in `listed`, into the folder `out`."""

    urls: Sequence[str]
    listed: Path
    out: Path


class Peer(NamedTuple):
    """A program and its command line; with eight fetches at once."""

    name: str
    command: Callable[[Task], list[str]]
    program: str = ""

    @property
    def there(self) -> bool:
        """Whether it is installed."""
        return not self.program or shutil.which(self.program) is not None


def _fetchfleet(task: Task) -> list[str]:
    policy = task.listed.with_name("policy.toml")
    policy.write_text(f"[default]\nconcurrency = {AT_ONCE}\n")
    arguments = ["--out", str(task.out), "--policy", str(policy), "--allow-net", "127.0.0.0/8"]
    return [sys.executable, "-m", "worker", "run", str(task.listed), *arguments]


def _aria2c(task: Task) -> list[str]:
    # Whole files, one connection each, as the others do it; its default would write every file twice.
    options = ["-q", "-j", str(AT_ONCE), "-x", "1", "-s", "1", "--file-allocation=none"]
    return ["aria2c", *options, "-i", str(task.listed), "-d", str(task.out)]


def _wget2(task: Task) -> list[str]:
    return ["wget2", "-q", f"--max-threads={AT_ONCE}", "-i", str(task.listed), "-P", str(task.out)]


def _curl(task: Task) -> list[str]:
    options = ["-s", "--parallel", "--parallel-max", str(AT_ONCE), "--remote-name-all", "--create-dirs"]
    return ["curl", *options, "--output-dir", str(task.out), *task.urls]


PEERS = (
    Peer("fetchfleet", _fetchfleet),
    Peer("aria2c", _aria2c, "aria2c"),
    Peer("wget2", _wget2, "wget2"),
    Peer("curl --parallel", _curl, "curl"),
)
