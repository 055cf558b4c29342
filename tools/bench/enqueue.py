"""Measure the enqueue rate of one producer: with Fleet.submit, and with one arq enqueue_job at a time."""

import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

from arq.connections import RedisSettings, create_pool
from redis.asyncio import Redis

from fetchfleet import Fleet
from fetchfleet.worker.local.embedded_redis import EmbeddedRedis
from tools.bench import stats
from tools.bench.process import BenchError

HOSTS = 20


class Load(NamedTuple):
    """The work of a round, and the number of rounds."""

    fetches: int
    jobs: int
    """Jobs for arq: fewer, because its rate does not depend on the number."""
    rounds: int


OnProgress = Callable[[str], None]


async def rates(load: Load, on_progress: OnProgress) -> dict[str, Any]:
    """Return the rates of both, measured in turn on one Redis that is emptied each time."""
    methods: dict[str, tuple[Callable[[str, int], Awaitable[float]], int]] = {
        "fetchfleet": (_with_fleet, load.fetches),
        "arq": (_with_arq, load.jobs),
    }
    figures: dict[str, list[float]] = {name: [] for name in methods}
    with tempfile.TemporaryDirectory(prefix="ff-bench-") as folder, EmbeddedRedis(Path(folder)) as redis:
        for number in range(load.rounds):
            for name, (enqueue, count) in methods.items():
                await _empty(redis.url)
                figures[name].append(count / await enqueue(redis.url, count))
                on_progress(f"round {number + 1}: {name} {figures[name][-1]:,.0f} enqueued/s")
    return stats.with_ratios({name: stats.of_rates(own) for name, own in figures.items()}, "per_s")


async def _with_fleet(url: str, count: int) -> float:
    fetches = [f"https://host{number % HOSTS}.example.com/files/{number}.bin" for number in range(count)]
    async with Fleet(url) as fleet:
        began_s = time.monotonic()
        batch = await fleet.submit(fetches)
        took_s = time.monotonic() - began_s
        if (await batch.counts()).total != count:
            raise BenchError(f"fetchfleet did not enqueue all of {count} fetches")
    return took_s


async def _with_arq(url: str, count: int) -> float:
    pool = await create_pool(RedisSettings(unix_socket_path=url.removeprefix("unix://")))
    try:
        began_s = time.monotonic()
        for number in range(count):
            await pool.enqueue_job("fetch", f"https://host{number % HOSTS}.example.com/files/{number}.bin")
        took_s = time.monotonic() - began_s
        if await pool.zcard("arq:queue") != count:
            raise BenchError(f"arq did not enqueue all of {count} jobs")
    finally:
        await pool.aclose()
    return took_s


async def _empty(url: str) -> None:
    async with Redis.from_url(url) as redis:
        await redis.flushall()


def measure(load: Load, on_progress: OnProgress) -> dict[str, Any]:
    """Run `rates` in a new event loop."""
    return asyncio.run(rates(load, on_progress))
