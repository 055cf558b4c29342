"""Whether an idle connection can be used again: what has come on it, as loop and kernel know it."""

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest

from fetchfleet.worker.http.net.socket_stream import READ_BYTES, SocketStream
from tests.support.waiting import wait_until

HOST = "127.0.78.1"

Ends = tuple[SocketStream, asyncio.StreamWriter]


@pytest.fixture
async def ends() -> AsyncIterator[Ends]:
    """Both ends of a connection that nothing has come on."""
    arrived: asyncio.Future[asyncio.StreamWriter] = asyncio.get_running_loop().create_future()

    async def arrives(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        arrived.set_result(writer)

    async with await asyncio.start_server(arrives, HOST) as server:
        port = server.sockets[0].getsockname()[1]
        connected = socket.create_connection((HOST, port))
        connected.setblocking(False)  # noqa: FBT003 its argument
        ours = SocketStream(connected, memoryview(bytearray(READ_BYTES)))
        theirs = await arrived
        yield ours, theirs
        await ours.aclose()
        theirs.close()
        await theirs.wait_closed()


def unread(ours: SocketStream) -> bool:
    """What httpcore2 asks of an idle connection."""
    found: bool = ours.get_extra_info("is_readable")
    return found


async def test_what_has_come_unasked_is_seen(ends: Ends) -> None:
    """Nothing has; then something."""
    ours, theirs = ends
    assert not unread(ours)

    theirs.write(b"HTTP/1.1 408 Request Timeout\r\n\r\n")

    await wait_until(lambda: unread(ours), "what was sent")


async def test_a_host_that_has_hung_up_is_seen(ends: Ends) -> None:
    """Its end of the connection is all that comes."""
    ours, theirs = ends

    theirs.close()

    await wait_until(lambda: unread(ours), "the end")


async def test_a_connection_that_we_closed_is_never_taken_for_idle(ends: Ends) -> None:
    """Its number may be another connection's by now."""
    ours, _ = ends

    await ours.aclose()

    assert unread(ours)


async def test_what_else_is_asked_is_answered_by_the_connection_below(ends: Ends) -> None:
    """Its host, and that it speaks no TLS."""
    ours, _ = ends

    assert HOST == ours.get_extra_info("server_addr")[0]
    assert None is ours.get_extra_info("ssl_object")
