"""Measure programs that fetch the same files from the same server, one after the other, in rounds."""

import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from tools.bench import bodies, stats
from tools.bench.environment import workspace
from tools.bench.peers import Peer, Task
from tools.bench.process import BenchError, run
from tools.bench.stats import Run
from tools.origin.static_server import serve_folder
from tools.origin.tls_server import serve_tls

MAX_KEPT_BYTES = 100 * stats.MB
"""The total size up to which the stored files of all rounds stay on disk until the end."""


class Load(NamedTuple):
    """The files to fetch, and the number of rounds."""

    files: int
    size_bytes: int
    hosts: int
    rounds: int
    budget_s: float = float("inf")
    """A round that would end after this time is not started."""
    tls: bool = False
    in_parts: bool = False
    """True if a slow program fetches only its share of the files."""
    connection_bytes_per_s: int = 0
    """The limit of each connection; 0 for none."""


class Measured(NamedTuple):
    """The result of a comparison."""

    figures: dict[str, Any]
    """The figures, by program."""
    rounds: int
    server: str


class _Turn(NamedTuple):
    """A program and its task."""

    peer: Peer
    task: Task
    served: Counter[int]
    """The checksums of the bodies to store."""


OnProgress = Callable[[str], None]


def side_by_side(
    load: Load, peers: Sequence[Peer], unit: str, on_progress: OnProgress, *, disk: bool = False
) -> Measured:
    """Serve the files, and run each program in turn. Raises BenchError if one fails."""
    with workspace(disk=disk) as folder:
        bodies.make(folder / "served", load.files, load.size_bytes)
        with _serving(load, folder) as (server, base_urls, ca_file):
            (folder / "out").mkdir()
            trusted = {"SSL_CERT_FILE": str(ca_file)} if ca_file else {}
            turns = [
                _turn(load, peer._replace(environment={**peer.environment, **trusted}), base_urls, folder)
                for peer in peers
            ]
            runs = _rounds(
                load, turns, on_progress, keep=disk and load.files * load.size_bytes <= MAX_KEPT_BYTES
            )
    measured = {
        turn.peer.name: stats.of_files(
            runs[turn.peer.name], len(turn.task.urls), len(turn.task.urls) * load.size_bytes
        )
        for turn in turns
    }
    return Measured(stats.with_ratios(measured, unit), len(next(iter(runs.values()))), server)


def hosts(load: Load) -> list[str]:
    """Return the loopback addresses that serve the files."""
    return [f"127.0.{7 + number // 250}.{number % 250 + 1}" for number in range(load.hosts)]


@contextmanager
def _serving(load: Load, folder: Path) -> Iterator[tuple[str, list[str], Path | None]]:
    """Serve the files; yield the server's name, the URL of each host, and the CA file if it uses TLS."""
    if load.tls:
        with serve_tls(folder / "served", hosts(load), folder / "tls") as (base_urls, ca_file):
            yield "nginx with TLS", base_urls, ca_file
    else:
        limit = load.connection_bytes_per_s
        with serve_folder(folder / "served", hosts(load), bytes_per_s=limit) as server:
            yield server.name, server.base_urls, None


def _turn(load: Load, peer: Peer, base_urls: list[str], folder: Path) -> _Turn:
    files = max(1, round(load.files * peer.share)) if load.in_parts else load.files
    urls = [f"{base_urls[number % load.hosts]}/{number}.bin" for number in range(files)]
    url_file = folder / f"{files}.txt"
    url_file.write_text("\n".join(urls) + "\n")
    task = Task(urls, url_file, folder / "out", load.hosts)
    return _Turn(peer, task, bodies.first(folder / "served", files))


def _rounds(
    load: Load, turns: Sequence[_Turn], on_progress: OnProgress, *, keep: bool
) -> dict[str, list[Run]]:
    """Run each program once in each round; return the runs by program.

    keep: True to keep the stored files. ext4 creates files at half the speed after many deletions.
    """
    runs: dict[str, list[Run]] = {turn.peer.name: [] for turn in turns}
    took_s: list[float] = []
    while len(took_s) < load.rounds and (not took_s or stats.another_fits(took_s, load.budget_s)):
        began_s = time.monotonic()
        for peer, task, served in turns:
            own = task._replace(out=task.out / f"{len(took_s)} {peer.name}")
            runs[peer.name].append(_run(peer, own, served))
            if not keep:
                shutil.rmtree(own.out)
            on_progress(f"round {len(took_s) + 1}: {peer.name} {runs[peer.name][-1].took_s:.2f} s")
        took_s.append(time.monotonic() - began_s)
    return runs


def _run(peer: Peer, task: Task, served: Counter[int]) -> Run:
    """Run the program once into its own folder and check every stored body."""
    os.sync()  # so that this run does not wait for the writes of the previous one
    task.out.mkdir()
    measured = run(peer.name, peer.command(task), task.url_file.parent, peer.environment)
    difference = peer.difference(task.out, served)
    if difference:
        raise BenchError(f"{peer.name}: {difference}")
    return measured
