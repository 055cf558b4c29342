"""Recovery: lanes of dead workers and plain arq jobs are served despite foreign values in arq's queue."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from fetchfleet import Batch, Outcome
from fetchfleet.jobs import keys
from fetchfleet.worker.lanes.store import AcquiredLane, LaneStore
from fetchfleet.worker.runtime.timings import WorkerTimings
from tests.component.conftest import HOST, QUICK, Lines, Start
from tests.support.conflicting_keys import plant_value
from tests.support.lanes import LEASE_MS, ask, fields, lapse
from tests.support.plain_arq import enqueue, job_outcome, plain_arq
from tests.support.waiting import wait_until
from tools.one_worker import results_of
from tools.origin.server import Origin

FLOOD = 20_000


@pytest.fixture
def timings() -> WorkerTimings:
    """Return timings with ten sweeps a second."""
    return replace(QUICK, sweep_s=0.1, reclaim_delay_s=0.0)


async def flood(redis: Redis, score: str, count: int = FLOOD) -> None:
    """Put members without a job into arq's queue."""
    for first in range(0, count, 5000):
        await ask(
            redis,
            "ZADD",
            keys.QUEUE,
            *(word for i in range(first, first + 5000) for word in (score, f"z{i}")),
        )


async def die_with_a_lane(redis: Redis) -> None:
    """Hold the origin's lane as a worker that has died."""
    store = LaneStore(redis, "dead", LEASE_MS)
    held = await store.acquire(HOST, int((await fields(redis, HOST))["generation"]))
    assert isinstance(held, AcquiredLane)
    await store.claim(HOST, held.token, 1)
    await lapse(redis, HOST)


async def ended(batch: Batch) -> bool:
    """Return whether the batch has all its results."""
    return (await batch.counts()).ended


@pytest.mark.parametrize("arq_runs", [True, False], ids=["arq", "no arq"])
async def test_a_lane_is_recovered_despite_a_flooded_arq_queue(
    origin: Origin, start: Start, redis: Redis, *, arq_runs: bool
) -> None:
    """Recovery does not depend on arq's loop."""
    worker = await start()
    if not arq_runs:
        await worker.stop_arq_jobs()
    await worker.runtime.stop_acquiring()
    batch = await worker.submit([origin.url("/x")])
    await die_with_a_lane(redis)
    await redis.delete(keys.QUEUE)
    await flood(redis, "0")

    async def is_due_again() -> bool:
        return (await fields(redis, HOST))["state"] != "held"

    await wait_until(is_due_again, "the lane to be due", 5)
    other = await start(worker_id="two")
    assert [Outcome.STORED] == [result.outcome for result in await results_of(batch)]
    assert other.files()

    async def is_clean() -> bool:
        return await redis.zscore(keys.QUEUE, "z0") is None

    await wait_until(is_clean, "the members to be gone", 5)


async def test_a_lane_is_recovered_while_arqs_queue_has_another_type(
    origin: Origin, start: Start, redis: Redis, tmp_path: Path, timings: WorkerTimings
) -> None:
    """No notification can be sent, and arq's loop does not start."""
    worker = await start(timings=replace(timings, key_check_s=60.0))
    batch = await worker.submit([])
    await worker.runtime.stop_acquiring()
    batch = await worker.submit([origin.url("/x")])
    await die_with_a_lane(redis)
    await redis.delete(keys.QUEUE)
    await plant_value(redis, keys.QUEUE, "list", tmp_path / "canary")
    two = await start(worker_id="two")
    await wait_until(partial(ended, batch), "the result", 5)
    await two.stop()


async def test_plain_arq_jobs_are_served_despite_a_flooded_queue(
    origin: Origin, start: Start, redis: Redis, redis_url: str, lines: Lines
) -> None:
    """The members come before and after the jobs. One log line reports all of them."""
    await start()
    async with plain_arq(redis_url) as pool:
        await flood(redis, "0")
        await flood(redis, "inf", 5000)
        jobs = [await enqueue(pool, "fetch", origin.url(f"/{i}")) for i in range(2)]
        await flood(redis, "-inf", 5000)
        outcomes: list[Any] = [await job_outcome(pool, job) for job in jobs]
    assert [True, True] == [good for good, _ in outcomes]
    await wait_until(lambda: len(origin.requests) == 2, "the requests")

    async def is_empty() -> bool:
        return int(await redis.zcard(keys.QUEUE)) <= 1  # a job of arq's own

    await wait_until(is_empty, "the members to be gone", 5)
    logged = [line for line in lines if line["event"] == "redis.foreign"]
    assert [keys.QUEUE] == [line["key"] for line in logged]
    assert logged[0]["count"] > 0
    assert "member without a job" in (await ask(redis, "XRANGE", keys.DEAD, "-", "+"))[0][1][b"note"].decode()
