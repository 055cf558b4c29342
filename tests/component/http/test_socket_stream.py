"""A connection over its socket: one piece at a time, and nothing is lost, left over or left open."""

import asyncio
import functools
import inspect
import os
import socket
import ssl
import struct
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import httpcore2
import pytest
import uvloop

from fetchfleet.worker.http.httpx_engine.transport import LanePool
from fetchfleet.worker.http.net.socket_stream import READ_BYTES, SocketStream
from fetchfleet.worker.util import aio
from tests.support.waiting import wait_until

HOST = "127.0.79.1"
MUCH = os.urandom(3 * READ_BYTES)


Test = Callable[..., Coroutine[Any, Any, None]]


def on_both_loops(test: Test) -> Callable[..., None]:
    """Workers run on uvloop, what embeds them on whatever loop it has."""

    @functools.wraps(test)
    def runs(run: Callable[..., None], **given: Any) -> None:
        run(test(**given))

    takes = inspect.signature(test)
    run = inspect.Parameter("run", inspect.Parameter.KEYWORD_ONLY)
    runs.__signature__ = takes.replace(parameters=[*takes.parameters.values(), run])  # type: ignore[attr-defined]
    both: Callable[..., None] = pytest.mark.parametrize(
        "run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"]
    )(runs)
    return both


class Ends(NamedTuple):
    """Two sockets that are connected with each other; neither blocks."""

    ours: socket.socket
    theirs: socket.socket

    def line(self) -> SocketStream:
        """Over ours."""
        return SocketStream(self.ours, memoryview(bytearray(READ_BYTES)))

    def reset(self) -> None:
        """Theirs hangs up as a host does that has crashed."""
        self.theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.theirs.close()

    async def sends(self, data: bytes) -> None:
        """Theirs sends all of it, as ours takes it."""
        await asyncio.get_running_loop().sock_sendall(self.theirs, data)

    def drain(self) -> bytes:
        """What has come to theirs."""
        taken = b""
        with suppress(BlockingIOError, ConnectionResetError):
            while piece := self.theirs.recv(READ_BYTES):
                taken += piece
        return taken


@contextmanager
def connected() -> Iterator[Ends]:
    """A connection."""
    with socket.create_server((HOST, 0)) as server:
        ours = socket.create_connection(server.getsockname())
        theirs, _ = server.accept()
    for end in (ours, theirs):
        end.setblocking(False)  # noqa: FBT003 its argument
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # what is sent is there at once
    yield Ends(ours, theirs)
    ours.close()
    theirs.close()


@pytest.fixture
def ends() -> Iterator[Ends]:
    """A connection."""
    with connected() as ends:
        yield ends


@pytest.fixture
def two_ends() -> Iterator[tuple[Ends, Ends]]:
    """Two connections."""
    with connected() as first, connected() as second:
        yield first, second


async def turn() -> None:
    """Let the loop look at its sockets."""
    for _ in range(3):
        await asyncio.sleep(0)


@on_both_loops
async def test_a_line_brings_all_that_was_sent_and_then_its_end(ends: Ends) -> None:
    """In pieces that are no larger than one is to be; the end comes again and again."""
    line = ends.line()
    sending = asyncio.create_task(ends.sends(MUCH))
    sending.add_done_callback(lambda _: ends.theirs.shutdown(socket.SHUT_WR))

    pieces = []
    while piece := await line.read(1, timeout=10):
        pieces.append(piece)
    await sending

    assert MUCH == b"".join(pieces)
    assert READ_BYTES >= max(map(len, pieces))
    assert b"" == await line.read(1, timeout=10)
    await line.aclose()


@on_both_loops
async def test_nothing_is_taken_from_the_kernel_before_somebody_reads(ends: Ends) -> None:
    """Neither before the first piece nor between two: the host is held up instead."""
    line = ends.line()
    for sent in (b"one", b"two"):
        ends.theirs.send(sent)
        await turn()
        assert sent == ends.ours.recv(READ_BYTES, socket.MSG_PEEK)
        assert sent == await line.read(1, timeout=10)

    reading = asyncio.create_task(line.read(1, timeout=10))
    await turn()
    ends.theirs.send(b"three")
    assert b"three" == await reading
    ends.theirs.send(b"four")
    await turn()
    assert b"four" == ends.ours.recv(READ_BYTES, socket.MSG_PEEK)
    await line.aclose()


async def an_answer(ends: Ends, line: SocketStream) -> None:
    """Comes, and is read."""
    reading = asyncio.create_task(line.read(1, timeout=10))
    await turn()
    ends.theirs.send(b"an answer")
    await reading


@on_both_loops
async def test_what_is_with_the_kernel_alone_is_seen(ends: Ends) -> None:
    """The loop has not looked since it came, also where it would have told."""
    line = ends.line()
    await an_answer(ends, line)
    assert not line.get_extra_info("unread")
    assert not line.get_extra_info("is_readable")

    ends.theirs.send(b"HTTP/1.1 408 Request Timeout\r\n\r\n")

    assert line.get_extra_info("unread")
    await wait_until(lambda: line.get_extra_info("is_readable"), "the loop to look")
    await line.aclose()


@pytest.mark.parametrize("how", ["end", "reset"])
@on_both_loops
async def test_a_host_that_hangs_up_while_nobody_reads_is_seen(ends: Ends, how: str) -> None:
    """Whether it says so or has crashed; the reader is told which."""
    line = ends.line()
    await an_answer(ends, line)

    ends.reset() if how == "reset" else ends.theirs.close()

    assert line.get_extra_info("unread")
    await wait_until(lambda: line.get_extra_info("is_readable"), "the loop to look")
    if how == "reset":
        for _ in range(2):
            with pytest.raises(httpcore2.ReadError):
                await line.read(1, timeout=10)
    else:
        assert b"" == await line.read(1, timeout=10)
    assert line.get_extra_info("is_readable")
    await line.aclose()


@on_both_loops
async def test_a_reset_ends_a_read_that_waits(ends: Ends) -> None:
    """At once, with the error that it is."""
    line = ends.line()
    reading = asyncio.create_task(line.read(1, timeout=10))
    await turn()

    ends.reset()

    with pytest.raises(httpcore2.ReadError, match="reset"):
        await reading
    await line.aclose()


@on_both_loops
async def test_a_read_gives_up_in_time_and_takes_nothing_along(ends: Ends) -> None:
    """What comes later is the next reader's."""
    line = ends.line()
    with pytest.raises(httpcore2.ReadTimeout):
        await line.read(1, timeout=0.01)

    ends.theirs.send(b"late")

    assert b"late" == await line.read(1, timeout=10)
    await line.aclose()


@on_both_loops
async def test_a_read_that_is_cancelled_leaves_nothing_behind(ends: Ends) -> None:
    """What had come for it is still there, and the line can be closed."""
    line = ends.line()
    reading = asyncio.create_task(line.read(1, timeout=10))
    await turn()
    ends.theirs.send(b"an answer")
    await aio.end(reading)

    assert line.get_extra_info("unread")
    assert b"an answer" == await line.read(1, timeout=10)
    await line.aclose()
    assert b"" == await asyncio.get_running_loop().sock_recv(ends.theirs, 1)


@on_both_loops
async def test_a_piece_that_came_as_its_reader_was_cancelled_is_not_lost(ends: Ends) -> None:
    """It waits in the line, which is not taken for idle."""
    line = ends.line()
    reading = asyncio.create_task(line.read(1, timeout=10))
    await turn()
    ends.theirs.send(b"an answer")
    with suppress(BlockingIOError):
        while ends.ours.recv(1, socket.MSG_PEEK):  # noqa: ASYNC110 until the line has it, and no later
            await asyncio.sleep(0)
    reading.cancel()
    await asyncio.wait([reading])
    assert reading.cancelled()

    assert line.get_extra_info("is_readable")
    assert b"an answer" == await line.read(1, timeout=10)
    await line.aclose()


@on_both_loops
async def test_a_write_goes_on_as_the_host_takes_it(ends: Ends) -> None:
    """All of it arrives, however little fits at once."""
    line, arrived = ends.line(), bytearray()
    writing = asyncio.create_task(line.write(MUCH * 10, timeout=10))

    async def all_there() -> bool:
        arrived.extend(ends.drain())
        return len(arrived) == len(MUCH) * 10

    await wait_until(all_there, "all that was sent", every_s=0)
    await writing

    assert MUCH * 10 == arrived
    await line.aclose()


@pytest.mark.parametrize("how", ["late", "cancelled"])
@on_both_loops
async def test_a_write_that_nobody_takes_is_given_up(ends: Ends, how: str) -> None:
    """In its time, or when it is cancelled; the loop is not left asking, and the line can be closed."""
    line = ends.line()
    if how == "late":
        with pytest.raises(httpcore2.WriteTimeout):
            await line.write(MUCH * 10, timeout=0.05)
    else:
        writing = asyncio.create_task(line.write(MUCH * 10, timeout=10))
        await turn()
        await aio.end(writing)
        assert writing.cancelled()

    assert not asyncio.get_running_loop().remove_writer(ends.ours.fileno())
    await line.aclose()


@on_both_loops
async def test_what_a_host_said_before_it_closed_can_be_read_after_a_write_that_failed(ends: Ends) -> None:
    """It did not want the rest of the body, and has answered."""
    line = ends.line()
    ends.theirs.send(b"HTTP/1.1 413 Content Too Large\r\n\r\n")
    ends.theirs.close()

    await line.write(b"x", timeout=10)  # the host answers with a reset
    with pytest.raises(httpcore2.WriteError):
        await line.write(b"x", timeout=10)

    assert (await line.read(1, timeout=10)).startswith(b"HTTP/1.1 413")
    await line.aclose()


@on_both_loops
async def test_closing_ends_what_waits_and_frees_the_socket(ends: Ends) -> None:
    """Once and for all; the number of the socket may be another connection's from then on."""
    line = ends.line()
    reading = asyncio.create_task(line.read(1, timeout=10))
    writing = asyncio.create_task(line.write(MUCH * 10, timeout=10))
    await turn()

    await line.aclose()
    await line.aclose()

    assert ends.ours.fileno() == -1
    with pytest.raises(httpcore2.ReadError):
        await reading
    with pytest.raises(httpcore2.WriteError):
        await writing
    with pytest.raises(httpcore2.ReadError):
        await line.read(1, timeout=10)
    assert line.get_extra_info("is_readable")
    assert line.get_extra_info("unread")


@on_both_loops
async def test_a_connection_that_was_reset_meanwhile_is_none(ends: Ends) -> None:
    """Its socket is closed."""
    ends.reset()

    with pytest.raises(OSError, match="not connected"):
        ends.line()

    assert ends.ours.fileno() == -1


@on_both_loops
async def test_a_line_says_whose_it_is(ends: Ends) -> None:
    """Its host's address, its socket, and that it speaks no TLS."""
    line = ends.line()

    assert ends.theirs.getsockname() == line.get_extra_info("server_addr")
    assert ends.ours is line.get_extra_info("socket")
    assert None is line.get_extra_info("ssl_object")
    await line.aclose()


class Dials(httpcore2.AsyncMockBackend):
    """Has lines to give, one after the other."""

    def __init__(self, *lines: SocketStream) -> None:
        self._lines = list(lines)

    async def connect_tcp(self, *_: Any, **__: Any) -> httpcore2.AsyncNetworkStream:
        """The next."""
        return self._lines.pop(0)


async def answered(pool: LanePool, ends: Ends) -> bytes:
    """What the host at these ends was asked, having answered it."""
    asking = asyncio.create_task(pool.request("POST", "http://a.example/", content=b""))
    await turn()
    ends.theirs.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    assert (await asking).status == 200
    return ends.drain()


@pytest.mark.parametrize("said", [b"HTTP/1.1 408 Request Timeout\r\n\r\n", b""], ids=["something", "the end"])
@on_both_loops
async def test_no_request_goes_out_on_a_connection_on_which_its_host_spoke_unasked(
    two_ends: tuple[Ends, Ends], said: bytes
) -> None:
    """Though the loop has not looked since: a POST on a dead connection could not be made again."""
    first, second = two_ends
    async with LanePool(Dials(first.line(), second.line()), ssl.create_default_context) as pool:
        assert await answered(pool, first)
        assert await answered(pool, first)

        if said:
            first.theirs.send(said)
        else:
            first.theirs.shutdown(socket.SHUT_WR)

        assert await answered(pool, second)
        assert not first.drain()
        assert first.ours.fileno() == -1
