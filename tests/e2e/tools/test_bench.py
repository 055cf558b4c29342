"""The benchmark: its loads, its ratios and its profile."""

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tools.bench.__main__ import NO_TLS
from tools.bench.peers import PEERS
from tools.bench.stats import is_own

ROOT = Path(__file__).parents[3]
MEASURED = {"fetchfleet", "arq + httpx by hand"}
ABSENT = {peer.name for peer in PEERS if not peer.installed}


def bench(written: Path, *arguments: str) -> Any:
    """Run the benchmark; return the JSON that it writes."""
    command = ["./scripts/bench", *arguments, f"--json={written}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert 0 == done.returncode, done.stdout + done.stderr
    return json.loads(written.read_text())


def assert_compared(figures: Mapping[str, Any], unit: str) -> None:
    """Check that every figure has a rate, and every variant of fetchfleet a ratio to each peer."""
    peers = {name for name in figures if not is_own(name)}
    for name, figure in figures.items():
        assert figure[unit] > 0
        assert figure.get("cpu_us", 1) > 0
        assert "fetchfleet_is_times" in figure or figure["times"].keys() == peers, name


def test_a_run_measures_every_load_and_names_absent_programs(tmp_path: Path) -> None:
    """The figures include the machine, the versions and a table of the ratios."""
    sizes = ["--small=40", "--many=4", "--large-mb=1", "--enqueued=500", "--rounds=1"]
    only = [f"--only={name}" for name in MEASURED]
    found = bench(tmp_path / "figures.json", "--quick", *sizes, *only)

    assert MEASURED == found["small"].keys() == found["hosts"].keys() == found["large"].keys()
    assert {"fetchfleet", "arq"} == found["enqueue"].keys()
    assert set(found["absent"]) in (ABSENT, {*ABSENT, NO_TLS})
    assert {"fetchfleet"} == found["tls"].keys() or NO_TLS in found["absent"]
    assert_compared(found["small"], "per_s")
    assert_compared(found["large"], "mb_per_s")
    assert_compared(found["enqueue"], "per_s")
    assert {"client", "straight line", "worker, httpx"} < found["layers"].keys()
    assert all(layer["cpu_us"] > 0 for layer in found["layers"].values())
    assert any("| fetchfleet | 1.00 | 1.00 |" in table for table in found["markdown"])
    assert {"cores", "command", "date"} <= found["machine"].keys()
    assert {"python", "httpx", "arq"} <= found["versions"].keys()


def test_the_profile_divides_the_time_by_room(tmp_path: Path) -> None:
    """The profile has the CPU time of all rooms and the elapsed time."""
    found = bench(tmp_path / "figures.json", "profile", "--files=300", "--engine=httpx", "--sink=files")
    [profile] = found["profile"].values()

    assert {"engine", "lane"} <= profile["cpu"].keys()
    assert profile["cpu"]["all"] > 0
    assert profile["wall"] > 0
