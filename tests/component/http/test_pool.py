"""The connections of a lane over HTTP/1.1: which one a request takes, and that none is left over."""

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
from tests.support.loops import on_both_loops
from tests.support.waiting import wait_until
from tests.support.wire import fetch, lane_pool, request_to

HOST = "127.0.79.4"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Line:
    """One connection, as the host has it."""

    def __init__(self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.number = number
        self.reader = reader
        self.writer = writer
        self.requests: list[bytes] = []
        self.gone = False

    def reset(self) -> None:
        """Hang up as a host does that has crashed."""
        line = self.writer.get_extra_info("socket")
        line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


Answer = Callable[[Line], Awaitable[None]]


async def ok(line: Line) -> None:
    """Respond."""
    line.writer.write(OK)


class Host:
    """Serves connections; each request is answered by `answer`."""

    def __init__(self) -> None:
        self.answer: Answer = ok
        self.lines: list[Line] = []
        self.url = ""
        self._serving: set[asyncio.Task[None]] = set()

    @classmethod
    @asynccontextmanager
    async def serving(cls) -> AsyncIterator["Host"]:
        """A host that answers "ok" until it is told otherwise."""
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
        """The number of open connections."""
        return sum(not line.gone for line in self.lines)

    @property
    def asked(self) -> list[int]:
        """The number of requests on each connection."""
        return [len(line.requests) for line in self.lines]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._serving.add(asyncio.current_task())  # type: ignore[arg-type]
        line = Line(len(self.lines), reader, writer)
        self.lines.append(line)
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                while True:
                    line.requests.append(await reader.readuntil(b"\r\n\r\n"))
                    await self.answer(line)
        finally:
            line.gone = True
            writer.close()


async def silent(line: Line) -> None:
    """Say nothing."""
    await line.reader.read()


@on_both_loops
async def test_the_connection_that_was_used_last_is_used_again() -> None:
    """The others fall idle, and expire, when fewer are needed."""
    stats = ConnectionStats()
    async with Host.serving() as host, lane_pool(HOST, stats=stats) as pool:
        assert await asyncio.gather(*(fetch(pool, host.url) for _ in range(3))) == [b"ok"] * 3
        for _ in range(4):
            await fetch(pool, host.url)

        assert sorted(host.asked) == [1, 1, 5]
        assert (stats.opened, stats.reused) == (3, 4)
    assert (stats.opened, stats.closed) == (3, 3)


@on_both_loops
async def test_no_more_connections_stay_idle_than_the_lane_may_use() -> None:
    """Those that have been idle for longest are closed."""
    async with Host.serving() as host, lane_pool(HOST, max_idle=2) as pool:
        await asyncio.gather(*(fetch(pool, host.url) for _ in range(5)))

        await wait_until(lambda: host.open == 2, "the others to be closed")


@on_both_loops
async def test_an_idle_connection_expires() -> None:
    """No further request is needed for that."""
    async with Host.serving() as host, lane_pool(HOST, keepalive_s=0.02) as pool:
        await fetch(pool, host.url)
        await wait_until(lambda: not host.open, "the connection to be closed")
        await fetch(pool, host.url)

    assert host.asked == [1, 1]


@pytest.mark.parametrize("said", [b"HTTP/1.1 408 Request Timeout\r\n\r\n", b""], ids=["something", "the end"])
@on_both_loops
async def test_no_request_goes_out_on_a_connection_on_which_its_host_spoke_unasked(said: bytes) -> None:
    """Though the loop has not looked since: a POST on a dead connection could not be made again."""
    async with Host.serving() as host, lane_pool(HOST) as pool:
        await fetch(pool, host.url, "POST", b"")
        await fetch(pool, host.url, "POST", b"")
        theirs = host.lines[0].writer.get_extra_info("socket").dup()
        theirs.send(said) if said else theirs.shutdown(socket.SHUT_WR)
        theirs.close()
        await fetch(pool, host.url, "POST", b"")

    assert host.asked == [2, 1]


@pytest.mark.parametrize("end", ["end", "reset"])
@on_both_loops
async def test_a_request_on_a_connection_that_the_host_closes_meanwhile_is_repeated_if_it_may_be(
    end: str,
) -> None:
    """Once, on a new connection; the other idle ones are closed, and a POST has failed."""

    async def closes(line: Line) -> None:
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

        assert sorted(host.asked) == [1, 1, 1, 2]
        assert request.trace.opened
        await wait_until(lambda: host.open == 1, "the idle ones to be closed")

        host.answer = ok
        await fetch(pool, host.url)
        host.answer = closes
        with pytest.raises((ReadError, RemoteProtocolError)):
            await fetch(pool, host.url, "POST", b"")
        assert sorted(host.asked) == [1, 1, 2, 3]


@on_both_loops
async def test_the_wait_of_a_repeated_request_is_counted_once() -> None:
    """It waits for its first connection only."""
    stats = ConnectionStats()

    async def closes(line: Line) -> None:
        if len(line.requests) > 1:
            line.writer.close()
        else:
            await ok(line)

    async with Host.serving() as host, lane_pool(HOST, stats=stats) as pool:
        host.answer = closes
        await fetch(pool, host.url)
        stats.pool_wait_s.taken()
        assert await fetch(pool, host.url) == b"ok"

        assert host.asked == [2, 1]
        assert len(stats.pool_wait_s.taken()) == 1


@pytest.mark.parametrize("end", ["end", "reset"])
@on_both_loops
async def test_a_request_on_a_new_connection_is_not_repeated(end: str) -> None:
    """The host got it, and failed; nor is one to which a part of a response came."""

    async def fails(line: Line) -> None:
        line.reset() if end == "reset" else line.writer.close()

    async def begins(line: Line) -> None:
        line.writer.write(b"HTTP/1.1 2")
        await line.writer.drain()
        await asyncio.sleep(0.01)  # else the reset discards it
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

    assert host.asked == [1, 2]


@on_both_loops
async def test_a_host_that_hangs_up_or_speaks_at_once_is_no_wait() -> None:
    """Before a request could go out: the exchange fails as soon as it is known."""
    with socket.create_server((HOST, 0)) as listening:
        url = f"http://{HOST}:{listening.getsockname()[1]}/"

        async def turns_away(how: str) -> None:
            theirs, _ = await asyncio.get_running_loop().sock_accept(listening)
            if how == "reset":
                theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            elif how == "speaks":
                theirs.send(b"220 smtp.example ESMTP\r\n")
            theirs.close()

        listening.setblocking(False)  # noqa: FBT003 its argument
        async with lane_pool(HOST) as pool:
            for how in ("reset", "end", "speaks"):
                turning = asyncio.create_task(turns_away(how))
                async with asyncio.timeout(5):
                    with pytest.raises((ReadError, RemoteProtocolError, ConnectError)):
                        await fetch(pool, url)
                await turning


@on_both_loops
async def test_an_exchange_that_is_cancelled_leaves_no_connection() -> None:
    """In whichever iteration of the loop; and what is counted as opened is counted as closed."""
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
async def test_a_lane_that_closes_leaves_no_connection() -> None:
    """Idle or in use; what runs on them fails, and nothing is dialled any more."""
    stats = ConnectionStats()
    async with Host.serving() as host:
        async with lane_pool(HOST, stats=stats) as pool:
            await asyncio.gather(*(fetch(pool, host.url) for _ in range(3)))
            host.answer = silent
            running = [asyncio.create_task(fetch(pool, host.url)) for _ in range(2)]
            await wait_until(lambda: sum(host.asked) == 5, "the requests")
        results = await asyncio.gather(*running, return_exceptions=True)

        assert [type(result) for result in results] == [ReadError] * 2
        assert (stats.opened, stats.closed) == (3, 3)
        await wait_until(lambda: not host.open, "closed connections")


@on_both_loops
async def test_a_lane_that_closes_during_a_dial_leaves_no_connection() -> None:
    """In whichever iteration of the loop."""
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
async def test_connections_are_used_for_their_port_and_their_host_alone() -> None:
    """A request for another host or port does not get them."""
    async with Host.serving() as host, Host.serving() as other, lane_pool(HOST) as pool:
        for url in (host.url, other.url, host.url):
            await fetch(pool, url)
        with pytest.raises(ForeignHostError, match=r"b\.example"):
            await fetch(pool, host.url.replace(HOST, "b.example"))

        assert (host.asked, other.asked) == ([2], [1])


@on_both_loops
async def test_a_host_that_refuses_connections_is_said_so() -> None:
    """Nothing was sent."""
    with socket.create_server((HOST, 0)) as closed:
        port = closed.getsockname()[1]
    async with lane_pool(HOST) as pool:
        with pytest.raises(ConnectError, match=r"refused|Connect call failed"):
            await fetch(pool, f"http://{HOST}:{port}/")
