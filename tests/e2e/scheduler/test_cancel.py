"""Cancelling a batch of several worker processes, and completing the cancellation of a killed one."""

from collections import Counter
from pathlib import Path

import pytest

from fetchfleet import Batch, Fleet
from fetchfleet.jobs import keys
from fetchfleet.jobs.redis_connection import connect
from tests.support.waiting import wait_until
from tests.support.workers import Workers, workers
from tools.origin.behaviours import slow
from tools.origin.server import Origin

CRASH_RECOVERY_S = 40.0
SLOW = slow(b"drop", 0.05, 1000)


async def outcomes(batch: Batch) -> Counter[str]:
    """Return the count of each outcome, after checking that each fetch has one result."""
    found = [of async for of in batch.results()]
    assert len(found) == len({of.id for of in found}) == (await batch.counts()).total
    return Counter(of.outcome.value for of in found)


def files(running: Workers) -> list[Path]:
    """Return the files in the out folder that are not hidden."""
    return [path for path in running.out.rglob("*") if path.is_file() and not path.name.startswith(".")]


async def test_two_workers_cancel_a_batch_in_all_its_lanes(
    redis_url: str, fleet: Fleet, tmp_path: Path
) -> None:
    """No file is left, and the connections are closed."""
    async with (
        Origin.serving("127.0.0.191", SLOW) as one,
        Origin.serving("127.0.0.192", SLOW) as two,
    ):
        with workers(2, redis_url, tmp_path) as running:
            await wait_until(running.started, "both workers to start")
            batch = await fleet.submit([host.url(f"/{n}") for n in range(300) for host in (one, two)])
            await wait_until(lambda: one.in_progress and two.in_progress, "requests at both hosts")
            await batch.cancel()
            found = await outcomes(batch)
            await wait_until(lambda: not one.in_progress | two.in_progress, "the connections to close")
            sent = len(one.requests) + len(two.requests)
            await wait_until(
                lambda: len(running.events("lane.cancelled")) >= 2, "the log lines of both lanes"
            )
            left = files(running)
            ended_in = running.events("lane.cancelled")

    assert {"cancelled": 600} == found
    assert sent <= 16
    assert [] == left
    assert {"127.0.0.191", "127.0.0.192"} == {line["lane"] for line in ended_in}


async def test_another_worker_completes_the_cancellation_of_a_killed_one(
    redis_url: str, fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each fetch has one result, from either worker."""
    count = 8_000
    monkeypatch.setenv("FETCHFLEET_LEASE_S", "2")
    async with Origin.serving("127.0.0.193", SLOW) as origin, connect(redis_url) as redis:
        with workers(1, redis_url, tmp_path / "first") as first:
            batch = await fleet.submit(origin.url(f"/{n}") for n in range(count))
            await wait_until(lambda: origin.in_progress, "a request")
            await batch.cancel()
            await wait_until(
                lambda: redis.exists(keys.results(batch.id)), "the first of the results", every_s=0.002
            )
            first.processes[0].kill()
            await wait_until(lambda: first.processes[0].poll() is not None, "the worker to end")
        before = (await batch.counts()).cancelled
        with workers(1, redis_url, tmp_path / "second") as second:
            await wait_until(
                lambda: second.events("lane.rescued"), "the lane to be reclaimed", CRASH_RECOVERY_S
            )
            found = await outcomes(batch)
        await redis.connection_pool.aclose()

    assert 0 < before < count
    assert {"cancelled": count} == found
