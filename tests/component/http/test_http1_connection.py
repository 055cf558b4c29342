"""An HTTP/1.1 connection at the level of bytes, against a scripted host."""

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
from fetchfleet.worker.http.request_body import MemoryBody
from fetchfleet.worker.policy.model import Timeouts
from fetchfleet.worker.util import aio
from fetchfleet.worker.util.aio import LoopBudget
from tests.support.loops import on_both_loops
from tests.support.waiting import wait_until

HOST = "127.0.79.1"
PATIENT = Timeouts(connect_s=10, read_s=10, write_s=10, pool_s=10, total_s=60)
HASTY = replace(PATIENT, read_s=0.2, write_s=0.2)  # far longer than a busy machine pauses a test
OK = b"HTTP/1.1 200 OK\r\n"
SMALL = OK + b"Content-Length: 2\r\n\r\nok"
CLOSING = OK + b"Connection: close\r\n\r\n"
MUCH = 8 * MAX_UNREAD_BYTES


class Wakeups(LoopBudget):
    """A loop budget that resolves futures at once, or later if it is held."""

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
    """Both ends of a connection: that of the client, and the socket of the host."""

    def __init__(self, host: socket.socket, keepalive_s: float) -> None:
        self.host = host
        self.keepalive_s = keepalive_s
        self.idle: list[Http1Connection] = []
        self.lost: list[Http1Connection] = []
        self.wakeups = Wakeups()
        self.client: Http1Connection

    def protocol(self) -> Http1Connection:
        """Make the end of the client."""
        self.client = Http1Connection(self.wakeups, self.keepalive_s, self.idle.append, self.lost.append)
        return self.client

    def send(self, data: bytes) -> None:
        """Send a few bytes, which the kernel accepts at once."""
        assert self.host.send(data) == len(data)

    async def send_all(self, data: bytes) -> None:
        """Send all of it, as fast as the client reads."""
        await asyncio.get_running_loop().sock_sendall(self.host, data)

    async def receive(self, until: bytes = b"\r\n\r\n") -> bytes:
        """Return the bytes up to `until`, or all of them if it is empty."""
        received = b""
        while not until or until not in received:
            piece = await asyncio.get_running_loop().sock_recv(self.host, 1 << 16)
            received += piece
            if not piece:
                break
        return received

    def reset(self) -> None:
        """Close with a reset, as a crashed host does."""
        self.host.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.host.close()

    def begin_exchange(self, **request: Any) -> asyncio.Task[Http1Response]:
        """Begin an exchange."""
        return asyncio.create_task(self.client.exchange(request_of(**request)))

    async def responded(self, response: bytes, **request: Any) -> Http1Response:
        """Make an exchange in which the host responds with these bytes."""
        pending = self.begin_exchange(**request)
        await self.receive()
        await self.send_all(response)
        return await pending


def request_of(
    method: str = "GET",
    content: MemoryBody | None = None,
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
    """Yield the two ends of a new connection."""
    with socket.create_server((HOST, 0)) as server:
        client = socket.create_connection(server.getsockname())
        accepted, _ = server.accept()
    for end in (client, accepted):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        end.setblocking(False)  # noqa: FBT003 its argument
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # bytes leave as soon as they are sent
    ends = Ends(accepted, keepalive_s)
    await asyncio.get_running_loop().create_connection(ends.protocol, sock=client)
    try:
        yield ends
    finally:
        ends.client.close()
        accepted.close()
        await wait_until(lambda: ends.lost == [ends.client], "the connection's end")
        await wait_until(lambda: client.fileno() == -1, "the socket's end")


async def body_of(response: Http1Response) -> bytes:
    """Return the rest of the body."""
    body = b""
    while piece := await response.read():
        body += piece
    return body


@on_both_loops
async def test_a_connection_carries_one_exchange_after_another() -> None:
    """Requests are sent as given, and each response belongs to its own request."""
    async with connected() as ends:
        for number in range(3):
            pending = ends.begin_exchange(headers=((b"Host", b"a.example"), (b"X-Number", b"%d" % number)))
            sent = await ends.receive()
            assert sent == b"GET /x?y HTTP/1.1\r\nHost: a.example\r\nX-Number: %d\r\n\r\n" % number
            ends.send(OK + b"X: y\r\nContent-Length: 1\r\n\r\n%d" % number)
            response = await pending
            assert (response.status, response.phrase, response.version) == (200, b"OK", "HTTP/1.1")
            assert (response.headers, response.lenient) == ([(b"X", b"y"), (b"Content-Length", b"1")], False)
            assert response.address == HOST
            assert await body_of(response) == b"%d" % number
            assert response.ended
            assert not ends.client.usable
            response.close()
            response.close()
            assert len(ends.idle) == number + 1
            assert ends.client.usable


@on_both_loops
async def test_a_connection_is_reused_after_a_complete_response_that_was_not_read() -> None:
    """No byte of it is left on the connection."""
    async with connected() as ends:
        response = await ends.responded(SMALL)
        response.close()

        assert ends.client.usable
        assert await body_of(await ends.responded(SMALL)) == b"ok"


@on_both_loops
async def test_closing_an_incomplete_response_closes_its_connection() -> None:
    """The host sees the end at once."""
    async with connected() as ends:
        response = await ends.responded(SMALL[:-1])
        response.close()

        assert await ends.receive(b"") == b""
        assert not ends.client.usable
        assert not ends.idle


@on_both_loops
async def test_an_unread_body_loses_no_bytes_and_its_memory_is_bounded() -> None:
    """Backpressure stops the host."""
    async with connected() as ends:
        pending = ends.begin_exchange()
        await ends.receive()
        ends.send(OK + b"Content-Length: %d\r\n\r\n" % (MUCH))
        response = await pending
        sending = asyncio.create_task(ends.send_all(bytes(MUCH)))
        reader = response._reader
        await wait_until(lambda: reader.unread_bytes > MAX_UNREAD_BYTES, "the bound")
        for _ in range(20):
            await asyncio.sleep(0)
        assert reader.unread_bytes <= 2 * MAX_UNREAD_BYTES
        assert not sending.done()

        assert len(await body_of(response)) == MUCH
        await sending
        response.close()
        assert ends.client.usable


@on_both_loops
async def test_a_body_is_received_into_a_buffer_up_to_its_end_and_no_further() -> None:
    """Bytes after the body make the connection unusable."""
    async with connected() as ends:
        response = await ends.responded(OK + b"Content-Length: 6\r\n\r\n")
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
        assert not ends.client.usable
        await wait_until(lambda: ends.lost, "the connection's end")


@on_both_loops
async def test_a_connection_is_reused_after_a_body_was_received_into_a_buffer() -> None:
    """`read` and `receive` both leave it usable."""
    async with connected() as ends:
        buffer = memoryview(bytearray(10))
        for method in ("read", "receive"):
            response = await ends.responded(OK + b"Content-Length: 5\r\n\r\nab")
            ends.send(b"cde")
            body = b""
            while piece := await (response.read() if method == "read" else response.receive(lambda: buffer)):
                body += piece
            assert body == b"abcde"
            response.close()
            assert ends.client.usable


@pytest.mark.parametrize("framing", [b"Content-Length: 4", b"X: until the end of the connection"])
@on_both_loops
async def test_bytes_before_the_end_or_an_error_are_received_first(framing: bytes) -> None:
    """The end of the connection is an error only for a body with a length."""
    async with connected() as ends:
        response = await ends.responded(OK + framing + b"\r\n\r\n")
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
async def test_the_buffer_of_a_cancelled_read_is_not_filled() -> None:
    """Its memory may be reused. The next reader gets the bytes."""
    async with connected() as ends:
        response = await ends.responded(OK + b"Content-Length: 4\r\n\r\n")
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
        assert ends.client.usable


@on_both_loops
async def test_chunks_are_not_received_into_a_buffer() -> None:
    """Chunk sizes separate the data, so no buffer is requested."""
    async with connected() as ends:
        response = await ends.responded(OK + b"Transfer-Encoding: chunked\r\n\r\n")
        requested: list[None] = []

        def buffer() -> None:
            requested.append(None)

        ends.send(b"2\r\nok\r\n0\r\n\r\n")

        assert await response.receive(buffer) == b"ok"
        assert await response.receive(buffer) == b""
        assert not requested
        response.close()
        assert ends.client.usable


@on_both_loops
async def test_nothing_is_received_between_two_buffers() -> None:
    """The host stops once the kernel's buffers are full, so a slow disk costs no memory."""
    async with connected() as ends:
        response = await ends.responded(OK + b"Content-Length: %d\r\n\r\n" % MUCH)
        sending = asyncio.create_task(ends.send_all(bytes(MUCH)))
        received_bytes = len(await response.receive(lambda: memoryview(bytearray(100))))
        for _ in range(20):
            await asyncio.sleep(0)
        assert received_bytes == 100
        assert not response._reader.pieces
        assert not sending.done()

        buffer = memoryview(bytearray(100_000))
        while piece := await response.receive(lambda: buffer):
            received_bytes += len(piece)
        assert received_bytes == MUCH
        await sending


@on_both_loops
async def test_the_number_of_unread_pieces_is_bounded() -> None:
    """A small piece costs more memory than its bytes."""
    async with connected() as ends:
        response = await ends.responded(OK + b"Content-Length: 100000\r\n\r\n")
        for _ in range(2000):
            ends.host.send(b"x")
            await asyncio.sleep(0)
        assert len(response._reader.pieces) < 300
        response.close()


@pytest.mark.parametrize("unread", [b"HTTP/1.1 408 Request Timeout\r\n\r\n", b""], ids=["data", "the end"])
@on_both_loops
async def test_unread_data_in_the_kernel_makes_an_idle_connection_unusable(unread: bytes) -> None:
    """The loop has not seen it yet. Once it has, the connection is closed."""
    async with connected() as ends:
        (await ends.responded(SMALL)).close()
        assert ends.client.usable

        if unread:
            ends.send(unread)
        else:
            ends.host.shutdown(socket.SHUT_WR)

        assert not ends.client.usable
        await wait_until(lambda: ends.lost, "the connection's end")


@on_both_loops
async def test_a_reset_ends_an_idle_connection() -> None:
    """It raises no error."""
    async with connected() as ends:
        (await ends.responded(SMALL)).close()
        ends.reset()

        assert not ends.client.usable
        await wait_until(lambda: ends.lost, "the connection's end")


@on_both_loops
async def test_an_idle_connection_is_closed_after_its_keepalive() -> None:
    """The host sees the end."""
    async with connected(keepalive_s=0.01) as ends:
        (await ends.responded(SMALL)).close()
        await wait_until(lambda: ends.lost, "the connection's end")

        assert not ends.client.usable
        assert await ends.receive(b"") == b""


@on_both_loops
async def test_the_keepalive_does_not_interrupt_a_slow_upload() -> None:
    """The next request begins in time, and then reads its content for longer than the keep-alive."""

    class Slow(MemoryBody):
        async def __aiter__(self) -> AsyncGenerator[bytes, None]:
            await asyncio.sleep(0.1)
            yield b"x"

    async with connected(keepalive_s=0.05) as ends:
        (await ends.responded(SMALL)).close()
        pending = ends.begin_exchange(method="POST", content=Slow(b"x"))
        assert (await ends.receive()).startswith(b"POST")
        ends.send(SMALL)
        (await pending).close()


@on_both_loops
async def test_bytes_after_a_response_end_its_connection() -> None:
    """They may arrive with the response or later."""
    async with connected() as ends:
        response = await ends.responded(SMALL + SMALL)
        assert await body_of(response) == b"ok"
        response.close()
        assert not ends.client.usable
    async with connected() as ends:
        response = await ends.responded(SMALL)
        ends.send(SMALL)
        await wait_until(lambda: not response._reader.reusable, "the second response")
        response.close()
        assert not ends.client.usable


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
async def test_a_connection_that_ends_early_records_whether_any_byte_had_arrived(
    response: bytes, error: type[Exception]
) -> None:
    """Without any byte, the request may be sent again. Bytes of an earlier response do not count."""
    async with connected() as ends:
        (await ends.responded(SMALL)).close()
        pending = ends.begin_exchange()
        await ends.receive()
        if response:
            ends.send(response)
            await wait_until(lambda: ends.client.response_started, "the bytes")
        ends.reset() if error is ReadError else ends.host.close()

        with pytest.raises(error):
            await pending

        assert ends.client.response_started is (response != b"")
        assert not ends.client.usable


@pytest.mark.parametrize("error", [RemoteProtocolError, ReadError], ids=["end", "reset"])
@on_both_loops
async def test_the_received_part_of_a_body_that_breaks_off_is_read_first(error: type[Exception]) -> None:
    """Each read after it raises the error."""
    async with connected() as ends:
        response = await ends.responded(OK + b"Content-Length: 9\r\n\r\nok")
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
    """The connection is not reused."""
    async with connected() as ends:
        response = await ends.responded(CLOSING + b"ok")
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
async def test_a_response_before_a_close_is_read_when_the_upload_fails() -> None:
    """The host does not want the rest of the request, and responds with 413."""
    async with connected() as ends:
        pending = ends.begin_exchange(method="POST", content=MemoryBody(bytes(MUCH)))
        await ends.receive()
        ends.send(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 2\r\n\r\nno")
        ends.host.close()

        response = await pending

        assert (response.status, await body_of(response)) == (413, b"no")
        response.close()
        assert not ends.idle


@on_both_loops
async def test_a_response_in_the_kernel_is_read_after_a_failed_write() -> None:
    """The loop has already given up the connection."""
    async with connected() as ends:
        (await ends.responded(SMALL)).close()
        ends.send(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 2\r\n\r\nno")
        ends.reset()

        response = await ends.client.exchange(request_of(method="POST", content=MemoryBody(b"x")))

        assert (response.status, await body_of(response)) == (413, b"no")
        response.close()
        assert len(ends.idle) == 1
        assert not ends.client.usable


@on_both_loops
async def test_an_upload_is_sent_whole_and_its_connection_is_reused() -> None:
    """Its content is empty, small, or larger than all buffers."""
    async with connected() as ends:
        for size_bytes in (0, 10, MUCH):
            pending = ends.begin_exchange(method="PUT", content=MemoryBody(bytes(size_bytes)))
            received = b""
            while len(received.partition(b"\r\n\r\n")[2]) < size_bytes or not received:
                received += await asyncio.get_running_loop().sock_recv(ends.host, 1 << 20)
            ends.send(SMALL)
            response = await pending
            assert await body_of(response) == b"ok"
            response.close()
            assert ends.client.usable


@on_both_loops
async def test_a_final_response_stops_an_upload() -> None:
    """The rest is not sent, and the connection is not reused. An interim response does not stop it."""
    async with connected() as ends:
        pending = ends.begin_exchange(method="PUT", content=MemoryBody(bytes(MUCH)))
        await ends.receive()
        ends.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        await wait_until(lambda: ends.client.response_started, "the interim response")
        assert not pending.done()
        ends.send(SMALL)

        response = await pending

        assert await body_of(response) == b"ok"
        response.close()
        assert not ends.idle
        assert len(await ends.receive(b"")) < MUCH


@on_both_loops
async def test_an_upload_that_the_host_does_not_read_times_out() -> None:
    """The connection is closed."""
    async with connected() as ends:
        with pytest.raises(WriteTimeoutError, match=r"0\.2"):
            await ends.client.exchange(
                request_of(method="PUT", content=MemoryBody(bytes(MUCH)), timeouts=HASTY)
            )
        assert not ends.client.usable


@on_both_loops
async def test_interim_responses_do_not_extend_the_write_timeout() -> None:
    """The host keeps sending them and reads nothing. The read timeout is long."""
    timeouts = replace(PATIENT, write_s=0.05)
    async with connected() as ends:
        pending = ends.begin_exchange(method="PUT", content=MemoryBody(bytes(MUCH)), timeouts=timeouts)
        await ends.receive()
        while not pending.done():
            ends.host.send(b"HTTP/1.1 100 Continue\r\n\r\n")
            await asyncio.sleep(0.005)

        with pytest.raises(WriteTimeoutError, match=r"0\.05"):
            await pending


@pytest.mark.parametrize(
    ("response", "error"),
    [(b"", FirstByteTimeoutError), (OK, ReadTimeoutError), (b"HTTP/1.1 100 OK\r\n\r\n", ReadTimeoutError)],
    ids=["nothing", "half a head", "an interim head"],
)
@on_both_loops
async def test_an_incomplete_head_times_out(response: bytes, error: type[Exception]) -> None:
    """The connection is a reused one, whose timer was set for later."""
    async with connected() as ends:
        (await ends.responded(SMALL)).close()
        pending = ends.begin_exchange(timeouts=HASTY)
        await ends.receive()
        if response:
            ends.send(response)

        with pytest.raises(error, match=r"0\.2"):
            await pending

        assert not ends.client.usable


@on_both_loops
async def test_the_read_timeout_applies_to_each_piece_of_a_head_and_a_body() -> None:
    """Together the pieces may take longer than it."""
    async with connected() as ends:
        loop = asyncio.get_running_loop()
        pending = ends.begin_exchange(timeouts=replace(PATIENT, read_s=0.2))
        await ends.receive()
        began_s = loop.time()
        for piece in (OK, b"Content-Length: 3\r\n", b"\r\n"):
            await asyncio.sleep(0.1)
            ends.send(piece)
        response = await pending
        for piece in (b"1", b"2", b"3"):
            reading = asyncio.create_task(response.read())
            await asyncio.sleep(0.1)
            ends.send(piece)
            assert await reading == piece
        assert loop.time() - began_s > 0.4
        response.close()
        assert ends.client.usable


@on_both_loops
async def test_a_body_that_stalls_times_out() -> None:
    """The read timeout runs only during a read."""
    async with connected() as ends:
        response = await ends.responded(OK + b"Content-Length: 3\r\n\r\n1", timeouts=HASTY)
        await asyncio.sleep(HASTY.read_s + 0.05)
        assert await response.read() == b"1"
        with pytest.raises(ReadTimeoutError, match=r"0\.2"):
            await response.read()
        response.close()
        assert not ends.idle


@on_both_loops
async def test_a_cancelled_exchange_closes_its_connection_at_once() -> None:
    """The host sees the end."""
    async with connected() as ends:
        pending = ends.begin_exchange()
        await ends.receive()
        await aio.end(pending)

        assert not ends.client.usable
        assert await ends.receive(b"") == b""


@on_both_loops
async def test_a_cancelled_read_loses_no_bytes() -> None:
    """The next read returns the bytes that have arrived."""
    async with connected() as ends:
        response = await ends.responded(SMALL[:-2])
        reading = asyncio.create_task(response.read())
        await asyncio.sleep(0)
        await aio.end(reading)
        ends.send(b"ok")

        assert await response.read() == b"ok"
        response.close()
        assert ends.client.usable


@on_both_loops
async def test_no_request_is_sent_on_a_connection_that_was_closed() -> None:
    """It fails like a close by the host, so the request may be sent on another connection."""
    async with connected() as ends:
        (await ends.responded(SMALL)).close()
        ends.send(SMALL)
        await wait_until(lambda: ends.lost, "the connection's end")

        with pytest.raises(ReadError, match="closed"):
            await ends.client.exchange(request_of())

        assert not ends.client.response_started


@on_both_loops
async def test_closing_a_connection_ends_pending_reads() -> None:
    """A wait for a head or for a body ends. A second call does nothing."""
    async with connected() as ends:
        pending = ends.begin_exchange()
        await ends.receive()
        ends.client.close()
        with pytest.raises(ReadError, match="closed"):
            await pending
        ends.client.close()
    async with connected() as ends:
        response = await ends.responded(SMALL[:-1])
        assert await response.read() == b"o"
        reading = asyncio.create_task(response.read())
        await asyncio.sleep(0)
        ends.client.close()
        with pytest.raises(ReadError, match="closed"):
            await reading


@on_both_loops
async def test_a_closed_response_reads_nothing_of_the_next_one() -> None:
    """A response belongs to one exchange."""
    async with connected() as ends:
        first = await ends.responded(SMALL)
        assert await body_of(first) == b"ok"
        first.close()
        second = await ends.responded(OK + b"Content-Length: 4\r\n\r\nmine")
        first.close()

        assert await first.read() == b""
        assert await body_of(second) == b"mine"


@on_both_loops
async def test_an_exchange_whose_head_has_arrived_continues_when_the_budget_allows() -> None:
    """Its head is timed at its arrival. Later bytes do not resume the exchange."""
    async with connected() as ends:
        ends.wakeups.held = True
        request = request_of()
        pending = asyncio.create_task(ends.client.exchange(request))
        await ends.receive()
        ends.send(SMALL[:-1])
        await wait_until(lambda: ends.wakeups.waiting, "the head")
        ends.send(SMALL[-1:])
        reader = ends.client._reader
        assert reader is not None
        await wait_until(lambda: reader.complete, "the body")
        assert not pending.done()
        assert request.trace.head_s is not None

        ends.wakeups.waiting.pop().set_result(None)

        assert await body_of(await pending) == b"ok"
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
async def test_an_invalid_request_is_not_sent(request_: dict[str, Any]) -> None:
    """A field value cannot add a second field."""
    async with connected() as ends:
        with pytest.raises(InvalidRequestError):
            await ends.client.exchange(request_of(**request_))
        assert await ends.receive(b"") == b""
