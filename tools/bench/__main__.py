"""Compare fetchfleet with other programs: the same task and server, medians of several rounds."""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from tools.bench import enqueue as enqueue_module
from tools.bench import environment, report
from tools.bench.compare import Load, Measured, side_by_side
from tools.bench.peers import PEERS
from tools.bench.process import BenchError
from tools.bench.profiler import profile as profile_module
from tools.bench.stats import MB

WIDE = 120
KB = 1_000
HOSTS = 20
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
console = Console(width=None if sys.stdout.isatty() else WIDE, highlight=False)
progress = Console(stderr=True, highlight=False)

Files = Annotated[int, typer.Option(min=1, help="Number of files.")]
Rounds = Annotated[int, typer.Option(min=1, help="Runs of each program.")]
JsonTo = Annotated[Path | None, typer.Option("--json", help="Write the figures to this file.")]

FULL = {
    "small": Load(10_000, 10 * KB, HOSTS, 5),
    "large": Load(8, 256 * MB, 1, 5),
}
FULL_ENQUEUE = enqueue_module.Load(100_000, 10_000, 5)
QUICK = {
    "small": Load(2_000, 10 * KB, HOSTS, 5, budget_s=80),
    "large": Load(8, 64 * MB, 1, 5, budget_s=60),
}
QUICK_ENQUEUE = enqueue_module.Load(50_000, 2_000, 3)


@app.callback(invoke_without_command=True)
def bench(
    context: typer.Context,
    *,
    quick: Annotated[bool, typer.Option("--quick", help="Use smaller loads: under three minutes.")] = False,
    rounds: Annotated[int | None, typer.Option(min=1, help="Runs of each program.")] = None,
    small: Annotated[int | None, typer.Option(min=1, help="Number of small files.")] = None,
    large_mb: Annotated[int | None, typer.Option(min=1, help="Size of a large file, in MB.")] = None,
    enqueued: Annotated[int | None, typer.Option(min=1, help="Number of fetches to enqueue.")] = None,
    json_to: JsonTo = None,
) -> None:
    """Compare fetchfleet with other programs. Without a command: small, large and enqueue.

    Programs that are not installed are listed. BENCH_PYTHON names a Python that has aiohttp and Scrapy.
    """
    if context.invoked_subcommand is not None:
        return
    loads, enqueue = (QUICK, QUICK_ENQUEUE) if quick else (FULL, FULL_ENQUEUE)
    of_small, of_large = loads["small"], loads["large"]
    of_small = of_small._replace(files=small or of_small.files, rounds=rounds or of_small.rounds)
    size_bytes = large_mb * MB if large_mb else of_large.size_bytes
    of_large = of_large._replace(size_bytes=size_bytes, rounds=rounds or of_large.rounds)
    count = enqueued or enqueue.fetches
    enqueue = enqueue_module.Load(count, min(enqueue.jobs, count), rounds or enqueue.rounds)
    with _reported(json_to) as found:
        _small(of_small, found, "small")
        _large(of_large, found, "large")
        _enqueue(enqueue, found)


@app.command()
def small(files: Files = 10_000, kb: int = 10, rounds: Rounds = 5, json_to: JsonTo = None) -> None:
    """Fetch small files from 20 hosts to disk; report fetches/s of the whole command."""
    with _reported(json_to) as found:
        _small(Load(files, kb * KB, HOSTS, rounds), found, "small")


@app.command()
def hosts(files: Files = 2_000, kb: int = 10, rounds: Rounds = 5, json_to: JsonTo = None) -> None:
    """Fetch one small file from each of many hosts; report fetches/s of the whole command."""
    with _reported(json_to) as found:
        _small(Load(files, kb * KB, files, rounds), found, "hosts")


@app.command()
def bodies(
    files: Files = 8,
    mb: Annotated[int, typer.Option(min=1, help="Size of each, in MB.")] = 256,
    rounds: Rounds = 3,
    json_to: JsonTo = None,
) -> None:
    """Fetch large bodies over loopback to disk; report MB/s of the whole command and its peak memory."""
    with _reported(json_to) as found:
        _large(Load(files, mb * MB, 1, rounds), found, "bodies")


@app.command()
def enqueue(
    fetches: Annotated[int, typer.Option(min=1)] = 100_000,
    jobs: Annotated[int, typer.Option(min=1, help="Number of arq jobs.")] = 10_000,
    rounds: Rounds = 5,
    json_to: JsonTo = None,
) -> None:
    """Measure enqueued fetches/s of one producer: Fleet.submit, and arq's enqueue_job one by one."""
    with _reported(json_to) as found:
        _enqueue(enqueue_module.Load(fetches, jobs, rounds), found)


@app.command()
def profile(files: Files = 5_000, engine: str = "httpx", sink: str = "files", json_to: JsonTo = None) -> None:
    """Profile one worker: CPU time of a fetch by subsystem, in µs."""
    with _reported(json_to) as found:
        of = profile_module.profile(Load(files, 10 * KB, HOSTS, 1), engine, sink)
        found["profile"] = {f"{engine}, {sink}": of}
        _show(report.where(of, f"{files:,} of 10 KB over {HOSTS} hosts, {engine}, {sink}"), found)


@contextmanager
def _reported(json_to: Path | None) -> Iterator[dict[str, Any]]:
    """Write the figures and list absent programs; exit 1 if a program failed its task."""
    absent = [peer.name for peer in PEERS if not peer.there]
    began_s = time.monotonic()
    found: dict[str, Any] = {
        "absent": absent,
        "machine": environment.machine(),
        "versions": environment.versions(),
    }
    try:
        yield found
    except BenchError as error:
        console.print(str(error), style="red", markup=False)
        raise typer.Exit(1) from None
    if absent:
        console.print(f"not installed: {'; '.join(absent)}")
    found["took_s"] = round(time.monotonic() - began_s, 1)
    if json_to is not None:
        json_to.write_text(json.dumps(found, indent=2) + "\n")


def _small(load: Load, found: dict[str, Any], name: str) -> None:
    measured = _measured(load, "per_s")
    _note(measured, found, name)
    title = f"{load.files:,} of {load.size_bytes // KB} KB over {load.hosts:,} hosts from {measured.server}"
    _show(report.files(measured.found, "per_s", f"{title}, median of {measured.rounds}"), found)


def _large(load: Load, found: dict[str, Any], name: str) -> None:
    measured = _measured(load, "mb_per_s")
    _note(measured, found, name)
    title = f"{load.files} of {load.size_bytes // MB} MB from {measured.server}"
    _show(report.files(measured.found, "mb_per_s", f"{title}, median of {measured.rounds}"), found)


def _note(measured: Measured, found: dict[str, Any], name: str) -> None:
    found[name] = measured.found
    found["server"] = measured.server
    found.setdefault("rounds", {})[name] = measured.rounds


def _measured(load: Load, unit: str) -> Measured:
    return side_by_side(load, [peer for peer in PEERS if peer.there], unit, _report_progress)


def _enqueue(load: enqueue_module.Load, found: dict[str, Any]) -> None:
    found["enqueue"] = enqueue_module.measure(load, _report_progress)
    found.setdefault("rounds", {})["enqueue"] = load.rounds
    title = f"{load.fetches:,} fetches, {load.jobs:,} of arq's jobs, median of {load.rounds}"
    _show(report.rates(found["enqueue"], title), found)


def _show(sheet: report.Sheet, found: dict[str, Any]) -> None:
    console.print(sheet.rich)
    found.setdefault("markdown", []).append(sheet.markdown)


def _report_progress(line: str) -> None:
    progress.print(line, style="dim", markup=False)


if __name__ == "__main__":
    app()
