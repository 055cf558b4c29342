"""A homemade fetcher: arq jobs, one shared httpx client, a semaphore for each host, aiofiles.

    python -m tools.bench.contenders.arq_httpx URLS OUT AT_ONCE

It uses the same embedded Redis as `fetchfleet run`. Nothing is retried, checked or renamed into place.
"""

import asyncio
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiofiles
import httpx
from arq.connections import RedisSettings, create_pool
from arq.worker import Worker, func

from fetchfleet.worker.local.embedded_redis import EmbeddedRedis

PER_HOST = 8


async def fetch(ctx: dict[str, Any], url: str) -> int:
    """Fetch a URL into a file named after it; return its size in bytes."""
    parts = urlsplit(url)
    size_bytes = 0
    async with ctx["hosts"][parts.netloc], ctx["client"].stream("GET", url) as response:
        response.raise_for_status()
        async with aiofiles.open(ctx["out"] / Path(parts.path).name, "wb") as file:
            async for chunk in response.aiter_bytes():
                await file.write(chunk)
                size_bytes += len(chunk)
    return size_bytes


async def main(urls: list[str], out: Path, at_once: int) -> None:
    """Enqueue all URLs, then run a worker until the queue is empty."""
    with tempfile.TemporaryDirectory() as state, EmbeddedRedis(Path(state)) as redis:
        pool = await create_pool(RedisSettings(unix_socket_path=redis.url.removeprefix("unix://")))
        for url in urls:
            await pool.enqueue_job("fetch", url)
        limits = httpx.Limits(max_connections=at_once, max_keepalive_connections=at_once)
        async with httpx.AsyncClient(limits=limits) as client:
            hosts: dict[str, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(PER_HOST))
            ctx = {"client": client, "out": out, "hosts": hosts}
            worker = Worker(
                [func(fetch, max_tries=1)],
                redis_pool=pool,
                burst=True,
                max_jobs=at_once,
                ctx=ctx,
                handle_signals=False,
            )
            await worker.async_run()
            await worker.close()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]).read_text().split(), Path(sys.argv[2]), int(sys.argv[3])))
