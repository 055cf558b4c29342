"""The demo: ./scripts/demo."""

import json
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_the_demo_exits_0_although_some_of_its_fetches_fail(tmp_path: Path) -> None:
    """Some of its hosts fail on purpose. The output names the folder of the files."""
    ended = subprocess.run(
        [ROOT / "scripts" / "demo", tmp_path / "demo"],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    lines = (tmp_path / "demo" / "results.jsonl").read_text().splitlines()
    outcomes = [json.loads(line)["outcome"] for line in lines]

    assert 0 == ended.returncode, ended.stdout + ended.stderr
    assert len(outcomes) > 2900
    assert {"stored", "failed"} == set(outcomes)
    assert "requests recorded by the hosts" in ended.stdout
    assert f"bodies, results and logs are in {tmp_path / 'demo'}" in ended.stdout
