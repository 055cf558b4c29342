"""A connection of HTTP/1.1 at its bytes: against a host that sends and takes what a test says."""

import asyncio
import socket
import struct
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from msgspec.structs import replace

from fetchfleet.worker.errors import (
    FirstByteTimeoutError,
    InvalidRequestError,
    ReadError,
    ReadTimeoutError,
    RemoteProtocolError,
    WriteTimeoutError,
)
from fetchfleet.worker.http.exchange import Request, Trace
from fetchfleet.worker.http.http1.connection import MAX_UNREAD_BYTES, Http1Connection, Http1Response
from fetchfleet.worker.http.request_body import Blocks
from fetchfleet.worker.policy.model import Timeouts
from fetchfleet.worker.util import aio
from fetchfleet.worker.util.aio import LoopBudget
from tests.support.loops import on_both_loops
from tests.support.waiting import wait_until

HOST = "127.0.79.1"
PATIENT = Timeouts(connect_s=10, read_s=10, write_s=10, pool_s=10, total_s=60)
HASTY = replace(PATIENT, read_s=0.02, write_s=0.02)
OK = b"HTTP/1.1 200 OK\r\n"
SMALL = OK + b"Content-Length: 2\r\n\r\nok"
CLOSING = OK + b"Connection: close\r\n\r\n"
MUCH = 8 * MAX_UNREAD_BYTES


class Wakeups(LoopBudget):
    """Resolves at once, or later if it is held."""

    def __init__(self) -> None:
        super().__init__()
        self.held = False
        self.waiting: list[asyncio.Future[None]] = []

    def resolve(self, turn: asyncio.Future[None]) -> None:
        """Resolve the future, or keep it."""
        if self.held:
            self.waiting.append(turn)
        else:
            super().resolve(turn)


class Ends:
    """Both ends of a connection: ours, and the socket of the host."""

    def __init__(self, host: socket.socket, keepalive_s: float) -> None:
        self.host = host
        self.keepalive_s = keepalive_s
        self.idle: list[Http1Connection] = []
        self.lost: list[Http1Connection] = []
        self.wakeups = Wakeups()
        self.ours: Http1Connection

    def protocol(self) -> Http1Connection:
        """Make our end."""
        self.ours = Http1Connection(self.wakeups, self.keepalive_s, self.idle.append, self.lost.append)
        return self.ours

    def send(self, data: bytes) -> None:
        """Send a little, which the kernel takes at once."""
        assert self.host.send(data) == len(data)

    async def send_all(self, data: bytes) -> None:
        """Send all of it, as our end takes it."""
        await asyncio.get_running_loop().sock_sendall(self.host, data)

    async def receive(self, until: bytes = b"\r\n\r\n") -> bytes:
        """Return what comes up to `until`; all of it if that is empty."""
        received = b""
        while not until or until not in received:
            piece = await asyncio.get_running_loop().sock_recv(self.host, 1 << 16)
            received += piece
            if not piece:
                break
        return received

    def reset(self) -> None:
        """Hang up as a host that has crashed."""
        self.host.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.host.close()

    def ask(self, **request: Any) -> asyncio.Task[Http1Response]:
        """Begin an exchange."""
        return asyncio.create_task(self.ours.exchange(request_of(**request)))

    async def answered(self, response: bytes, **request: Any) -> Http1Response:
        """Make an exchange that the host answers with these bytes."""
        asking = self.ask(**request)
        await self.receive()
        await self.send_all(response)
        return await asking


def request_of(
    method: str = "GET",
    content: Blocks | None = None,
    timeouts: Timeouts = PATIENT,
    headers: tuple[tuple[bytes, bytes], ...] = ((b"Host", b"a.example"),),
    target: bytes = b"/x?y",
) -> Request:
    """Return a request."""
    return Request(
        method=method,
        scheme="http",
        host="a.example",
        port=80,
        target=target,
        headers=headers,
        content=content,
        timeouts=timeouts,
        trace=Trace(),
    )


@asynccontextmanager
async def connected(keepalive_s: float = 30) -> AsyncIterator[Ends]:
    """Connect our end with a host."""
    with socket.create_server((HOST, 0)) as server:
        ours = socket.create_connection(server.getsockname())
        theirs, _ = server.accept()
    for end in (ours, theirs):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        end.setblocking(False)  # noqa: FBT003 its argument
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # what is sent is there at once
    ends = Ends(theirs, keepalive_s)
    await asyncio.get_running_loop().create_connection(ends.protocol, sock=ours)
    try:
        yield ends
    finally:
        ends.ours.close()
        theirs.close()
        await wait_until(lambda: ends.lost == [ends.ours], "the connection's end")
        await wait_until(lambda: ours.fileno() == -1, "the socket's end")


async def body_of(response: Http1Response) -> bytes:
    """Return all of it."""
    body = b""
    while piece := await response.read():
        body += piece
    return body


@on_both_loops
async def test_exchanges_follow_each_other_on_a_connection() -> None:
    """Each request as it was given, each response to its own request."""
    async with connected() as ends:
        for number in range(3):
            asking = ends.ask(headers=((b"Host", b"a.example"), (b"X-Number", b"%d" % number)))
            sent = await ends.receive()
            assert sent == b"GET /x?y HTTP/1.1\r\nHost: a.example\r\nX-Number: %d\r\n\r\n" % number
            ends.send(OK + b"X: y\r\nContent-Length: 1\r\n\r\n%d" % number)
            response = await asking
            assert (response.status, response.phrase, response.version) == (200, b"OK", "HTTP/1.1")
            assert (response.headers, response.lenient) == ([(b"X", b"y"), (b"Content-Length", b"1")], False)
            assert response.address == HOST
            assert await body_of(response) == b"%d" % number
            assert response.ended
            assert not ends.ours.usable
            response.close()
            response.close()
            assert len(ends.idle) == number + 1
            assert ends.ours.usable


@on_both_loops
async def test_a_response_whose_end_has_come_need_not_be_read() -> None:
    """Nothing of it is left on the connection."""
    async with connected() as ends:
        response = await ends.answered(SMALL)
        response.close()

        assert ends.ours.usable
        assert await body_of(await ends.answered(SMALL)) == b"ok"


@on_both_loops
async def test_a_response_that_is_given_up_ends_its_connection() -> None:
    """The host sees the end at once."""
    async with connected() as ends:
        response = await ends.answered(SMALL[:-1])
        response.close()

        assert await ends.receive(b"") == b""
        assert not ends.ours.usable
        assert not ends.idle


@on_both_loops
async def test_nothing_is_lost_of_a_body_that_nobody_reads_and_memory_is_bounded() -> None:
    """The host is held up instead."""
    async with connected() as ends:
        asking = ends.ask()
        await ends.receive()
        ends.send(OK + b"Content-Length: %d\r\n\r\n" % (MUCH))
        response = await asking
        sending = asyncio.create_task(ends.send_all(bytes(MUCH)))
        reader = response._reader
        await wait_until(lambda: reader.held_bytes > MAX_UNREAD_BYTES, "the bound")
        for _ in range(20):
            await asyncio.sleep(0)
        assert reader.held_bytes <= 2 * MAX_UNREAD_BYTES
        assert not sending.done()

        assert len(await body_of(response)) == MUCH
        await sending
        response.close()
        assert ends.ours.usable


@on_both_loops
async def test_a_body_is_received_into_a_room_up_to_its_end_and_no_further() -> None:
    """What comes behind it makes the connection unusable, as it does elsewhere."""
    async with connected() as ends:
        response = await ends.answered(OK + b"Content-Length: 6\r\n\r\n")
        block = bytearray(b"-" * 10)
        ends.send(b"body")
        first = await response.receive(lambda: memoryview(block))
        ends.send(b"ok" + b"HTTP/1.1 200 OK")
        second = await response.receive(lambda: memoryview(block)[4:])

        assert isinstance(first, memoryview)
        assert isinstance(second, memoryview)
        assert (first.obj, second.obj, bytes(block)) == (block, block, b"bodyok----")
        assert response.ended
        assert await response.receive(lambda: memoryview(block)) == b""
        response.close()
        assert not ends.ours.usable
        await wait_until(lambda: ends.lost, "the connection's end")


@on_both_loops
async def test_a_connection_is_used_again_after_a_body_received_into_a_room() -> None:
    """The next response is read as the first was, head and body."""
    async with connected() as ends:
        room = memoryview(bytearray(10))
        for method in ("read", "receive"):
            response = await ends.answered(OK + b"Content-Length: 5\r\n\r\nab")
            ends.send(b"cde")
            body = b""
            while piece := await (response.read() if method == "read" else response.receive(lambda: room)):
                body += piece
            assert body == b"abcde"
            response.close()
            assert ends.ours.usable


@pytest.mark.parametrize("framing", [b"Content-Length: 4", b"X: until the end of the connection"])
@on_both_loops
async def test_what_came_into_a_room_before_the_end_or_an_error_is_received_first(framing: bytes) -> None:
    """The connection's end is no error of a body without a length."""
    async with connected() as ends:
        response = await ends.answered(OK + framing + b"\r\n\r\n")
        reading = asyncio.create_task(response.receive(lambda: memoryview(bytearray(10))))
        await asyncio.sleep(0)
        ends.send(b"abc")
        ends.host.shutdown(socket.SHUT_WR)

        assert await reading == b"abc"
        if framing.startswith(b"X"):
            assert await response.receive(lambda: memoryview(bytearray(10))) == b""
        else:
            with pytest.raises(RemoteProtocolError, match="1 bytes before the end"):
                await response.receive(lambda: memoryview(bytearray(10)))


@on_both_loops
async def test_a_room_that_was_given_up_is_not_filled() -> None:
    """A cancelled reader may use its memory for something else; the bytes are there for the next one."""
    async with connected() as ends:
        response = await ends.answered(OK + b"Content-Length: 4\r\n\r\n")
        block = bytearray(b"----")
        reading = asyncio.create_task(response.receive(lambda: memoryview(block)))
        await asyncio.sleep(0)
        reading.cancel()
        await asyncio.wait([reading])
        ends.send(b"body")
        await wait_until(lambda: response._reader.complete, "the body")

        assert await body_of(response) == b"body"
        assert block == b"----"
        response.close()
        assert ends.ours.usable


@on_both_loops
async def test_chunks_are_not_received_into_a_room() -> None:
    """Their sizes lie between them; no memory is asked for."""
    async with connected() as ends:
        response = await ends.answered(OK + b"Transfer-Encoding: chunked\r\n\r\n")
        asked: list[None] = []

        def room() -> None:
            asked.append(None)

        ends.send(b"2\r\nok\r\n0\r\n\r\n")

        assert await response.receive(room) == b"ok"
        assert await response.receive(room) == b""
        assert not asked
        response.close()
        assert ends.ours.usable


@on_both_loops
async def test_nothing_is_received_between_two_rooms() -> None:
    """The host is held up as soon as the kernel's buffers are full: a slow disk costs no memory."""
    async with connected() as ends:
        response = await ends.answered(OK + b"Content-Length: %d\r\n\r\n" % MUCH)
        sending = asyncio.create_task(ends.send_all(bytes(MUCH)))
        received_bytes = len(await response.receive(lambda: memoryview(bytearray(100))))
        for _ in range(20):
            await asyncio.sleep(0)
        assert received_bytes == 100
        assert not response._reader.pieces
        assert not sending.done()

        room = memoryview(bytearray(100_000))
        while piece := await response.receive(lambda: room):
            received_bytes += len(piece)
        assert received_bytes == MUCH
        await sending


@on_both_loops
async def test_many_small_pieces_are_held_up_too() -> None:
    """Each costs more memory than its bytes."""
    async with connected() as ends:
        response = await ends.answered(OK + b"Content-Length: 100000\r\n\r\n")
        for _ in range(2000):
            ends.host.send(b"x")
            await asyncio.sleep(0)
        assert len(response._reader.pieces) < 300
        response.close()


@pytest.mark.parametrize("said", [b"HTTP/1.1 408 Request Timeout\r\n\r\n", b""], ids=["something", "the end"])
@on_both_loops
async def test_what_only_the_kernel_knows_makes_an_idle_connection_unusable(said: bytes) -> None:
    """Though the loop has not looked since; when it looks, the connection is closed."""
    async with connected() as ends:
        (await ends.answered(SMALL)).close()
        assert ends.ours.usable

        if said:
            ends.send(said)
        else:
            ends.host.shutdown(socket.SHUT_WR)

        assert not ends.ours.usable
        await wait_until(lambda: ends.lost, "the connection's end")


@on_both_loops
async def test_a_reset_ends_an_idle_connection() -> None:
    """And is no error to anyone."""
    async with connected() as ends:
        (await ends.answered(SMALL)).close()
        ends.reset()

        assert not ends.ours.usable
        await wait_until(lambda: ends.lost, "the connection's end")


@on_both_loops
async def test_an_idle_connection_is_closed_in_time() -> None:
    """Also before its timer has run."""
    async with connected(keepalive_s=0.01) as ends:
        (await ends.answered(SMALL)).close()
        await wait_until(lambda: ends.lost, "the connection's end")

        assert not ends.ours.usable
        assert await ends.receive(b"") == b""


@on_both_loops
async def test_the_time_of_an_idle_connection_does_not_count_for_a_slow_disk() -> None:
    """The next request begins while it is idle, and reads its content for longer than that."""

    class Slow(Blocks):
        async def __aiter__(self) -> AsyncGenerator[bytes, None]:
            await asyncio.sleep(0.1)
            yield b"x"

    async with connected(keepalive_s=0.05) as ends:
        (await ends.answered(SMALL)).close()
        asking = ends.ask(method="POST", content=Slow(b"x"))
        assert (await ends.receive()).startswith(b"POST")
        ends.send(SMALL)
        (await asking).close()


@on_both_loops
async def test_bytes_behind_a_response_end_its_connection() -> None:
    """They may come before the response is closed, or after."""
    async with connected() as ends:
        response = await ends.answered(SMALL + SMALL)
        assert await body_of(response) == b"ok"
        response.close()
        assert not ends.ours.usable
    async with connected() as ends:
        response = await ends.answered(SMALL)
        ends.send(SMALL)
        await wait_until(lambda: not response._reader.reusable, "the second response")
        response.close()
        assert not ends.ours.usable


@pytest.mark.parametrize(
    ("response", "error"),
    [
        (b"", RemoteProtocolError),
        (b"", ReadError),
        (b"HTTP/1.1 2", RemoteProtocolError),
        (b"HTTP/1.1 2", ReadError),
    ],
)
@on_both_loops
async def test_a_connection_that_ends_without_a_response_tells_whether_any_byte_had_come(
    response: bytes, error: type[Exception]
) -> None:
    """If none had, the request may be sent again; bytes of an earlier response do not count."""
    async with connected() as ends:
        (await ends.answered(SMALL)).close()
        asking = ends.ask()
        await ends.receive()
        if response:
            ends.send(response)
            await wait_until(lambda: ends.ours.heard, "the bytes")
        ends.reset() if error is ReadError else ends.host.close()

        with pytest.raises(error):
            await asking

        assert ends.ours.heard is (response != b"")
        assert not ends.ours.usable


@pytest.mark.parametrize("error", [RemoteProtocolError, ReadError], ids=["end", "reset"])
@on_both_loops
async def test_a_body_that_breaks_off_is_read_as_far_as_it_came(error: type[Exception]) -> None:
    """Then the error is raised, again and again."""
    async with connected() as ends:
        response = await ends.answered(OK + b"Content-Length: 9\r\n\r\nok")
        ends.reset() if error is ReadError else ends.host.close()
        await wait_until(lambda: ends.lost, "the connection's end")

        assert await response.read() == b"ok"
        for _ in range(2):
            with pytest.raises(error):
                await response.read()
        assert not response.ended
        response.close()
        assert not ends.idle


@on_both_loops
async def test_the_end_of_a_connection_ends_a_body_without_length() -> None:
    """The connection is not used again."""
    async with connected() as ends:
        response = await ends.answered(CLOSING + b"ok")
        assert await response.read() == b"ok"
        ends.send(b"more")
        assert await response.read() == b"more"
        assert not response.ended
        ends.host.close()
        assert await response.read() == b""
        assert response.ended
        response.close()
        assert not ends.idle


@on_both_loops
async def test_what_a_host_sent_before_it_hung_up_is_read_when_the_rest_cannot_be_sent() -> None:
    """It did not want the rest of the request, and said so."""
    async with connected() as ends:
        asking = ends.ask(method="POST", content=Blocks(bytes(MUCH)))
        await ends.receive()
        ends.send(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 2\r\n\r\nno")
        ends.host.close()

        response = await asking

        assert (response.status, await body_of(response)) == (413, b"no")
        response.close()
        assert not ends.idle


@on_both_loops
async def test_what_came_is_read_after_a_write_that_failed() -> None:
    """The kernel has it, though the loop has given up the connection."""
    async with connected() as ends:
        (await ends.answered(SMALL)).close()
        ends.send(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 2\r\n\r\nno")
        ends.reset()

        response = await ends.ours.exchange(request_of(method="POST", content=Blocks(b"x")))

        assert (response.status, await body_of(response)) == (413, b"no")
        response.close()
        assert len(ends.idle) == 1
        assert not ends.ours.usable


@on_both_loops
async def test_a_request_with_content_is_sent_whole_and_its_connection_used_again() -> None:
    """A small one in one piece."""
    async with connected() as ends:
        for size_bytes in (0, 10, MUCH):
            asking = ends.ask(method="PUT", content=Blocks(bytes(size_bytes)))
            received = b""
            while len(received.partition(b"\r\n\r\n")[2]) < size_bytes or not received:
                received += await asyncio.get_running_loop().sock_recv(ends.host, 1 << 20)
            ends.send(SMALL)
            response = await asking
            assert await body_of(response) == b"ok"
            response.close()
            assert ends.ours.usable


@on_both_loops
async def test_a_final_response_stops_an_upload() -> None:
    """The rest is not sent, and the connection not used again."""
    async with connected() as ends:
        asking = ends.ask(method="PUT", content=Blocks(bytes(MUCH)))
        await ends.receive()
        ends.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        await wait_until(lambda: ends.ours.heard, "the interim response")
        assert not asking.done()
        ends.send(SMALL)

        response = await asking

        assert await body_of(response) == b"ok"
        response.close()
        assert not ends.idle
        assert len(await ends.receive(b"")) < MUCH


@on_both_loops
async def test_a_host_that_takes_nothing_ends_an_upload_in_time() -> None:
    """The connection is closed."""
    async with connected() as ends:
        with pytest.raises(WriteTimeoutError, match=r"0\.02"):
            await ends.ours.exchange(request_of(method="PUT", content=Blocks(bytes(MUCH)), timeouts=HASTY))
        assert not ends.ours.usable


@on_both_loops
async def test_interim_responses_give_an_upload_no_more_time() -> None:
    """The host sends them all the time, and takes no more; the time for a response is long."""
    timeouts = replace(PATIENT, write_s=0.05)
    async with connected() as ends:
        asking = ends.ask(method="PUT", content=Blocks(bytes(MUCH)), timeouts=timeouts)
        await ends.receive()
        while not asking.done():
            ends.host.send(b"HTTP/1.1 100 Continue\r\n\r\n")
            await asyncio.sleep(0.005)

        with pytest.raises(WriteTimeoutError, match=r"0\.05"):
            await asking


@pytest.mark.parametrize(
    ("response", "error"),
    [(b"", FirstByteTimeoutError), (OK, ReadTimeoutError), (b"HTTP/1.1 100 OK\r\n\r\n", ReadTimeoutError)],
    ids=["nothing", "half a head", "an interim head"],
)
@on_both_loops
async def test_a_head_that_does_not_come_ends_the_exchange_in_time(
    response: bytes, error: type[Exception]
) -> None:
    """Also on a connection that has been used, whose timer is set for later."""
    async with connected() as ends:
        (await ends.answered(SMALL)).close()
        asking = ends.ask(timeouts=HASTY)
        await ends.receive()
        if response:
            ends.send(response)

        with pytest.raises(error, match=r"0\.02"):
            await asking

        assert not ends.ours.usable


@on_both_loops
async def test_each_piece_of_a_head_and_of_a_body_has_the_time_of_a_read() -> None:
    """Together they may take longer than that."""
    async with connected() as ends:
        loop = asyncio.get_running_loop()
        asking = ends.ask(timeouts=replace(PATIENT, read_s=0.2))
        await ends.receive()
        began_s = loop.time()
        for piece in (OK, b"Content-Length: 3\r\n", b"\r\n"):
            await asyncio.sleep(0.1)
            ends.send(piece)
        response = await asking
        for piece in (b"1", b"2", b"3"):
            reading = asyncio.create_task(response.read())
            await asyncio.sleep(0.1)
            ends.send(piece)
            assert await reading == piece
        assert loop.time() - began_s > 0.4
        response.close()
        assert ends.ours.usable


@on_both_loops
async def test_a_body_that_stalls_ends_in_time() -> None:
    """The read timeout runs only during a read."""
    async with connected() as ends:
        response = await ends.answered(OK + b"Content-Length: 3\r\n\r\n1", timeouts=HASTY)
        await asyncio.sleep(0.06)
        assert await response.read() == b"1"
        with pytest.raises(ReadTimeoutError, match=r"0\.02"):
            await response.read()
        response.close()
        assert not ends.idle


@on_both_loops
async def test_a_cancelled_exchange_closes_its_connection_at_once() -> None:
    """Its host is rid of it."""
    async with connected() as ends:
        asking = ends.ask()
        await ends.receive()
        await aio.end(asking)

        assert not ends.ours.usable
        assert await ends.receive(b"") == b""


@on_both_loops
async def test_a_read_that_is_cancelled_loses_nothing() -> None:
    """The next read returns the bytes that have arrived."""
    async with connected() as ends:
        response = await ends.answered(SMALL[:-2])
        reading = asyncio.create_task(response.read())
        await asyncio.sleep(0)
        await aio.end(reading)
        ends.send(b"ok")

        assert await response.read() == b"ok"
        response.close()
        assert ends.ours.usable


@on_both_loops
async def test_no_request_is_sent_on_a_connection_that_was_closed_meanwhile() -> None:
    """It fails as one that the host closed: it may be sent on another."""
    async with connected() as ends:
        (await ends.answered(SMALL)).close()
        ends.send(SMALL)
        await wait_until(lambda: ends.lost, "the connection's end")

        with pytest.raises(ReadError, match="closed"):
            await ends.ours.exchange(request_of())

        assert not ends.ours.heard


@on_both_loops
async def test_closing_ends_what_waits() -> None:
    """A wait for a head or for a body ends; a second call does nothing."""
    async with connected() as ends:
        asking = ends.ask()
        await ends.receive()
        ends.ours.close()
        with pytest.raises(ReadError, match="closed"):
            await asking
        ends.ours.close()
    async with connected() as ends:
        response = await ends.answered(SMALL[:-1])
        assert await response.read() == b"o"
        reading = asyncio.create_task(response.read())
        await asyncio.sleep(0)
        ends.ours.close()
        with pytest.raises(ReadError, match="closed"):
            await reading


@on_both_loops
async def test_a_closed_response_is_not_read_from_the_next_one() -> None:
    """Each belongs to its exchange."""
    async with connected() as ends:
        first = await ends.answered(SMALL)
        assert await body_of(first) == b"ok"
        first.close()
        second = await ends.answered(OK + b"Content-Length: 4\r\n\r\nmine")
        first.close()

        assert await first.read() == b""
        assert await body_of(second) == b"mine"


@on_both_loops
async def test_fetches_whose_head_has_come_go_on_when_the_loop_has_time() -> None:
    """The head's time is when it came; nothing else wakes the fetch before."""
    async with connected() as ends:
        ends.wakeups.held = True
        request = request_of()
        asking = asyncio.create_task(ends.ours.exchange(request))
        await ends.receive()
        ends.send(SMALL[:-1])
        await wait_until(lambda: ends.wakeups.waiting, "the head")
        ends.send(SMALL[-1:])
        reader = ends.ours._reader
        assert reader is not None
        await wait_until(lambda: reader.complete, "the body")
        assert not asking.done()
        assert request.trace.head_s is not None

        ends.wakeups.waiting.pop().set_result(None)

        assert await body_of(await asking) == b"ok"
        assert not ends.wakeups.waiting


@pytest.mark.parametrize(
    "request_",
    [
        {"target": b"/a b"},
        {"target": b"/\r\nX: y"},
        {"method": "GET /"},
        {"headers": ((b"X", b"a\r\nY: b"),)},
        {"headers": ((b"X", b"a\0b"),)},
        {"headers": ((b"X Y", b"a"),)},
        {"headers": ((b"X:", b"a"),)},
    ],
)
@on_both_loops
async def test_a_request_that_is_no_http_is_not_sent(request_: dict[str, Any]) -> None:
    """Nothing of it: a field may not become two."""
    async with connected() as ends:
        with pytest.raises(InvalidRequestError):
            await ends.ours.exchange(request_of(**request_))
        assert await ends.receive(b"") == b""
