"""The bench runs, and its figures are of bytes that came."""

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tools.bench.peers import PEERS
from tools.bench.stats import is_own

ROOT = Path(__file__).parents[3]
THERE = {peer.name for peer in PEERS if peer.there}
ABSENT = {peer.name for peer in PEERS} - THERE


def bench(written: Path, *arguments: str) -> Any:
    """What the bench writes of a run that ends well."""
    command = ["./scripts/bench", *arguments, f"--json={written}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert 0 == done.returncode, done.stdout + done.stderr
    return json.loads(written.read_text())


def assert_compared(figures: Mapping[str, Any], unit: str) -> None:
    """Every figure has its rate, each peer its ratio, each way to run fetchfleet those to all peers."""
    peers = {name for name in figures if not is_own(name)}
    for name, figure in figures.items():
        assert figure[unit] > 0
        assert "fetchfleet_is_times" in figure or figure["times"].keys() == peers, name


def test_all_of_it_measures_whoever_is_there_and_names_who_is_not(tmp_path: Path) -> None:
    """Small files, large ones and enqueueing, in one run, with what it was measured on."""
    sizes = ["--small=40", "--large-mb=1", "--enqueued=500", "--rounds=1"]
    found = bench(tmp_path / "figures.json", "--quick", *sizes)

    assert THERE == found["small"].keys() == found["large"].keys()
    assert {"fetchfleet", "arq"} == found["enqueue"].keys()
    assert ABSENT == set(found["absent"])
    assert_compared(found["small"], "per_s")
    assert_compared(found["large"], "mb_per_s")
    assert_compared(found["enqueue"], "per_s")
    assert {"cores", "command", "date"} <= found["machine"].keys()
    assert {"python", "httpx", "arq"} <= found["versions"].keys()


def test_the_profile_says_where_the_time_goes(tmp_path: Path) -> None:
    """By room, and beside the worker: what its Redis took, and the clock."""
    found = bench(tmp_path / "figures.json", "profile", "--files=300")
    [profile] = found["profile"].values()

    assert {"engine", "lane"} <= profile["cpu"].keys()
    assert profile["cpu"]["all"] > 0
    assert profile["wall"] > 0
