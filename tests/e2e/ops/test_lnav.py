"""The format file of lnav, with lnav and the log of a real worker."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from fetchfleet import Fleet
from tests.support.monitoring import MONITORING, SCHEMAS
from tests.support.named_workers import named_workers
from tools.origin import behaviours as o
from tools.origin.server import Origin

HOST = "127.0.0.162"
FORMAT = MONITORING / "fetchfleet.lnav.json"
QUERY = """;SELECT event, lane, outcome, reason, status, log_level, total_ms >= 0 AS timed
    FROM fetchfleet_log WHERE event = 'fetch.finished' ORDER BY status"""


def test_every_field_of_the_format_exists() -> None:
    """In the schema of some event, with a number where the format has one."""
    fields = json.loads(FORMAT.read_text())["fetchfleet_log"]["value"]
    known = {name for schema in SCHEMAS.values() for name in schema["properties"]}

    assert set() == fields.keys() - known


@pytest.mark.skipif(shutil.which("lnav") is None, reason="lnav is not installed")
async def test_lnav_reads_the_log_of_a_worker(redis_url: str, fleet: Fleet, tmp_path: Path) -> None:
    """Every line, with its level; fields can be queried in SQL."""
    async with Origin.serving(HOST, o.by_path({"/missing": o.status(404)}, o.OK)) as origin:
        with named_workers(redis_url, tmp_path / "fleet") as workers:
            [one] = await workers.start_all("one")
            batch = await fleet.submit([origin.url("/missing"), origin.url("/found")])
            assert len([result async for result in batch.results()]) == 2
            assert await one.terminated() == 0
    log = tmp_path / "fleet" / "one.log"

    def lnav(*arguments: str) -> str:
        variables = {**os.environ, "HOME": str(tmp_path), "TERM": "xterm"}
        ended = subprocess.run(
            ["lnav", *arguments], env=variables, capture_output=True, text=True, timeout=60, check=False
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout

    lnav("-i", str(FORMAT))
    found = json.loads(lnav("-n", "-c", QUERY, "-c", ":write-json-to -", str(log)))
    lines = json.loads(
        lnav("-n", "-c", ";SELECT count(*) AS n FROM fetchfleet_log", "-c", ":write-json-to -", str(log))
    )

    common = {"event": "fetch.finished", "lane": HOST, "log_level": "info", "timed": 1}
    assert found == [
        {**common, "outcome": "stored", "reason": None, "status": 200},
        {**common, "outcome": "failed", "reason": "http_status", "status": 404},
    ]
    assert lines == [{"n": len(log.read_text().splitlines())}]
