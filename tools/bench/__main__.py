"""Compare fetchfleet with other programs on the same task and server, by medians of several rounds."""

import json
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from fetchfleet.worker import settings
from tools.bench import enqueue as enqueue_module
from tools.bench import environment, lower_bound, report
from tools.bench.compare import Load, side_by_side
from tools.bench.peers import PEERS, SEGMENTED_PEERS
from tools.bench.process import BenchError
from tools.bench.profiler import profile as profile_module
from tools.bench.stats import BASE, MB, OWN, is_own
from tools.origin.tls_server import TLS_INSTALLED

WIDE = 120
KB = 1_000
HOSTS = 20
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
console = Console(width=None if sys.stdout.isatty() else WIDE, highlight=False)
progress = Console(stderr=True, highlight=False)

Files = Annotated[int, typer.Option(min=1, help="Number of files.")]
Rounds = Annotated[int, typer.Option(min=1, help="Runs of each program.")]
JsonTo = Annotated[
    Path | None, typer.Option("--json", help="Write the figures to this file, and the tables beside it.")
]
Disk = Annotated[bool, typer.Option("--disk", help="Store files on the disk of TMPDIR instead of in memory.")]
Only = Annotated[
    list[str] | None, typer.Option("--only", metavar="PROGRAM", help="Measure this program only; repeatable.")
]

SMALL, HOSTS_LOAD, LARGE, TLS = "small", "hosts", "large", "tls"
SEGMENTS = "segments"
NO_TLS = "nginx and openssl, for the load with TLS"
UNITS = {SMALL: "per_s", HOSTS_LOAD: "per_s", LARGE: "mb_per_s", TLS: "per_s", SEGMENTS: "mb_per_s"}
"""The unit of the rate of each load."""

FULL = {
    SMALL: Load(20_000, 10 * KB, HOSTS, 5, in_parts=True),
    HOSTS_LOAD: Load(2_000, 10 * KB, 2_000, 5, in_parts=True),
    LARGE: Load(8, 256 * MB, 1, 5),
    TLS: Load(1_000, 10 * KB, 1_000, 5, tls=True),
}
FULL_LAYERS = Load(20_000, 10 * KB, HOSTS, 5)
FULL_ENQUEUE = enqueue_module.Load(100_000, 10_000, 5)
QUICK = {
    SMALL: Load(4_000, 10 * KB, HOSTS, 5, budget_s=60, in_parts=True),
    HOSTS_LOAD: Load(500, 10 * KB, 500, 5, budget_s=25, in_parts=True),
    LARGE: Load(8, 32 * MB, 1, 5, budget_s=20),
    TLS: Load(300, 10 * KB, 300, 5, budget_s=20, tls=True),
}
QUICK_LAYERS = Load(2_000, 10 * KB, HOSTS, 3, budget_s=20)
QUICK_ENQUEUE = enqueue_module.Load(50_000, 2_000, 3)


@app.callback(invoke_without_command=True)
def bench(
    context: typer.Context,
    *,
    quick: Annotated[bool, typer.Option("--quick", help="Use smaller loads; takes three minutes.")] = False,
    rounds: Annotated[int | None, typer.Option(min=1, help="Runs of each program.")] = None,
    small: Annotated[int | None, typer.Option(min=1, help="Number of small files.")] = None,
    many: Annotated[int | None, typer.Option(min=1, help="Number of hosts with a file each.")] = None,
    large_mb: Annotated[int | None, typer.Option(min=1, help="Size of a large file, in MB.")] = None,
    enqueued: Annotated[int | None, typer.Option(min=1, help="Number of fetches to enqueue.")] = None,
    only: Only = None,
    disk: Disk = False,
    json_to: JsonTo = None,
) -> None:
    """Compare fetchfleet with other programs. Without a command, run all but profile and segments.

    Programs that are not installed are skipped and listed. BENCH_PYTHON: a Python with aiohttp and Scrapy.
    """
    if context.invoked_subcommand is not None:
        return
    loads, layers_load, enqueue_load = (
        (QUICK, QUICK_LAYERS, QUICK_ENQUEUE) if quick else (FULL, FULL_LAYERS, FULL_ENQUEUE)
    )
    overrides: dict[str, dict[str, int | None]] = {
        SMALL: {"files": small},
        HOSTS_LOAD: {"files": many, "hosts": many},
        LARGE: {"size_bytes": large_mb and large_mb * MB},
        TLS: {"files": many, "hosts": many},
    }
    with _reported(json_to) as figures:
        for name, load in loads.items():
            _compare(name, _changed(load, {"rounds": rounds, **overrides[name]}), figures, only, disk=disk)
        by_load = {name: figures[name] for name in UNITS if name in figures}
        _show(report.summary(by_load, UNITS, BASE if BASE in figures[SMALL] else OWN), figures)
        _layers(_changed(layers_load, {"rounds": rounds, "files": small}), figures, disk=disk)
        _show(report.targets({**by_load, "layers": figures["layers"]}), figures)
        count = enqueued or enqueue_load.fetches
        jobs = min(enqueue_load.jobs, count)
        _enqueue(enqueue_module.Load(count, jobs, rounds or enqueue_load.rounds), figures)


@app.command()
def small(
    files: Files = 20_000,
    kb: int = 10,
    rounds: Rounds = 5,
    *,
    only: Only = None,
    disk: Disk = False,
    json_to: JsonTo = None,
) -> None:
    """Fetch small files from 20 hosts; report fetches/s and CPU time of the whole command."""
    with _reported(json_to) as figures:
        _compare(SMALL, Load(files, kb * KB, HOSTS, rounds, in_parts=True), figures, only, disk=disk)


@app.command()
def hosts(
    files: Files = 2_000,
    kb: int = 10,
    rounds: Rounds = 5,
    *,
    only: Only = None,
    disk: Disk = False,
    json_to: JsonTo = None,
) -> None:
    """Fetch one small file from each of many hosts; report fetches/s and CPU time of the whole command."""
    with _reported(json_to) as figures:
        _compare(HOSTS_LOAD, Load(files, kb * KB, files, rounds, in_parts=True), figures, only, disk=disk)


@app.command()
def tls(
    files: Files = 1_000, rounds: Rounds = 5, *, only: Only = None, disk: Disk = False, json_to: JsonTo = None
) -> None:
    """Fetch one small file over TLS from each of many hosts, with certificates verified."""
    with _reported(json_to) as figures:
        _compare(TLS, Load(files, 10 * KB, files, rounds, tls=True), figures, only, disk=disk)


@app.command()
def bodies(
    files: Files = 8,
    mb: Annotated[int, typer.Option(min=1, help="Size of each, in MB.")] = 256,
    rounds: Rounds = 5,
    *,
    only: Only = None,
    disk: Disk = False,
    json_to: JsonTo = None,
) -> None:
    """Fetch large bodies over loopback; report MB/s of the whole command, its CPU time and peak memory."""
    with _reported(json_to) as figures:
        _compare(LARGE, Load(files, mb * MB, 1, rounds), figures, only, disk=disk)


@app.command()
def segments(
    mb: Annotated[int, typer.Option(min=1, help="Size of the file, in MB.")] = 256,
    mb_per_s: Annotated[int, typer.Option(min=1, help="Limit of each connection.")] = 20,
    rounds: Rounds = 5,
    *,
    only: Only = None,
    disk: Disk = False,
    json_to: JsonTo = None,
) -> None:
    """Fetch one large body from a host that limits each connection, on one connection and on several."""
    load = Load(1, mb * MB, 1, rounds, connection_bytes_per_s=mb_per_s * MB)
    with _reported(json_to) as figures:
        _compare(SEGMENTS, load, figures, only, disk=disk)


@app.command()
def layers(files: Files = 20_000, rounds: Rounds = 5, *, disk: Disk = False, json_to: JsonTo = None) -> None:
    """Measure the CPU time of a fetch at each layer, from loopback and file to the worker."""
    with _reported(json_to) as figures:
        _layers(Load(files, 10 * KB, HOSTS, rounds), figures, disk=disk)


@app.command()
def enqueue(
    fetches: Annotated[int, typer.Option(min=1)] = 100_000,
    jobs: Annotated[int, typer.Option(min=1, help="Number of arq jobs.")] = 10_000,
    rounds: Rounds = 5,
    json_to: JsonTo = None,
) -> None:
    """Measure the fetches/s that one producer enqueues with Fleet.submit, and with arq's enqueue_job."""
    with _reported(json_to) as figures:
        _enqueue(enqueue_module.Load(fetches, jobs, rounds), figures)


@app.command()
def profile(
    files: Files = 5_000,
    engine: Annotated[list[str] | None, typer.Option(help="Engine to profile; repeatable.")] = None,
    sink: Annotated[list[str] | None, typer.Option(help="Sink to profile; repeatable.")] = None,
    *,
    disk: Disk = False,
    json_to: JsonTo = None,
) -> None:
    """Profile one worker: the CPU time of a fetch by subsystem, in µs. Default: each engine and sink."""
    load = Load(files, 10 * KB, HOSTS, 1)
    with _reported(json_to) as figures:
        figures["profile"] = {
            f"{engine_name}, {sink_name}": profile_module.profile(load, engine_name, sink_name, disk=disk)
            for engine_name in engine or settings.ENGINES
            for sink_name in sink or settings.SINKS
        }
        title = f"{files:,} files of 10 KB from {HOSTS} hosts, {_place(disk=disk)}, µs of CPU a fetch"
        _show(report.where(figures["profile"], title), figures)


@contextmanager
def _reported(json_to: Path | None) -> Iterator[dict[str, Any]]:
    """Yield the figures to fill; write them, and list programs that are not installed.

    Exits with 1 if a program failed its task.
    """
    absent = [peer.name for peer in PEERS if not peer.installed]
    began_s = time.monotonic()
    figures: dict[str, Any] = {
        "absent": absent,
        "machine": environment.machine(),
        "versions": environment.versions(),
    }
    try:
        yield figures
    except BenchError as error:
        console.print(str(error), style="red", markup=False)
        raise typer.Exit(1) from None
    if absent:
        console.print(f"not installed: {'; '.join(absent)}")
    figures["took_s"] = round(time.monotonic() - began_s, 1)
    if json_to is not None:
        json_to.write_text(json.dumps(figures, indent=2) + "\n")
        json_to.with_suffix(".md").write_text("\n".join(figures.get("markdown", [])))


def _changed(load: Load, overrides: Mapping[str, int | None]) -> Load:
    """Return the load with the fields that are set in `overrides`."""
    fields: dict[str, Any] = {name: value for name, value in overrides.items() if value}
    return load._replace(**fields)


def _compare(name: str, load: Load, figures: dict[str, Any], only: list[str] | None, *, disk: bool) -> None:
    """Measure a load and show its table. only: names of programs to measure, all if empty."""
    if load.tls and not TLS_INSTALLED:
        figures["absent"].append(NO_TLS)
        return
    known = SEGMENTED_PEERS if load.connection_bytes_per_s else PEERS
    peers = [peer for peer in known if peer.installed and (not only or peer.name in only)]
    if load.tls:  # SSL_CERT_FILE configures only these programs
        peers = [peer for peer in peers if is_own(peer.name) or peer.name == BASE]
    if not peers:
        names = "; ".join(peer.name for peer in known if peer.installed)
        raise BenchError(f"--only must name a program that is installed and runs this load: {names}")
    unit = UNITS[name]
    measured = side_by_side(load, peers, unit, _report_progress, disk=disk)
    figures[name] = measured.figures
    figures["server"] = measured.server
    figures.setdefault("rounds", {})[name] = measured.rounds
    size = f"{load.size_bytes // MB} MB" if load.size_bytes >= MB else f"{load.size_bytes // KB} KB"
    hosts = f"{load.hosts:,} hosts" if load.hosts > 1 else "one host"
    setup = f"{measured.server}, {_place(disk=disk)}, median of {measured.rounds}"
    title = f"{load.files:,} files of {size} from {hosts}, {setup}"
    _show(report.files(measured.figures, unit, title), figures)


def _layers(load: Load, figures: dict[str, Any], *, disk: bool) -> None:
    figures["layers"], rounds = lower_bound.measure(load, _report_progress, disk=disk)
    figures.setdefault("rounds", {})["layers"] = rounds
    size = f"{load.files:,} files of {load.size_bytes // KB} KB from {load.hosts} hosts"
    _show(report.layers(figures["layers"], f"{size}, {_place(disk=disk)}, median of {rounds}"), figures)


def _place(*, disk: bool) -> str:
    return "to disk" if disk else "to memory"


def _enqueue(load: enqueue_module.Load, figures: dict[str, Any]) -> None:
    figures["enqueue"] = enqueue_module.measure(load, _report_progress)
    figures.setdefault("rounds", {})["enqueue"] = load.rounds
    title = f"{load.fetches:,} fetches, {load.jobs:,} arq jobs, median of {load.rounds}"
    _show(report.rates(figures["enqueue"], title), figures)


def _show(sheet: report.Sheet, figures: dict[str, Any]) -> None:
    console.print(sheet.rich)
    figures.setdefault("markdown", []).append(sheet.markdown)


def _report_progress(line: str) -> None:
    progress.print(line, style="dim", markup=False)


if __name__ == "__main__":
    app()
