"""Bodies in an object store, with processes: a run to its end, and workers that are killed."""

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from fetchfleet import Fetch, Fleet, Outcome
from tests.support.object_store import Bucket
from tests.support.range_server import RangedBody, body_of
from tests.support.waiting import wait_until
from tests.support.workers import fetchfleet, peak_memory_bytes, workers
from tools.one_worker import results_of
from tools.origin.behaviours import by_path, ok
from tools.origin.server import Origin

SMALL, LARGE = b"small", body_of(1_000_000) * 70
"""LARGE is uploaded in parts."""


async def run(*arguments: str | Path, **environment: str) -> Any:
    """Run the command in a thread, so that the loop can serve the origin."""
    return await asyncio.to_thread(fetchfleet, *arguments, **environment)


async def test_a_run_stores_its_bodies_in_a_bucket(bucket: Bucket, tmp_path: Path) -> None:
    """Small and large ones, with one command. The spool keeps none."""
    (tmp_path / "spool").mkdir()
    behaviour = by_path({"/large": ok(LARGE), "/small": ok(SMALL)})
    async with Origin.serving("127.0.0.192", behaviour) as origin:
        (tmp_path / "list").write_text("\n".join(map(origin.url, ["/small", "/large", "/missing"])))
        stores = ("--out", bucket.url, "--spool", tmp_path / "spool", "--report", tmp_path / "report")
        ended = await run("run", tmp_path / "list", *stores, "--allow-net", "loopback")
        again = await run("run", tmp_path / "list", *stores, "--allow-net", "loopback")
    results = [json.loads(line) for line in (tmp_path / "report").read_text().splitlines()]
    found = {result["url"].rpartition("/")[2]: result for result in results}

    assert (ended.returncode, again.returncode) == (1, 2), ended.stderr
    assert f"bodies are in {bucket.url}" in ended.stderr
    assert f"already fetched into {bucket.url}" in again.stderr
    assert [found["missing"]["store"], found["missing"]["path"]] == [None, None]
    objects = bucket.objects()
    assert len(objects) == 2
    for name, body in (("small", SMALL), ("large", LARGE)):
        assert found[name]["store"] == bucket.url
        assert objects[found[name]["path"]].body == body
    assert list((tmp_path / "spool/.fetchfleet/parts").iterdir()) == []


@pytest.mark.usefixtures("bucket")
async def test_an_unusable_store_ends_the_command_at_its_start(tmp_path: Path) -> None:
    """The message names the cause. An error that may pass has another exit code."""
    (tmp_path / "list").write_text("http://127.0.0.1/")
    spool = ("--spool", tmp_path / "spool")

    missing = await run("run", tmp_path / "list", "--out", "s3://no-such-bucket/x", *spool)
    exported = await run("run", tmp_path / "list", "--out", "s3://b-1/x", "--lines-to", "-", *spool)
    down = {"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}
    unreachable = await run("run", tmp_path / "list", "--out", "s3://bucket/x", *spool, **down)

    assert (missing.returncode, exported.returncode, unreachable.returncode) == (2, 2, 1)
    assert "--lines-to reads bodies from files; leave it out with an object store" in exported.stderr
    assert "--out s3://no-such-bucket/x: 404 Not Found: NoSuchBucket" in missing.stderr
    assert "--out s3://bucket/x: HTTP error: error sending request: Connection refused" in unreachable.stderr


async def test_a_worker_killed_during_an_upload_leaves_no_object(
    bucket: Bucket, redis_url: str, tmp_path: Path
) -> None:
    """Another worker on the same spool resumes the body and stores it, a part at a time."""
    async with Origin.serving("127.0.0.193", RangedBody(LARGE)) as origin, Fleet(redis_url) as fleet:
        bucket.server.hold(f"PUT /{bucket.name}/.*partNumber=2", times=1)
        settings = {"out": bucket.url, "spool": str(tmp_path / "spool"), "lease_s": "2"}
        with workers(1, redis_url, tmp_path / "one", settings=settings) as first:
            batch = await fleet.submit([Fetch(url=origin.url(), dest="a")])
            await wait_until(lambda: bucket.requests("partNumber=2"), "the second part", timeout_s=30)
            os.kill(first.processes[0].pid, signal.SIGKILL)
            first.processes[0].wait()
        assert (bucket.objects(), bucket.uploads()) == ({}, 1)
        bucket.server.release()
        with workers(1, redis_url, tmp_path / "two", first=2, settings=settings) as second:
            [result] = await results_of(batch)
            most_bytes = peak_memory_bytes(second.processes[0].pid)

    assert (result.outcome, result.worker, result.store) == (Outcome.STORED, "worker-2", bucket.url)
    assert bucket.objects()["a"].body == LARGE
    assert second.processes[0].returncode == 0
    assert most_bytes <= 120 << 20, "the whole body was in memory"
