"""The stats that a worker logs every ten seconds."""

import asyncio
import mmap
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from fetchfleet.worker.http.connection_stats import ConnectionStats
from fetchfleet.worker.runtime.stats import open_files, rss_bytes
from fetchfleet.worker.util import aio
from tests.component.conftest import QUICK, Lines, Start
from tests.support.lane_pools import lane_pool, request_to
from tests.support.waiting import wait_until
from tools.one_worker import OneWorker
from tools.origin import behaviours as o
from tools.origin.certificates import HAS_OPENSSL, Authority
from tools.origin.server import Origin

FIELDS = {
    *("event", "worker", "interval_s", "lanes", "in_flight", "settling"),
    *("pool_wait_p50_ms", "pool_wait_p99_ms", "opened", "reused", "closed", "open"),
    *("tcp_p50_ms", "tcp_p99_ms", "tls_p50_ms", "tls_p99_ms"),
    *("lag_p50_ms", "lag_max_ms", "rss_bytes", "open_files"),
}
HOST = "127.0.61.11"


def stats_lines(lines: Lines) -> Lines:
    """Return the stats lines so far."""
    return [line for line in lines if line["event"] == "worker.heartbeat"]


OFTEN = replace(QUICK, stats_s=0.0, loop_lag_s=0.02)
"""A stats line at each tick of the timer."""


async def test_stats_count_opened_reused_and_closed_connections(
    origin: Origin, start: Start, lines: Lines
) -> None:
    """The origin counts the same number of connections."""
    worker = await start(policy={"concurrency": 2})
    origin.behaviour = o.latency(0.01)

    await worker.results(origin.url(f"/{n}") for n in range(10))
    await wait_until(lambda: not worker.runtime.lanes, "the lane to be released")
    await worker.stop()
    [beat] = stats_lines(lines)

    assert beat.keys() >= FIELDS
    assert beat["opened"] == beat["closed"] == origin.connections_opened
    assert beat["opened"] + beat["reused"] == 10
    assert (beat["open"], beat["in_flight"], beat["lanes"], beat["settling"]) == (0, 0, 0, 0)
    assert 0 <= beat["pool_wait_p50_ms"] <= beat["pool_wait_p99_ms"]
    assert 0 < beat["tcp_p50_ms"] <= beat["tcp_p99_ms"]
    assert beat["tls_p50_ms"] is beat["tls_p99_ms"] is None


async def test_stats_count_requests_in_flight(origin: Origin, start: Start, lines: Lines) -> None:
    """Each line has the lanes, the open connections, and those opened since the line before."""
    worker = await start(policy={"concurrency": 3}, timings=OFTEN)
    origin.behaviour = o.held(may_end := asyncio.Event())
    batch = await worker.submit(origin.url(f"/{n}") for n in range(3))
    await wait_until(lambda: origin.in_progress == 3, "the requests")
    before = len(stats_lines(lines))
    await wait_until(lambda: len(stats_lines(lines)) > before, "a stats line")
    beat = stats_lines(lines)[-1]
    may_end.set()
    await batch.wait()
    await worker.stop()

    assert (beat["lanes"], beat["in_flight"], beat["open"]) == (1, 3, 3)
    assert beat["rss_bytes"] > 10 << 20
    assert beat["open_files"] > 10
    assert sum(line["opened"] for line in stats_lines(lines)) == origin.connections_opened == 3
    assert sum(line["closed"] for line in stats_lines(lines)) == 3
    assert stats_lines(lines)[-1]["open"] == 0


async def test_stats_show_the_longest_lag_of_the_event_loop(worker: OneWorker, lines: Lines) -> None:
    """The loop is blocked for 500 ms."""
    loop, held_up = asyncio.get_running_loop(), asyncio.Event()

    def hold_up() -> None:
        until_s = loop.time() + 0.5
        while loop.time() < until_s:
            pass
        held_up.set()

    loop.call_later(0.01, hold_up)
    await held_up.wait()
    lag_s = worker.runtime.stats.lag_s
    await wait_until(lambda: any(figure > 0.2 for figure in lag_s._samples), "the lag to be seen")
    await worker.stop()

    assert stats_lines(lines)[-1]["lag_max_ms"] > 200


async def test_a_cancelled_handshake_counts_its_connection_as_closed() -> None:
    """It leaves no socket behind."""
    traffic, taken = ConnectionStats(), asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        taken.set()
        await reader.read()
        await reader.read()
        writer.close()

    async with await asyncio.start_server(silent, HOST, 0) as server, lane_pool(HOST, stats=traffic) as pool:
        request = request_to(f"https://{HOST}:{server.sockets[0].getsockname()[1]}/")
        shaking = asyncio.create_task(pool.exchange(request))
        await taken.wait()
        await wait_until(lambda: traffic.opened, "the connection")
        await aio.end(shaking)

    assert (traffic.opened, traffic.closed) == (1, 1)
    assert traffic.tls_s.pop_sorted() == []


@asynccontextmanager
async def served_over_tls(folder: Path) -> AsyncIterator[tuple[int, Path]]:
    """Yield a port that serves TLS, and the CA to trust."""
    authority = Authority(folder)
    own = authority.issue("own", f"IP:{HOST}")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(own.cert, own.key)

    ended = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
            await reader.read()
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
        ended.set()

    server = await asyncio.start_server(serve, HOST, 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1], authority.cert
        await ended.wait()
    finally:
        server.close()
        await server.wait_closed()


@pytest.mark.skipif(not HAS_OPENSSL, reason="openssl is not installed")
async def test_a_tls_connection_counts_once_and_its_handshake_is_timed(tmp_path: Path) -> None:
    """The TCP connect and the handshake are timed separately."""
    traffic = ConnectionStats()
    async with (
        served_over_tls(tmp_path) as (port, trusted),
        lane_pool(HOST, trusted, stats=traffic) as pool,
    ):
        response = await pool.exchange(request_to(f"https://{HOST}:{port}/"))
        assert (traffic.opened, traffic.closed) == (1, 0)
        response.close()
        response.close()

    assert (traffic.opened, traffic.closed) == (1, 1)
    assert len(traffic.tcp_s.pop_sorted()) == len(traffic.tls_s.pop_sorted()) == 1


def test_open_files_and_memory_are_those_of_this_process(tmp_path: Path) -> None:
    """Each opened file and each touched page counts."""
    before = open_files()
    with (tmp_path / "a").open("w"):
        assert open_files() == before + 1
    assert open_files() == before

    memory = rss_bytes()
    with mmap.mmap(-1, 32 << 20) as block:  # new pages
        for at in range(0, len(block), mmap.PAGESIZE):
            block[at] = 1
        assert rss_bytes() - memory > len(block) // 2
