"""The bench runs, and its figures are of bytes that came."""

import json
import subprocess
from pathlib import Path

from scripts.measure.peers import PEERS

ROOT = Path(__file__).parents[2]


def test_the_bench_of_bodies_measures_all_that_is_installed(tmp_path: Path) -> None:
    """A small task; who is not there is named."""
    written = tmp_path / "figures.json"
    command = ["./scripts/bench", "bodies", "--files=2", "--mb=1", "--rounds=1", f"--json={written}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert 0 == done.returncode, done.stdout + done.stderr
    found = json.loads(written.read_text())
    there = {peer.name for peer in PEERS if peer.there}

    assert there == found["bodies"].keys()
    assert {peer.name for peer in PEERS} - there == set(found["absent"])
    assert all(figure["mb_per_s"] > 0 for figure in found["bodies"].values())
    others = [figure for name, figure in found["bodies"].items() if name != "fetchfleet"]
    assert all("fetchfleet_is_times" in figure for figure in others)
