"""Peers side by side: the same task from the same server, in turn, several rounds, medians and ratios."""

import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from scripts.measure import figures, peers
from scripts.measure.figures import Run
from scripts.measure.peers import PEERS, Peer, Task
from scripts.measure.running import BenchError, run
from tests.support.static_server import serve_folder

WIDE = 120
BLOCK_BYTES = 16 << 20
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
console = Console(width=None if sys.stdout.isatty() else WIDE, highlight=False)


@app.callback()
def bench() -> None:
    """Peers side by side; what is not installed is named as absent."""


@app.command()
def bodies(
    files: Annotated[int, typer.Option(min=1, help="How many files.")] = 8,
    mb: Annotated[int, typer.Option(min=1, help="How large each is, in millions of bytes.")] = 256,
    rounds: Annotated[int, typer.Option(min=1, help="How often each has its turn.")] = 3,
    json_to: Annotated[Path | None, typer.Option("--json", help="Write the figures there.")] = None,
) -> None:
    """Large bodies from a server on loopback to disk: MB/s of the whole command, and its peak memory."""
    there = [peer for peer in PEERS if peer.there]
    with tempfile.TemporaryDirectory(prefix="ff-bench-") as folder:
        try:
            found, server = _bodies(Path(folder), there, files, mb * figures.MB, rounds)
        except BenchError as error:
            console.print(str(error), style="red", markup=False)
            raise typer.Exit(1) from None
    absent = [peer.name for peer in PEERS if not peer.there]
    title = f"{files} of {mb} MB from {server}, {peers.AT_ONCE} at once, median of {rounds}"
    console.print(_table(found, title))
    if absent:
        console.print(f"not installed: {', '.join(absent)}")
    if json_to is not None:
        written = {"bodies": found, "absent": absent, "server": server, "machine": platform.platform()}
        json_to.write_text(json.dumps(written, indent=2) + "\n")


def _bodies(
    folder: Path, there: list[Peer], files: int, size_bytes: int, rounds: int
) -> tuple[dict[str, Any], str]:
    """The figures of each, and the server's name."""
    served = folder / "served"
    served.mkdir()
    for number in range(files):
        _write(served / f"{number}.bin", size_bytes)
    runs: dict[str, list[Run]] = {peer.name: [] for peer in there}
    with serve_folder(served, ["127.0.7.1"]) as server:
        urls = [f"{server.base_urls[0]}/{number}.bin" for number in range(files)]
        listed = folder / "urls.txt"
        listed.write_text("\n".join(urls) + "\n")
        for _ in range(rounds):
            for peer in there:
                task = Task(urls, listed, folder / "out")
                runs[peer.name].append(_turn(peer, task, files * size_bytes))
    measured = {name: figures.of_bodies(own, files * size_bytes) for name, own in runs.items()}
    return figures.with_ratios(measured, "fetchfleet", "mb_per_s"), server.name


def _write(file: Path, size_bytes: int) -> None:
    """Real bytes, the same ones again and again: what is sparse, or packs well, is no body as they come."""
    block = os.urandom(min(BLOCK_BYTES, size_bytes))
    with file.open("wb") as served:
        for at in range(0, size_bytes, len(block)):
            served.write(block[: size_bytes - at])


def _turn(peer: Peer, task: Task, wanted_bytes: int) -> Run:
    """One run, after which all the bytes must be there; then they go."""
    task.out.mkdir()
    try:
        done = run(peer.name, peer.command(task), task.out.parent)
        found = sum(path.stat().st_size for path in task.out.rglob("*") if path.is_file() and _is_body(path))
        if found != wanted_bytes:
            raise BenchError(f"{peer.name} stored {found:,} of {wanted_bytes:,} bytes")
        return done
    finally:
        shutil.rmtree(task.out)


def _is_body(path: Path) -> bool:
    return ".fetchfleet" not in path.parts


def _table(found: Mapping[str, Mapping[str, float]], title: str) -> Table:
    table = Table(title=title)
    table.add_column("")
    for name in ("MB/s", "peak RSS, MB: all processes", "the largest", "fetchfleet is … times as fast"):
        table.add_column(name, justify="right")
    for name, figure in found.items():
        ratio = figure.get("fetchfleet_is_times")
        shown = [f"{figure[unit]:.0f}" for unit in ("mb_per_s", "peak_rss_mb", "largest_rss_mb")]
        table.add_row(name, *shown, f"{ratio:.2f}" if ratio else "")
    return table


if __name__ == "__main__":
    app()
