"""The HTTP/1.1 connections of a lane: which one a request uses, and that none is left over."""

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from fetchfleet.worker.errors import (
    ConnectError,
    ForeignHostError,
    ReadError,
    RemoteProtocolError,
)
from fetchfleet.worker.http.connection_stats import ConnectionStats
from tests.support.lane_pools import fetch, lane_pool, request_to
from tests.support.loops import on_both_loops
from tests.support.waiting import wait_until

HOST = "127.0.79.4"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class HostConnection:
    """A connection on the side of the host."""

    def __init__(self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.number = number
        self.reader = reader
        self.writer = writer
        self.requests: list[bytes] = []
        self.gone = False

    def reset(self) -> None:
        """Close with a reset, as a crashed host does."""
        line = self.writer.get_extra_info("socket")
        line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


Answer = Callable[[HostConnection], Awaitable[None]]


async def ok(line: HostConnection) -> None:
    """Respond "ok" with its Content-Length."""
    line.writer.write(OK)


class Host:
    """A host that handles each request with `answer`."""

    def __init__(self) -> None:
        self.answer: Answer = ok
        self.lines: list[HostConnection] = []
        self.url = ""
        self._serving: set[asyncio.Task[None]] = set()

    @classmethod
    @asynccontextmanager
    async def serving(cls) -> AsyncIterator["Host"]:
        """Yield a host that responds "ok" by default."""
        host = cls()
        server = await asyncio.start_server(host._serve, HOST, 0)
        host.url = f"http://{HOST}:{server.sockets[0].getsockname()[1]}/"
        try:
            yield host
        finally:
            server.close()
            for task in host._serving:
                task.cancel()
            await asyncio.gather(*host._serving, return_exceptions=True)

    @property
    def open(self) -> int:
        """Return the number of open connections."""
        return sum(not line.gone for line in self.lines)

    @property
    def request_counts(self) -> list[int]:
        """Return the number of requests on each connection."""
        return [len(line.requests) for line in self.lines]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._serving.add(asyncio.current_task())  # type: ignore[arg-type]
        line = HostConnection(len(self.lines), reader, writer)
        self.lines.append(line)
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                while True:
                    line.requests.append(await reader.readuntil(b"\r\n\r\n"))
                    await self.answer(line)
        finally:
            line.gone = True
            writer.close()


async def silent(line: HostConnection) -> None:
    """Send nothing."""
    await line.reader.read()


@on_both_loops
async def test_the_most_recently_used_connection_is_reused() -> None:
    """The others become idle and expire if they are not needed."""
    stats = ConnectionStats()
    async with Host.serving() as host, lane_pool(HOST, stats=stats) as pool:
        assert await asyncio.gather(*(fetch(pool, host.url) for _ in range(3))) == [b"ok"] * 3
        for _ in range(4):
            await fetch(pool, host.url)

        assert sorted(host.request_counts) == [1, 1, 5]
        assert (stats.opened, stats.reused) == (3, 4)
    assert (stats.opened, stats.closed) == (3, 3)


@on_both_loops
async def test_no_more_connections_stay_idle_than_max_idle() -> None:
    """The surplus connections are closed."""
    async with Host.serving() as host, lane_pool(HOST, max_idle=2) as pool:
        await asyncio.gather(*(fetch(pool, host.url) for _ in range(5)))

        await wait_until(lambda: host.open == 2, "the others to be closed")


@on_both_loops
async def test_an_idle_connection_expires() -> None:
    """Its timer closes it, without another request."""
    async with Host.serving() as host, lane_pool(HOST, keepalive_s=0.02) as pool:
        await fetch(pool, host.url)
        await wait_until(lambda: not host.open, "the connection to be closed")
        await fetch(pool, host.url)

    assert host.request_counts == [1, 1]


@pytest.mark.parametrize("unread", [b"HTTP/1.1 408 Request Timeout\r\n\r\n", b""], ids=["data", "the end"])
@on_both_loops
async def test_a_connection_with_unrequested_data_or_an_end_is_not_reused(unread: bytes) -> None:
    """The loop has not read it yet. A POST on a dead connection could not be repeated."""
    async with Host.serving() as host, lane_pool(HOST) as pool:
        await fetch(pool, host.url, "POST", b"")
        await fetch(pool, host.url, "POST", b"")
        theirs = host.lines[0].writer.get_extra_info("socket").dup()
        theirs.send(unread) if unread else theirs.shutdown(socket.SHUT_WR)
        theirs.close()
        await fetch(pool, host.url, "POST", b"")

    assert host.request_counts == [2, 1]


@pytest.mark.parametrize("end", ["end", "reset"])
@on_both_loops
async def test_a_request_on_a_connection_that_closes_is_repeated_if_idempotent(
    end: str,
) -> None:
    """A GET is repeated once on a new connection, and other idle ones are closed. A POST fails."""

    async def closes(line: HostConnection) -> None:
        if len(line.requests) > 1:
            line.reset() if end == "reset" else line.writer.close()
        else:
            await ok(line)

    async with Host.serving() as host, lane_pool(HOST) as pool:
        await asyncio.gather(*(fetch(pool, host.url) for _ in range(3)))
        host.answer = closes
        request = request_to(host.url)
        response = await pool.exchange(request)
        response.close()

        assert sorted(host.request_counts) == [1, 1, 1, 2]
        assert request.trace.opened
        await wait_until(lambda: host.open == 1, "the idle ones to be closed")

        host.answer = ok
        await fetch(pool, host.url)
        host.answer = closes
        with pytest.raises((ReadError, RemoteProtocolError)):
            await fetch(pool, host.url, "POST", b"")
        assert sorted(host.request_counts) == [1, 1, 2, 3]


@on_both_loops
async def test_the_wait_of_a_repeated_request_is_counted_once() -> None:
    """Only the wait for its first connection counts."""
    stats = ConnectionStats()

    async def closes(line: HostConnection) -> None:
        if len(line.requests) > 1:
            line.writer.close()
        else:
            await ok(line)

    async with Host.serving() as host, lane_pool(HOST, stats=stats) as pool:
        host.answer = closes
        await fetch(pool, host.url)
        stats.pool_wait_s.pop_sorted()
        assert await fetch(pool, host.url) == b"ok"

        assert host.request_counts == [2, 1]
        assert len(stats.pool_wait_s.pop_sorted()) == 1


@pytest.mark.parametrize("end", ["end", "reset"])
@on_both_loops
async def test_a_request_on_a_new_connection_is_not_repeated(end: str) -> None:
    """The host received it. A request is not repeated after a part of its response either."""

    async def fails(line: HostConnection) -> None:
        line.reset() if end == "reset" else line.writer.close()

    async def begins(line: HostConnection) -> None:
        line.writer.write(b"HTTP/1.1 2")
        await line.writer.drain()
        await asyncio.sleep(0.01)  # a reset at once would discard it
        await fails(line)

    async with Host.serving() as host, lane_pool(HOST) as pool:
        host.answer = fails
        with pytest.raises((ReadError, RemoteProtocolError)):
            await fetch(pool, host.url)
        host.answer = ok
        await fetch(pool, host.url)
        host.answer = begins
        with pytest.raises((ReadError, RemoteProtocolError)):
            await fetch(pool, host.url)

    assert host.request_counts == [1, 2]


@on_both_loops
async def test_a_host_that_closes_or_sends_at_once_fails_the_exchange_at_once() -> None:
    """No timeout has to pass."""
    with socket.create_server((HOST, 0)) as listening:
        url = f"http://{HOST}:{listening.getsockname()[1]}/"

        async def close_connection(how: str) -> None:
            theirs, _ = await asyncio.get_running_loop().sock_accept(listening)
            if how == "reset":
                theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            elif how == "greets":
                theirs.send(b"220 smtp.example ESMTP\r\n")
            theirs.close()

        listening.setblocking(False)  # noqa: FBT003 its argument
        async with lane_pool(HOST) as pool:
            for how in ("reset", "end", "greets"):
                turning = asyncio.create_task(close_connection(how))
                async with asyncio.timeout(5):
                    with pytest.raises((ReadError, RemoteProtocolError, ConnectError)):
                        await fetch(pool, url)
                await turning


@on_both_loops
async def test_a_cancelled_exchange_leaves_no_connection() -> None:
    """It is cancelled at each iteration of the loop. Each opened connection counts as closed."""
    stats = ConnectionStats()
    async with Host.serving() as host, lane_pool(HOST, stats=stats) as pool:
        host.answer = silent
        for iterations in range(12):
            asked = asyncio.create_task(fetch(pool, host.url))
            for _ in range(iterations):
                await asyncio.sleep(0)
            asked.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asked
            assert asked.cancelled()

        await wait_until(
            lambda: stats.opened == stats.closed and not host.open, "the connections to be closed"
        )


@on_both_loops
async def test_closing_a_lane_leaves_no_connection() -> None:
    """Idle connections are closed, and running exchanges fail."""
    stats = ConnectionStats()
    async with Host.serving() as host:
        async with lane_pool(HOST, stats=stats) as pool:
            await asyncio.gather(*(fetch(pool, host.url) for _ in range(3)))
            host.answer = silent
            running = [asyncio.create_task(fetch(pool, host.url)) for _ in range(2)]
            await wait_until(lambda: sum(host.request_counts) == 5, "the requests")
        results = await asyncio.gather(*running, return_exceptions=True)

        assert [type(result) for result in results] == [ReadError] * 2
        assert (stats.opened, stats.closed) == (3, 3)
        await wait_until(lambda: not host.open, "closed connections")


@on_both_loops
async def test_closing_a_lane_during_a_dial_leaves_no_connection() -> None:
    """The lane closes at each iteration of the loop."""
    stats = ConnectionStats()
    async with Host.serving() as host:
        host.answer = silent
        for iterations in range(12):
            async with lane_pool(HOST, stats=stats) as pool:
                asked = asyncio.create_task(fetch(pool, host.url))
                for _ in range(iterations):
                    await asyncio.sleep(0)
            async with asyncio.timeout(5):
                with pytest.raises((ConnectError, ReadError)):
                    await asked

        await wait_until(
            lambda: stats.opened == stats.closed and not host.open, "the connections to be closed"
        )


@on_both_loops
async def test_connections_are_reused_for_their_own_host_and_port_only() -> None:
    """A request for another port opens a connection. A request for another host fails."""
    async with Host.serving() as host, Host.serving() as other, lane_pool(HOST) as pool:
        for url in (host.url, other.url, host.url):
            await fetch(pool, url)
        with pytest.raises(ForeignHostError, match=r"b\.example"):
            await fetch(pool, host.url.replace(HOST, "b.example"))

        assert (host.request_counts, other.request_counts) == ([2], [1])


@on_both_loops
async def test_a_refused_connection_is_a_connect_error() -> None:
    """The message has the cause."""
    with socket.create_server((HOST, 0)) as closed:
        port = closed.getsockname()[1]
    async with lane_pool(HOST) as pool:
        with pytest.raises(ConnectError, match=r"refused|Connect call failed"):
            await fetch(pool, f"http://{HOST}:{port}/")
