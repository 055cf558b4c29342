"""TLS over a transport: no received data is lost, and no socket is left open."""

import asyncio
import os
import socket
import ssl
import struct
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import cast

import pytest

from fetchfleet.worker.errors import TlsError, TlsTimeoutError
from fetchfleet.worker.http.net.tls_transport import Receiver, TlsTransport
from tests.support.loops import on_both_loops
from tests.support.tls_server import TlsServer, context
from tests.support.waiting import wait_until
from tools.origin.certificates import HAS_OPENSSL, Authority

pytestmark = pytest.mark.skipif(not HAS_OPENSSL, reason="needs openssl")

HOST = "127.0.79.2"
MUCH = os.urandom(3 << 20)
REQUEST = b"GET / HTTP/1.1\r\n\r\n"


class Tls:
    """The TLS contexts of both sides."""

    def __init__(self, authority: Authority) -> None:
        self.server = context(authority.issue("host", f"IP:{HOST}"))
        self.server.set_alpn_protocols(["h2"])
        self.client = ssl.create_default_context(cafile=authority.cert)
        self.client.set_alpn_protocols(["h2", "http/1.1"])


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    """Return the context of a client that trusts a CA, and of a server with its certificate."""
    return Tls(Authority(tmp_path_factory.mktemp("ca")))


class Above(asyncio.Protocol):
    """The protocol above TLS, which records its input. pauses: pause reading after each piece."""

    def __init__(self, *, pauses: bool = False) -> None:
        self.transport: asyncio.Transport
        self.received = bytearray()
        self.ended = False
        self.lost: list[Exception | None] = []
        self._pauses = pauses

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self.transport = cast("asyncio.Transport", transport)  # uvloop has its own classes

    def data_received(self, data: bytes) -> None:
        """Collect a piece."""
        self.received += data
        if self._pauses:
            self.transport.pause_reading()

    def eof_received(self) -> None:
        """Record the end."""
        self.ended = True

    def connection_lost(self, exc: Exception | None) -> None:
        """Record the end and its error."""
        self.lost.append(exc)


def dialled(server: TlsServer) -> socket.socket:
    """Return a socket connected to the server."""
    return socket.create_connection((HOST, server.port))


async def start_tls(
    connected: socket.socket,
    context: ssl.SSLContext,
    host: str,
    timeout_s: float,
    protocol_of: Callable[[str | None], Receiver],
) -> None:
    """Make a handshake on a connected socket."""
    tls = TlsTransport(context, host, protocol_of)
    await asyncio.get_running_loop().create_connection(lambda: tls, sock=connected)
    await tls.handshake(timeout_s)


async def opened(server: TlsServer, tls: Tls, *, pauses: bool = False) -> Above:
    """Return the protocol above a connection after its handshake."""
    above = Above(pauses=pauses)
    await start_tls(dialled(server), tls.client, HOST, 10, lambda _: above)
    return above


@on_both_loops
async def test_alpn_selects_the_protocol_before_any_byte_is_read(tls: Tls) -> None:
    """`protocol_of` receives the selected name."""
    selected = []

    def protocol_of(alpn: str | None) -> Above:
        selected.append(alpn)
        return above

    above = Above()
    with TlsServer(HOST, tls.server, lambda line, _: line.sendall(b"ok")) as server:
        connected = dialled(server)
        await start_tls(connected, tls.client, HOST, 10, protocol_of)
        above.transport.write(REQUEST)
        await wait_until(lambda: above.lost, "the end")

    assert selected == ["h2"]
    assert (bytes(above.received), above.lost, connected.fileno()) == (b"ok", [None], -1)


@on_both_loops
async def test_a_request_shares_a_packet_with_the_end_of_the_handshake(tls: Tls) -> None:
    """The client sends two packets with data; the first is its ClientHello."""
    counted = threading.Event()

    def answer(*_: object) -> None:
        counted.wait(10)

    with TlsServer(HOST, tls.server, answer) as server:
        above = await opened(server, tls)
        above.transport.write(REQUEST)
        await wait_until(lambda: server.requests, "the request")
        sent = packets_sent(above)
        counted.set()
        await wait_until(lambda: above.lost, "the end")

    assert sent == 2


@on_both_loops
async def test_the_end_of_the_handshake_is_sent_without_a_request(tls: Tls) -> None:
    """A request may come later, and the host may have work to do before it."""
    with TlsServer(HOST, tls.server) as server:
        above = await opened(server, tls)
        await wait_until(lambda: packets_sent(above) == 2, "the end of the handshake")
        above.transport.write(REQUEST)
        await wait_until(lambda: above.lost, "the end")

    assert server.requests == [REQUEST]


def packets_sent(above: Above) -> int:
    """Return the number of packets with data that the connection has sent, from struct tcp_info."""
    info = above.transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 160)
    return int.from_bytes(info[156:160], sys.byteorder)  # tcpi_data_segs_out


@pytest.mark.parametrize("farewell", [False, True], ids=["no close_notify", "close_notify"])
@on_both_loops
async def test_data_received_while_paused_is_delivered_before_the_end(tls: Tls, *, farewell: bool) -> None:
    """Otherwise a body that the end of the connection ends would be truncated silently."""
    sent = threading.Event()

    def answer(line: ssl.SSLSocket, _: bytes) -> None:
        line.sendall(b"x")
        line.sendall(MUCH[:100_000])
        if farewell:
            with suppress(OSError, ssl.SSLError):
                line.settimeout(0.05)
                line.unwrap()
        line.shutdown(socket.SHUT_WR)
        sent.set()

    with TlsServer(HOST, tls.server, answer) as server:
        above = await opened(server, tls, pauses=True)
        above.transport.write(REQUEST)
        await wait_until(sent.is_set, "the host to hang up")
        await wait_until(lambda: above.received, "the first piece")
        for _ in range(10):
            await asyncio.sleep(0)
        assert not above.lost
        while not above.lost:
            above.transport.resume_reading()
            await asyncio.sleep(0)

    assert bytes(above.received) == b"x" + MUCH[:100_000]
    assert above.ended


@on_both_loops
async def test_resuming_delivers_received_data_at_once(tls: Tls) -> None:
    """Data delivered later could be read as part of the next exchange."""
    with TlsServer(HOST, tls.server, lambda line, _: line.sendall(MUCH)) as server:
        above = await opened(server, tls, pauses=True)
        above.transport.write(REQUEST)
        at_once = 0
        while len(above.received) < len(MUCH):
            before = len(above.received)
            above.transport.resume_reading()
            at_once += len(above.received) > before
            await asyncio.sleep(0)
        above.transport.abort()
        await wait_until(lambda: above.lost, "the end")

    assert bytes(above.received) == MUCH
    assert at_once


@on_both_loops
async def test_large_bodies_pass_in_both_directions(tls: Tls) -> None:
    """Reading pauses and resumes after each piece."""
    request = b"PUT / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(MUCH)

    with TlsServer(HOST, tls.server, lambda line, got: line.sendall(got)) as server:
        above = await opened(server, tls, pauses=True)
        above.transport.write(request)
        for at in range(0, len(MUCH), 1 << 18):
            above.transport.write(MUCH[at : at + (1 << 18)])
        while not above.lost:
            above.transport.resume_reading()
            await asyncio.sleep(0)

    assert bytes(above.received) == request + MUCH


@on_both_loops
async def test_data_sent_before_a_reset_is_delivered(tls: Tls) -> None:
    """The host responds and resets the connection, because it does not want the rest of the body."""
    reset = threading.Event()

    def answer(line: ssl.SSLSocket, _: bytes) -> None:
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # the response leaves before the reset
        line.sendall(b"HTTP/1.1 413 Content Too Large\r\n\r\n")
        line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        line.close()
        reset.set()

    with TlsServer(HOST, tls.server, answer) as server:
        above = await opened(server, tls)
        above.transport.write(REQUEST)
        reset.wait(10)  # blocks the loop, which reads nothing until then
        above.transport.write(b"more")
        await wait_until(lambda: above.lost, "the end")

    assert bytes(above.received).startswith(b"HTTP/1.1 413")
    assert isinstance(above.lost[0], ConnectionError)


@on_both_loops
async def test_a_garbled_record_ends_the_connection_after_the_data_before_it(tls: Tls) -> None:
    """The error is an ssl.SSLError."""

    def answer(line: ssl.SSLSocket, _: bytes) -> None:
        line.sendall(b"well")
        socket.socket.sendall(line, b"\x17\x03\x03\x00\x20" + b"x" * 32)

    with TlsServer(HOST, tls.server, answer) as server:
        above = await opened(server, tls)
        above.transport.write(REQUEST)
        await wait_until(lambda: above.lost, "the end")

    assert bytes(above.received) == b"well"
    assert [type(error) for error in above.lost] == [ssl.SSLError]


@on_both_loops
async def test_closing_sends_close_notify(tls: Tls) -> None:
    """The host can tell it from a truncation attack (RFC 8446 §6.1)."""
    ends: list[bytes] = []

    def answer(line: ssl.SSLSocket, _: bytes) -> None:
        line.suppress_ragged_eofs = False  # type: ignore[attr-defined]
        ends.append(line.recv(1))

    with TlsServer(HOST, tls.server, answer) as server:
        above = await opened(server, tls)
        above.transport.write(REQUEST)
        await wait_until(lambda: server.requests, "the request")
        above.transport.close()
        above.transport.close()
        await wait_until(lambda: ends and above.lost, "the end")

    assert (ends, above.lost) == ([b""], [None])


async def failed(connected: socket.socket, tls: Tls, timeout_s: float = 10) -> TlsError:
    """Return the error of a handshake. Check that its socket is closed."""
    with pytest.raises(TlsError) as caught:
        await start_tls(connected, tls.client, HOST, timeout_s, lambda _: Above())
    await wait_until(lambda: connected.fileno() == -1, "the socket to be closed")
    return caught.value


@on_both_loops
async def test_a_failed_handshake_names_its_cause_and_leaves_no_socket(tls: Tls) -> None:
    """The certificate is for another host, or the host has no TLS, closes, resets or stays silent."""
    with TlsServer(HOST, tls.server) as server:
        connected = dialled(server)
        with pytest.raises(TlsError) as caught:
            await start_tls(connected, tls.client, "other.example", 10, lambda _: Above())
        await wait_until(lambda: connected.fileno() == -1 and server.handshake_errors, "the alert")
    assert isinstance(caught.value.args[0], ssl.SSLCertVerificationError)
    assert "BAD_CERTIFICATE" in server.handshake_errors[0].upper()

    with socket.create_server((HOST, 0)) as listening:
        answers: list[bytes | None] = [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"", None]
        errors = []
        for answer in answers:
            connected = socket.create_connection(listening.getsockname())
            theirs, _ = listening.accept()
            if answer is None:
                theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            else:
                theirs.sendall(answer)
                theirs.shutdown(socket.SHUT_WR)
            if answer is None:
                theirs.close()
            errors.append(await failed(connected, tls))
            theirs.close()
        connected = socket.create_connection(listening.getsockname())
        late = await failed(connected, tls, timeout_s=0.01)

    assert isinstance(errors[0].args[0], ssl.SSLError)
    assert errors[0].args[0].reason == "WRONG_VERSION_NUMBER"
    assert "closed the connection" in str(errors[1])
    assert isinstance(errors[2].__cause__, ConnectionError)
    assert isinstance(late, TlsTimeoutError)


@on_both_loops
async def test_a_cancelled_handshake_leaves_no_socket(tls: Tls) -> None:
    """It is cancelled at each iteration of the loop."""
    with socket.create_server((HOST, 0)) as listening:
        for iterations in range(6):
            connected = socket.create_connection(listening.getsockname())
            shaking = asyncio.ensure_future(start_tls(connected, tls.client, HOST, 10, lambda _: Above()))
            for _ in range(iterations):
                await asyncio.sleep(0)
            shaking.cancel()
            with suppress(asyncio.CancelledError):
                await shaking
            assert shaking.cancelled()
            if not iterations:
                connected.close()  # the handshake has not started
            await wait_until(lambda: connected.fileno() == -1, "the socket to be closed")  # noqa: B023


async def test_a_name_that_is_invalid_in_tls_is_refused_before_a_connection(tls: Tls) -> None:
    """Server names have no empty label."""
    with pytest.raises(ValueError, match=r"server_hostname|label"):
        TlsTransport(tls.client, ".example", lambda _: Above())
