"""A fleet under faults drawn from a seed: a short run of ./scripts/chaos."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.log_lines import assert_logs_registered
from tests.support.object_store import Bucket
from tools.chaos.history import Acknowledged, Attempted, FetchEnd, History
from tools.chaos.schedule import Kind

SEED = 2026
MINUTES = 0.6
MIN_FETCHES = 500
"""A run with fewer fetches would show too little."""

MIN_OBJECTS = 20

LOST = "0123456789abcdef-00000001"


def chaos(*arguments: object) -> "subprocess.CompletedProcess[str]":
    """Run `python -m tools.chaos`; return its output and exit code."""
    return subprocess.run(
        [sys.executable, "-m", "tools.chaos", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.timeout(300)
def test_i01_no_acknowledged_fetch_is_lost() -> None:
    """Every kind of fault occurs. The checker finds no breach in the history of the run."""
    run = chaos("--seed", SEED, "--minutes", MINUTES, "--keep")
    output = f"seed {SEED}:\n{run.stdout}\n{run.stderr}"
    assert 0 == run.returncode, output

    folder = Path(run.stdout.rpartition("the history and logs are in ")[2].splitlines()[0])
    record = History(folder).read()
    assert_logs_registered(folder)
    shutil.rmtree(folder)
    assert set(Kind) == {fault.kind for fault in record.faults}, output
    assert len(record.ended) >= MIN_FETCHES, output


@pytest.mark.timeout(300)
def test_i01_no_fetch_is_lost_with_an_object_store(bucket: Bucket) -> None:
    """Workers are killed while the store refuses every tenth request."""
    bucket.server.fail(f"(PUT|GET|HEAD) /{bucket.name}/", every=10)
    store = ("--store", bucket.url, "--kill-every", 1.5)
    run = chaos("--seed", SEED, "--minutes", 0.08, "--workers", 3, *store)

    assert 0 == run.returncode, f"{run.stdout}\n{run.stderr}"
    assert len(bucket.keys()) > MIN_OBJECTS


def test_a_breach_is_printed_with_exit_code_1(tmp_path: Path) -> None:
    """An acknowledged ID without a result is a breach."""
    history = History(tmp_path)
    url = "http://127.0.8.1/gone/one"
    history.add("producer", [Attempted([url]), Acknowledged([LOST], [url])])
    history.add(
        "ended", [FetchEnd("0123456789abcdef-00000000", url, "failed", "http_status", 404, None, None, 1, 0)]
    )
    run = chaos("--judge", tmp_path)

    assert (1, "") == (run.returncode, run.stderr)
    assert f"acknowledged and lost: {LOST}" in run.stdout
