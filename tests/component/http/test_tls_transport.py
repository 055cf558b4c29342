"""TLS over a transport: nothing is lost that the host has sent, and nothing is left open."""

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
    """Both sides' contexts."""

    def __init__(self, authority: Authority) -> None:
        self.server = context(authority.issue("host", f"IP:{HOST}"))
        self.server.set_alpn_protocols(["h2"])
        self.client = ssl.create_default_context(cafile=authority.cert)
        self.client.set_alpn_protocols(["h2", "http/1.1"])


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    """An authority that the client trusts, and a server with a certificate of it."""
    return Tls(Authority(tmp_path_factory.mktemp("ca")))


class Above(asyncio.Protocol):
    """The protocol above TLS, which records what it is given. pauses: with the first piece."""

    def __init__(self, *, pauses: bool = False) -> None:
        self.transport: asyncio.Transport
        self.received = bytearray()
        self.ended = False
        self.lost: list[Exception | None] = []
        self._pauses = pauses

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self.transport = cast("asyncio.Transport", transport)  # uvloop has classes of its own

    def data_received(self, data: bytes) -> None:
        """Collect a piece."""
        self.received += data
        if self._pauses:
            self.transport.pause_reading()

    def eof_received(self) -> None:
        """Record the end."""
        self.ended = True

    def connection_lost(self, exc: Exception | None) -> None:
        """Record the end, and its error."""
        self.lost.append(exc)


def dialled(server: TlsServer) -> socket.socket:
    """Return a socket that is connected to the server."""
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
    """Return the protocol above a connection whose handshake has ended."""
    above = Above(pauses=pauses)
    await start_tls(dialled(server), tls.client, HOST, 10, lambda _: above)
    return above


@on_both_loops
async def test_alpn_selects_the_protocol_before_any_byte_is_read(tls: Tls) -> None:
    """The protocol above is chosen by it."""
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
async def test_a_request_goes_out_with_the_end_of_the_handshake(tls: Tls) -> None:
    """In one packet: the first one is the host's greeting's."""
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
async def test_the_end_of_the_handshake_waits_for_no_request(tls: Tls) -> None:
    """The host may take its time for what it does then, and a request may come later."""
    with TlsServer(HOST, tls.server) as server:
        above = await opened(server, tls)
        await wait_until(lambda: packets_sent(above) == 2, "the end of the handshake")
        above.transport.write(REQUEST)
        await wait_until(lambda: above.lost, "the end")

    assert server.requests == [REQUEST]


def packets_sent(above: Above) -> int:
    """Return how many packets with data the connection has sent, by the kernel's struct tcp_info."""
    info = above.transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 160)
    return int.from_bytes(info[156:160], sys.byteorder)  # tcpi_data_segs_out


@pytest.mark.parametrize("farewell", [False, True], ids=["no close_notify", "close_notify"])
@on_both_loops
async def test_what_came_while_reading_was_paused_is_passed_on_before_the_end(
    tls: Tls, *, farewell: bool
) -> None:
    """A body that only the end of the connection ends would else be cut short without a sign of it."""
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
async def test_what_came_while_reading_was_paused_is_passed_on_at_once(tls: Tls) -> None:
    """Before the caller uses the connection for anything else, to which it could be taken to belong."""
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
async def test_much_is_sent_and_received_as_the_other_side_takes_it(tls: Tls) -> None:
    """In both directions; reading pauses and goes on in between."""
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
async def test_what_the_host_sent_before_it_reset_the_connection_is_passed_on(tls: Tls) -> None:
    """It did not want the rest of the body, and has responded."""
    reset = threading.Event()

    def answer(line: ssl.SSLSocket, _: bytes) -> None:
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # else it could not leave before the reset
        line.sendall(b"HTTP/1.1 413 Content Too Large\r\n\r\n")
        line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        line.close()
        reset.set()

    with TlsServer(HOST, tls.server, answer) as server:
        above = await opened(server, tls)
        above.transport.write(REQUEST)
        reset.wait(10)  # the loop does not look meanwhile
        above.transport.write(b"more")
        await wait_until(lambda: above.lost, "the end")

    assert bytes(above.received).startswith(b"HTTP/1.1 413")
    assert isinstance(above.lost[0], ConnectionError)


@on_both_loops
async def test_a_garbled_record_ends_the_connection_after_what_came_before(tls: Tls) -> None:
    """Its error is that of TLS."""

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
    """The host can tell the end from an attack (RFC 8446 §6.1)."""
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
    """Return the error of a handshake, after which the socket is closed."""
    with pytest.raises(TlsError) as caught:
        await start_tls(connected, tls.client, HOST, timeout_s, lambda _: Above())
    await wait_until(lambda: connected.fileno() == -1, "the socket to be closed")
    return caught.value


@on_both_loops
async def test_a_handshake_that_fails_says_why_and_leaves_no_socket(tls: Tls) -> None:
    """The host is not the one of the certificate, speaks no TLS, hangs up, resets, or says nothing."""
    with TlsServer(HOST, tls.server) as server:
        connected = dialled(server)
        with pytest.raises(TlsError) as caught:
            await start_tls(connected, tls.client, "other.example", 10, lambda _: Above())
        await wait_until(lambda: connected.fileno() == -1 and server.refused, "the alert")
    assert isinstance(caught.value.args[0], ssl.SSLCertVerificationError)
    assert "BAD_CERTIFICATE" in server.refused[0].upper()

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
async def test_a_handshake_that_is_cancelled_leaves_no_socket(tls: Tls) -> None:
    """At whatever point: each iteration of the loop is one."""
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
                connected.close()  # nothing has begun
            await wait_until(lambda: connected.fileno() == -1, "the socket to be closed")  # noqa: B023


async def test_a_name_that_tls_cannot_send_is_refused_before_a_connection(tls: Tls) -> None:
    """It is no valid name of a host."""
    with pytest.raises(ValueError, match=r"server_hostname|label"):
        TlsTransport(tls.client, ".example", lambda _: Above())
