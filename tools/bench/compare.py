"""Measure programs that fetch the same files from the same server, one after the other, in rounds."""

import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tools.bench import bodies, stats
from tools.bench.peers import Peer, Task
from tools.bench.process import BenchError, run
from tools.bench.stats import Run
from tools.origin.static_server import StaticServer, serve_folder

KEPT_BYTES = 100 * stats.MB


class Load(NamedTuple):
    """The files to fetch, and a time limit: a round that would exceed the budget is not started."""

    files: int
    size_bytes: int
    hosts: int
    rounds: int
    budget_s: float = float("inf")


class Measured(NamedTuple):
    """The figures of each program, the number of rounds, and the server used."""

    found: dict[str, Any]
    rounds: int
    server: str


Tell = Callable[[str], None]


def side_by_side(load: Load, peers: Sequence[Peer], unit: str, tell: Tell) -> Measured:
    """Serve the files and let each program fetch them, in turn; raise BenchError if one fails."""
    with tempfile.TemporaryDirectory(prefix="ff-bench-") as name:
        folder = Path(name)
        served = bodies.make(folder / "served", load.files, load.size_bytes)
        with serve_folder(folder / "served", hosts(load)) as server:
            runs = _rounds(load, peers, _task(load, server, folder), served, tell)
    size_bytes = load.files * load.size_bytes
    measured = {of: stats.of_files(own, load.files, size_bytes) for of, own in runs.items()}
    return Measured(stats.with_ratios(measured, unit), len(next(iter(runs.values()))), server.name)


def hosts(load: Load) -> list[str]:
    """Return the loopback addresses that serve the files."""
    return [f"127.0.{7 + number // 250}.{number % 250 + 1}" for number in range(load.hosts)]


def _is_small(load: Load) -> bool:
    """Return whether to keep the stored files: ext4 creates files at half the speed after many deletions."""
    return load.files * load.size_bytes <= KEPT_BYTES


def _task(load: Load, server: StaticServer, folder: Path) -> Task:
    urls = [f"{server.base_urls[number % load.hosts]}/{number}.bin" for number in range(load.files)]
    listed = folder / "urls.txt"
    listed.write_text("\n".join(urls) + "\n")
    out = folder / "out"
    out.mkdir()
    return Task(urls, listed, out, load.hosts)


def _rounds(
    load: Load, peers: Sequence[Peer], task: Task, served: Counter[int], tell: Tell
) -> dict[str, list[Run]]:
    runs: dict[str, list[Run]] = {peer.name: [] for peer in peers}
    took_s: list[float] = []
    while len(took_s) < load.rounds and (not took_s or stats.another_fits(took_s, load.budget_s)):
        began_s = time.monotonic()
        for peer in peers:
            own = task._replace(out=task.out / f"{len(took_s)} {peer.name}")
            runs[peer.name].append(_turn(peer, own, served))
            if not _is_small(load):
                shutil.rmtree(own.out)
            tell(f"round {len(took_s) + 1}: {peer.name} {runs[peer.name][-1].took_s:.2f} s")
        took_s.append(time.monotonic() - began_s)
    return runs


def _turn(peer: Peer, task: Task, served: Counter[int]) -> Run:
    """Run the program once into its own folder and check every stored body."""
    os.sync()  # flush what the previous run left, so that this run does not wait for it
    task.out.mkdir()
    done = run(peer.name, peer.command(task), task.listed.parent, peer.environment)
    wrong = peer.stored(task.out, served)
    if wrong:
        raise BenchError(f"{peer.name}: {wrong}")
    return done
