"""Measure a fetchfleet worker in this process while it fetches a list.

    python -m tools.bench.contenders.worker ENGINE URLS OUT REDIS

REDIS is a Unix socket. Prints the CPU time of the process and the duration of the work in seconds, as JSON.
Neither includes imports or the submit.
"""

import asyncio
import json
import sys
import time
from pathlib import Path

import uvloop

from fetchfleet import Fleet
from fetchfleet.worker.observability import log
from fetchfleet.worker.runtime.arq_worker import serve_arq_jobs, start
from fetchfleet.worker.settings import load_settings
from fetchfleet.worker.util import aio, gc_freeze
from tools.bench.process import BenchError

POLL_S = 0.05


async def work(engine: str, urls: list[str], out: Path, redis_url: str) -> tuple[float, float]:
    """Fetch the list; return the CPU time of this process and the duration, in seconds."""
    flags = {"redis_url": redis_url, "out": str(out), "allow_net": "127.0.0.0/8", "alone": "1"}
    settings = load_settings(flags, {"FETCHFLEET_ENGINE": engine})
    async with Fleet(redis_url) as fleet:
        batch = await fleet.submit(urls)
        runtime = await start(settings)
        gc_freeze.freeze()  # as in a worker process
        began_s, cpu_s = time.monotonic(), time.process_time()
        serving = asyncio.create_task(serve_arq_jobs(runtime))
        try:
            while not (counts := await batch.counts()).ended:  # noqa: ASYNC110 another process counts
                await asyncio.sleep(POLL_S)
            used_s, took_s = time.process_time() - cpu_s, time.monotonic() - began_s
        finally:
            await runtime.stop()
            await aio.end(serving)
    if counts.stored != len(urls):
        raise BenchError(f"{counts.stored} of {len(urls)} were stored")
    return used_s, took_s


def main() -> None:
    """Run the command line. The worker's log goes to a file beside the list."""
    engine, listed, out, redis = sys.argv[1:]
    with Path(listed).with_suffix(".log").open("w") as lines:
        log.configure(lines)
        used_s, took_s = uvloop.run(
            work(engine, Path(listed).read_text().split(), Path(out), f"unix://{redis}")
        )
    print(json.dumps({"cpu_s": used_s, "took_s": took_s}))


if __name__ == "__main__":
    main()
