"""Measure the CPU time of a fetch at each layer, from the kernel to the worker."""

import json
import shutil
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from fetchfleet.worker.local.embedded_redis import EmbeddedRedis
from fetchfleet.worker.settings import ENGINES
from tools.bench import bodies, stats
from tools.bench.compare import Load, OnProgress, hosts
from tools.bench.contenders.straight_line import LAYERS
from tools.bench.environment import workspace
from tools.bench.process import BenchError
from tools.bench.stats import STRAIGHT_LINE, Run
from tools.origin.static_server import serve_folder

WITHOUT_REDIS = LAYERS[:-1]
PROGRAMS = "tools.bench.contenders"


def measure(load: Load, on_progress: OnProgress, *, disk: bool = False) -> tuple[dict[str, Any], int]:
    """Return the figures of each layer and of a worker with each engine, and the number of rounds."""
    programs = {layer: ("straight_line", layer) for layer in LAYERS}
    programs |= {f"worker, {engine}": ("worker", engine) for engine in ENGINES}
    runs: dict[str, list[Run]] = {name: [] for name in programs}
    with workspace(disk=disk) as folder:
        bodies.make(folder / "served", load.files, load.size_bytes)
        with serve_folder(folder / "served", hosts(load)) as server:
            urls = [f"{server.base_urls[number % load.hosts]}/{number}.bin" for number in range(load.files)]
            (folder / "urls.txt").write_text("\n".join(urls) + "\n")
            took_s: list[float] = []
            while len(took_s) < load.rounds and (not took_s or stats.another_fits(took_s, load.budget_s)):
                began_s = time.monotonic()
                for name, (program, argument) in programs.items():
                    runs[name].append(_run(folder, program, argument))
                    used_us = runs[name][-1].cpu_s / load.files * 1e6
                    on_progress(f"round {len(took_s) + 1}: {name} {used_us:.0f} µs")
                took_s.append(time.monotonic() - began_s)
    figures: dict[str, Any] = {
        name: stats.of_files(own, load.files, load.files * load.size_bytes) for name, own in runs.items()
    }
    for name, times in stats.beside(figures, "cpu_us", STRAIGHT_LINE).items():
        figures[name]["times_straight_line"] = round(times, 2)
    return figures, len(next(iter(runs.values())))


def _run(folder: Path, program: str, argument: str) -> Run:
    """Run a program once, with a new out folder, and with a new Redis if it needs one."""
    out = folder / "out"
    out.mkdir()
    with EmbeddedRedis(folder / "redis") if argument not in WITHOUT_REDIS else nullcontext() as redis:
        socket = unquote(redis.url.removeprefix("unix://")) if redis else ""
        command = [sys.executable, "-m", f"{PROGRAMS}.{program}", argument, str(folder / "urls.txt")]
        done = subprocess.run([*command, str(out), socket], capture_output=True, text=True, check=False)
    shutil.rmtree(out)
    shutil.rmtree(folder / "redis", ignore_errors=True)
    if done.returncode != 0:
        raise BenchError(f"{program} {argument} exited with {done.returncode}: {done.stderr[-500:]}")
    printed = json.loads(done.stdout)
    return Run(printed["took_s"], [0], printed["cpu_s"])
