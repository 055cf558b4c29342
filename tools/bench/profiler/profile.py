"""Profile one worker in this process while it fetches small files."""

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import uvloop
from redis.asyncio import Redis

from fetchfleet import Batch, Counts, Fleet
from fetchfleet.worker.local.embedded_redis import EmbeddedRedis
from fetchfleet.worker.observability import log
from fetchfleet.worker.runtime.arq_worker import serve_arq_jobs, start
from fetchfleet.worker.settings import NONE, load_settings
from fetchfleet.worker.util import aio, gc_freeze
from tools.bench import bodies
from tools.bench.compare import Load, hosts
from tools.bench.environment import workspace
from tools.bench.peers import PER_HOST
from tools.bench.process import BenchError
from tools.bench.profiler.sampler import Sampler
from tools.bench.profiler.subsystems import room_of, room_of_thread
from tools.origin.static_server import serve_folder

POLL_S = 0.1
TOP = 40


def profile(load: Load, engine: str, sink: str, *, disk: bool = False) -> dict[str, Any]:
    """Return times per fetch in µs: `cpu` by subsystem, `redis_server`, `wall`, and the top `functions`."""
    with workspace(disk=disk) as folder:
        bodies.make(folder / "served", load.files, load.size_bytes)
        with (
            serve_folder(folder / "served", hosts(load)) as server,
            EmbeddedRedis(folder / "redis") as redis,
            (folder / "log").open("w") as lines,
        ):
            log.configure(lines)
            bases = server.base_urls
            urls = [f"{bases[number % load.hosts]}/{number}.bin" for number in range(load.files)]
            return uvloop.run(_profiled(urls, redis.url, folder / "out", engine, sink))


async def _profiled(urls: Sequence[str], redis_url: str, out: Path, engine: str, sink: str) -> dict[str, Any]:
    environment = {
        "FETCHFLEET_ENGINE": engine,
        "FETCHFLEET_SINK": sink,
        "FETCHFLEET_WARC_COMPRESSION": NONE,
    }
    flags = {"redis_url": redis_url, "out": str(out), "allow_net": "127.0.0.0/8"}
    settings = load_settings(flags, environment)
    assert settings.policy.default.concurrency == PER_HOST
    async with Fleet(redis_url) as fleet, Redis.from_url(redis_url) as redis:
        batch = await fleet.submit(urls)
        runtime = await start(settings)
        gc_freeze.freeze()  # as in a worker process
        work = asyncio.create_task(serve_arq_jobs(runtime))
        before_s, began_s = await _server_s(redis), time.monotonic()
        try:
            with Sampler(room_of) as sampler:
                counts = await _ended(batch)
            took_s, redis_s = time.monotonic() - began_s, await _server_s(redis) - before_s
        finally:
            await runtime.stop()
            await aio.end(work)
    if counts.stored != len(urls):
        raise BenchError(f"{counts.stored} of {len(urls)} were stored")
    return _per_fetch(sampler, took_s, redis_s, len(urls))


def _per_fetch(sampler: Sampler, took_s: float, redis_s: float, count: int) -> dict[str, Any]:
    def us(spent_s: float) -> float:
        return round(spent_s / count * 1e6, 1)

    spent_s = sampler.spent_s.copy()
    for name, own_s in sampler.threads_s.items():
        spent_s[room_of_thread(name)] += own_s
    return {
        "cpu": {room: us(s) for room, s in _by_size(spent_s)} | {"all": us(sum(spent_s.values()))},
        "redis_server": us(redis_s),
        "wall": us(took_s),
        "functions": {name: us(s) for name, s in _by_size(sampler.detail_s)[:TOP]},
    }


def _by_size(spent_s: dict[str, float]) -> list[tuple[str, float]]:
    return sorted(spent_s.items(), key=lambda pair: -pair[1])


async def _ended(batch: Batch) -> Counts:
    while True:
        counts = await batch.counts()
        if counts.ended:
            return counts
        await asyncio.sleep(POLL_S)


async def _server_s(redis: Redis) -> float:
    """Return the CPU time of the Redis server so far, in s."""
    info = await redis.info("cpu")
    return float(info["used_cpu_sys"]) + float(info["used_cpu_user"])
