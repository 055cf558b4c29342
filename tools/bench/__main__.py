"""Compare fetchfleet with other programs: the same task and server, medians of several rounds."""

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
from tools.bench.peers import PEERS
from tools.bench.process import BenchError
from tools.bench.profiler import profile as profile_module
from tools.bench.stats import BASE, MB, OWN, is_own
from tools.origin.tls_server import THERE as TLS_THERE

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
Disk = Annotated[bool, typer.Option("--disk", help="Files on the disk of TMPDIR, instead of in memory.")]
Only = Annotated[list[str] | None, typer.Option("--only", metavar="PROGRAM", help="Measure it; repeatable.")]

SMALL, HOSTS_LOAD, LARGE, TLS = "small", "hosts", "large", "tls"
NO_TLS = "nginx and openssl, for the load with TLS"
UNITS = {SMALL: "per_s", HOSTS_LOAD: "per_s", LARGE: "mb_per_s", TLS: "per_s"}
"""The loads, each with the rate that counts."""

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
    quick: Annotated[bool, typer.Option("--quick", help="Use smaller loads: under three minutes.")] = False,
    rounds: Annotated[int | None, typer.Option(min=1, help="Runs of each program.")] = None,
    small: Annotated[int | None, typer.Option(min=1, help="Number of small files.")] = None,
    many: Annotated[int | None, typer.Option(min=1, help="Number of hosts with a file each.")] = None,
    large_mb: Annotated[int | None, typer.Option(min=1, help="Size of a large file, in MB.")] = None,
    enqueued: Annotated[int | None, typer.Option(min=1, help="Number of fetches to enqueue.")] = None,
    only: Only = None,
    disk: Disk = False,
    json_to: JsonTo = None,
) -> None:
    """Compare fetchfleet with other programs. Without a command: all but profile.

    Programs that are not installed are listed. BENCH_PYTHON names a Python that has aiohttp and Scrapy.
    """
    if context.invoked_subcommand is not None:
        return
    loads, of_layers, enqueue = (
        (QUICK, QUICK_LAYERS, QUICK_ENQUEUE) if quick else (FULL, FULL_LAYERS, FULL_ENQUEUE)
    )
    given: dict[str, dict[str, int | None]] = {
        SMALL: {"files": small},
        HOSTS_LOAD: {"files": many, "hosts": many},
        LARGE: {"size_bytes": large_mb and large_mb * MB},
        TLS: {"files": many, "hosts": many},
    }
    with _reported(json_to) as found:
        for name, load in loads.items():
            _compare(name, _changed(load, {"rounds": rounds, **given[name]}), found, only, disk=disk)
        of_all = {name: found[name] for name in UNITS if name in found}
        _show(report.summary(of_all, UNITS, BASE if BASE in found[SMALL] else OWN), found)
        _layers(_changed(of_layers, {"rounds": rounds, "files": small}), found, disk=disk)
        _show(report.targets({**of_all, "layers": found["layers"]}), found)
        count = enqueued or enqueue.fetches
        _enqueue(enqueue_module.Load(count, min(enqueue.jobs, count), rounds or enqueue.rounds), found)


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
    with _reported(json_to) as found:
        _compare(SMALL, Load(files, kb * KB, HOSTS, rounds, in_parts=True), found, only, disk=disk)


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
    with _reported(json_to) as found:
        _compare(HOSTS_LOAD, Load(files, kb * KB, files, rounds, in_parts=True), found, only, disk=disk)


@app.command()
def tls(
    files: Files = 1_000, rounds: Rounds = 5, *, only: Only = None, disk: Disk = False, json_to: JsonTo = None
) -> None:
    """Fetch one small file over TLS from each of many hosts: a handshake each, certificates verified."""
    with _reported(json_to) as found:
        _compare(TLS, Load(files, 10 * KB, files, rounds, tls=True), found, only, disk=disk)


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
    with _reported(json_to) as found:
        _compare(LARGE, Load(files, mb * MB, 1, rounds), found, only, disk=disk)


@app.command()
def layers(files: Files = 20_000, rounds: Rounds = 5, *, disk: Disk = False, json_to: JsonTo = None) -> None:
    """Measure the CPU time of a fetch at each layer: loopback, file, HTTP client, straight line, worker."""
    with _reported(json_to) as found:
        _layers(Load(files, 10 * KB, HOSTS, rounds), found, disk=disk)


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
def profile(
    files: Files = 5_000,
    engine: Annotated[list[str] | None, typer.Option(help="One of the engines; repeatable.")] = None,
    sink: Annotated[list[str] | None, typer.Option(help="One of the sinks; repeatable.")] = None,
    *,
    disk: Disk = False,
    json_to: JsonTo = None,
) -> None:
    """Profile one worker: CPU time of a fetch by subsystem, in µs. Without options: each engine and sink."""
    load = Load(files, 10 * KB, HOSTS, 1)
    with _reported(json_to) as found:
        found["profile"] = {
            f"{name}, {where}": profile_module.profile(load, name, where, disk=disk)
            for name in engine or settings.ENGINES
            for where in sink or settings.SINKS
        }
        title = f"{files:,} of 10 KB over {HOSTS} hosts, {_place(disk=disk)}, µs of CPU a fetch"
        _show(report.where(found["profile"], title), found)


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
        json_to.with_suffix(".md").write_text("\n".join(found.get("markdown", [])))


def _changed(load: Load, given: Mapping[str, int | None]) -> Load:
    """Return the load with the fields that are given."""
    fields: dict[str, Any] = {name: value for name, value in given.items() if value}
    return load._replace(**fields)


def _compare(name: str, load: Load, found: dict[str, Any], only: list[str] | None, *, disk: bool) -> None:
    """Measure a load and show its table. only: the programs to measure; all if empty."""
    if load.tls and not TLS_THERE:
        found["absent"].append(NO_TLS)
        return
    peers = [peer for peer in PEERS if peer.there and (not only or peer.name in only)]
    if load.tls:  # the others find the CA in other ways
        peers = [peer for peer in peers if is_own(peer.name) or peer.name == BASE]
    if not peers:
        names = "; ".join(peer.name for peer in PEERS if peer.there)
        raise BenchError(f"--only names no program that can be measured here: {names}")
    unit = UNITS[name]
    measured = side_by_side(load, peers, unit, _report_progress, disk=disk)
    found[name] = measured.found
    found["server"] = measured.server
    found.setdefault("rounds", {})[name] = measured.rounds
    size = f"{load.size_bytes // MB} MB" if load.size_bytes >= MB else f"{load.size_bytes // KB} KB"
    over = f"{load.hosts:,} hosts" if load.hosts > 1 else "one host"
    how = f"{measured.server}, {_place(disk=disk)}, median of {measured.rounds}"
    title = f"{load.files:,} of {size} from {over}, {how}"
    _show(report.files(measured.found, unit, title), found)


def _layers(load: Load, found: dict[str, Any], *, disk: bool) -> None:
    found["layers"], rounds = lower_bound.measure(load, _report_progress, disk=disk)
    found.setdefault("rounds", {})["layers"] = rounds
    size = f"{load.files:,} of {load.size_bytes // KB} KB over {load.hosts} hosts"
    _show(report.layers(found["layers"], f"{size}, {_place(disk=disk)}, median of {rounds}"), found)


def _place(*, disk: bool) -> str:
    return "to disk" if disk else "to memory"


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
