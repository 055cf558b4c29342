"""Measure the memory that a connection and its fetch take, with many connections open in one worker.

    python -m tools.bench.connections [--count N] [--engine NAME]

The worker and the hosts run in separate processes. The hosts hold every response until all requests have
arrived, then respond one host after the other. Without --engine each engine is measured. The limit of open
files caps the count.
"""

import argparse
import asyncio
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from itertools import groupby
from pathlib import Path
from typing import Any

import uvloop

from fetchfleet.worker.local.embedded_redis import EmbeddedRedis
from fetchfleet.worker.observability import log
from fetchfleet.worker.policy.model import Timeouts
from fetchfleet.worker.runtime.stats import rss_bytes
from fetchfleet.worker.settings import ENGINES
from tools.one_worker import OneWorker

HOSTS = 20
TIMEOUT_S = 120.0
IDLE_S = 5.0
"""The time without a new request after which the hosts stop waiting for missing requests."""

POLL_S = 0.05
NEXT_HOST_S = 1.0
SPARE_FILES = 500
LONG_TIMEOUTS = Timeouts(connect_s=60, read_s=120, write_s=60, pool_s=60, total_s=240)


def max_connections(wanted: int) -> int:
    """Raise the limit of open files to its maximum; return the count it allows, at most `wanted`."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return min(wanted, hard - SPARE_FILES)


class _HeldConnection(asyncio.Protocol):
    """A connection whose response waits until all requests have arrived."""

    transports: list[asyncio.Transport] = []  # noqa: RUF012 of all connections with a request

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport for the response."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Count the request and send nothing."""
        if data.startswith(b"GET "):
            self.transports.append(self._transport)


def _host(transport: asyncio.Transport) -> str:
    return str(transport.get_extra_info("sockname")[0])


async def _serve(count: int) -> None:
    """Accept `count` requests on all hosts, print their number, and respond after a line on stdin.

    Exits after a second line.
    """
    loop = asyncio.get_running_loop()
    hosts = [
        await loop.create_server(_HeldConnection, f"127.0.72.{n + 1}", 0, backlog=4096) for n in range(HOSTS)
    ]
    print(json.dumps([host.sockets[0].getsockname() for host in hosts]), flush=True)
    held = _HeldConnection.transports
    began_s, idle_s, arrived = time.monotonic(), 0.0, 0
    while len(held) < count and idle_s < IDLE_S and time.monotonic() - began_s < TIMEOUT_S:
        await asyncio.sleep(POLL_S)
        idle_s = idle_s + POLL_S if arrived and arrived == len(held) else 0.0
        arrived = len(held)
    print(len(held), flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    for _, of_host in groupby(sorted(held, key=_host), key=_host):
        for transport in of_host:
            transport.write(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
        await asyncio.sleep(NEXT_HOST_S)
    await asyncio.to_thread(sys.stdin.readline)


async def _fetch(engine: str, count: int) -> None:
    """Run one worker; print its memory before the fetches and with all connections open."""
    server = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tools.bench.connections", "--serve", "--count", str(count)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert server.stdout is not None
    assert server.stdin is not None
    hosts = json.loads(await server.stdout.readline())
    urls = [f"http://{hosts[n % HOSTS][0]}:{hosts[n % HOSTS][1]}/{n}" for n in range(count)]
    policy: dict[str, Any] = {"concurrency": 1000, "timeout": LONG_TIMEOUTS, "attempts": 1}
    with tempfile.TemporaryDirectory() as folder, EmbeddedRedis(Path(folder) / "redis") as redis:
        out = Path(folder) / "out"
        async with OneWorker(redis.url, out, policy=policy, engine=engine, max_in_flight=count) as worker:
            batch = await worker.submit(urls)
            before_bytes = rss_bytes()
            opened = int(await server.stdout.readline())
            each_bytes = (rss_bytes() - before_bytes) / max(opened, 1)
            server.stdin.write(b"\n")
            done = Counter([str(result.reason or result.outcome.value) async for result in batch.results()])
            server.stdin.write(b"\n")
    await server.wait()
    figures = {"engine": engine, "connections": opened, "kib_each": round(each_bytes / 1024, 1)}
    print(json.dumps({**figures, "rss_before_mib": before_bytes >> 20, "ended": dict(done)}))


def main() -> None:
    """Measure the engine of the command line, or each engine in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--engine", choices=ENGINES)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    count = max_connections(options.count)
    if options.serve:
        asyncio.run(_serve(count))
    elif options.engine:
        log.configure(io.StringIO())
        uvloop.run(asyncio.wait_for(_fetch(options.engine, count), 2 * TIMEOUT_S))
    else:
        print(f"open files: {resource.getrlimit(resource.RLIMIT_NOFILE)[0]}, so {count} connections")
        for engine in ENGINES:
            command = [sys.executable, "-m", "tools.bench.connections", "--count", str(count)]
            subprocess.run([*command, "--engine", engine], check=True, env=dict(os.environ))


if __name__ == "__main__":
    main()
