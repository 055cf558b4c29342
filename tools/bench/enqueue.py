"""Measure the enqueue rate of one producer: Fleet.submit, and arq's enqueue_job one by one."""

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
    """The number that each enqueues in a round. jobs: of arq; fewer, as its rate does not depend on it."""

    fetches: int
    jobs: int
    rounds: int


Tell = Callable[[str], None]


async def rates(load: Load, tell: Tell) -> dict[str, Any]:
    """Return the rates of both. They take turns on one Redis, which is emptied before each."""
    ways: dict[str, tuple[Callable[[str, int], Awaitable[float]], int]] = {
        "fetchfleet": (_with_fleet, load.fetches),
        "arq": (_with_arq, load.jobs),
    }
    found: dict[str, list[float]] = {name: [] for name in ways}
    with tempfile.TemporaryDirectory(prefix="ff-bench-") as folder, EmbeddedRedis(Path(folder)) as redis:
        for number in range(load.rounds):
            for name, (enqueue, count) in ways.items():
                await _empty(redis.url)
                found[name].append(count / await enqueue(redis.url, count))
                tell(f"round {number + 1}: {name} {found[name][-1]:,.0f} enqueued/s")
    return stats.with_ratios({name: stats.of_rates(own) for name, own in found.items()}, "per_s")


async def _with_fleet(url: str, count: int) -> float:
    fetches = [f"https://host{number % HOSTS}.example.com/files/{number}.bin" for number in range(count)]
    async with Fleet(url) as fleet:
        began_s = time.monotonic()
        batch = await fleet.submit(fetches)
        took_s = time.monotonic() - began_s
        if (await batch.counts()).total != count:
            raise BenchError("fetchfleet did not enqueue all")
    return took_s


async def _with_arq(url: str, count: int) -> float:
    pool = await create_pool(RedisSettings(unix_socket_path=url.removeprefix("unix://")))
    try:
        began_s = time.monotonic()
        for number in range(count):
            await pool.enqueue_job("fetch", f"https://host{number % HOSTS}.example.com/files/{number}.bin")
        took_s = time.monotonic() - began_s
        if await pool.zcard("arq:queue") != count:
            raise BenchError("arq did not enqueue all")
    finally:
        await pool.aclose()
    return took_s


async def _empty(url: str) -> None:
    async with Redis.from_url(url) as redis:
        await redis.flushall()


def measure(load: Load, tell: Tell) -> dict[str, Any]:
    """Run `rates` in a new event loop."""
    return asyncio.run(rates(load, tell))
