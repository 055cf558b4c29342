"""A hostile, scriptable HTTP/2 origin over TLS that records every request.

h2 tracks the protocol state. Frames that h2 refuses to send go out as bytes (`Peer.raw`, `Exchange.frames`).
"""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Self

import h2.config
import h2.connection
import h2.events
import h2.exceptions
from h2.errors import ErrorCodes
from h2.settings import SettingCodes
from hyperframe.frame import Frame, GoAwayFrame, SettingsFrame

from tools.origin.certificates import Certificate

Behaviour = Callable[["Exchange"], Awaitable[None]]
Fields = Iterable[tuple[str, str]]
READ_BYTES = 1 << 16


def server_tls(certificate: Certificate, *protocols: str) -> ssl.SSLContext:
    """Return a server-side context that offers these ALPN protocols, h2 by default."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate.cert, certificate.key)
    context.set_alpn_protocols(list(protocols) or ["h2"])
    return context


@dataclass
class Seen:
    """One recorded request."""

    connection: int
    """The number of the connection, from 1."""
    stream: int
    method: str = ""
    path: str = ""
    fields: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    reset: ErrorCodes | int | None = None
    """The error code with which the client reset the stream."""


class Exchange:
    """One request, and the methods to respond to it."""

    def __init__(self, peer: "Peer", seen: Seen) -> None:
        self.peer = peer
        self.seen = seen
        self.may_send = asyncio.Event()
        """Set when the flow-control window may have grown, and at the end of the request."""
        self.task: asyncio.Task[None] | None = None

    async def head(self, status: int = 200, fields: Fields = (), *, last: bool = False) -> None:
        """Send the response header, or an interim response."""
        pseudo = [(":status", f"{status:03}"), *fields]
        self.peer.h2.send_headers(self.seen.stream, pseudo, end_stream=last)
        await self.peer.flush()

    async def send(self, data: bytes, *, last: bool = False) -> None:
        """Send a piece of the body, as flow control permits."""
        h2s, stream = self.peer.h2, self.seen.stream
        while data:
            size_bytes = min(h2s.local_flow_control_window(stream), h2s.max_outbound_frame_size)
            if size_bytes:
                h2s.send_data(stream, data[:size_bytes], end_stream=last and size_bytes >= len(data))
                data = data[size_bytes:]
                await self.peer.flush()
            else:
                self.may_send.clear()
                await self.may_send.wait()

    async def respond(self, status: int = 200, body: bytes = b"ok", fields: Fields = ()) -> None:
        """Send a complete response with Content-Length."""
        await self.head(status, [*fields, ("content-length", str(len(body)))], last=not body)
        await self.send(body, last=True)

    async def end(self) -> None:
        """End the response."""
        self.peer.h2.end_stream(self.seen.stream)
        await self.peer.flush()

    async def reset(self, code: ErrorCodes = ErrorCodes.INTERNAL_ERROR) -> None:
        """Reset the stream."""
        self.peer.h2.reset_stream(self.seen.stream, code)
        await self.peer.flush()

    async def goaway(self, last_stream_id: int, code: ErrorCodes = ErrorCodes.NO_ERROR) -> None:
        """Send GOAWAY: streams above last_stream_id were not processed; the others continue."""
        await self.frames(GoAwayFrame(0, last_stream_id=last_stream_id, error_code=code))

    async def frames(self, *frames: Frame) -> None:
        """Send frames without the checks of h2."""
        await self.peer.raw(b"".join(frame.serialize() for frame in frames))


class Peer:
    """One connection of a client."""

    def __init__(self, origin: "Http2Origin", number: int, line: tuple[Any, asyncio.StreamWriter]) -> None:
        self.origin = origin
        self.number = number
        self.exchanges: dict[int, Exchange] = {}
        self.gone: h2.events.ConnectionTerminated | None = None
        config = h2.config.H2Configuration(
            client_side=False,
            validate_outbound_headers=False,
            normalize_outbound_headers=False,
            header_encoding="utf-8",
        )
        self.h2 = h2.connection.H2Connection(config)
        self._reader, self._writer = line

    async def serve(self) -> None:
        """Serve until the client closes the connection."""
        self.h2.initiate_connection()
        try:
            await self.flush()
            if self.origin.max_streams is not None:
                await self.allow(self.origin.max_streams)
            while data := await self._reader.read(READ_BYTES):
                for event in self.h2.receive_data(data):
                    self._on_event(event)
                await self.flush()
        except (ConnectionError, ssl.SSLError, h2.exceptions.ProtocolError):
            pass
        finally:
            await self.hang_up()

    async def hang_up(self) -> None:
        """Close the connection and cancel its exchanges."""
        for exchange in self.exchanges.values():
            if exchange.task is not None and exchange.task is not asyncio.current_task():
                exchange.task.cancel()
        self._writer.transport.abort()
        with suppress(ConnectionError, ssl.SSLError):
            await self._writer.wait_closed()

    async def flush(self) -> None:
        """Send the pending data of h2."""
        await self.raw(self.h2.data_to_send())

    async def raw(self, data: bytes) -> None:
        """Send bytes as they are."""
        self._writer.write(data)
        with suppress(ConnectionError):
            await self._writer.drain()

    async def allow(self, streams: int) -> None:
        """Announce a limit of concurrent streams, which h2 does not enforce."""
        limit = SettingsFrame(0, {SettingCodes.MAX_CONCURRENT_STREAMS: streams})
        await self.raw(limit.serialize())

    def _on_event(self, event: h2.events.Event) -> None:
        match event:
            case h2.events.RequestReceived(stream_id=stream, headers=headers):
                assert stream is not None
                fields = {str(name): str(value) for name, value in headers or ()}
                seen = Seen(self.number, stream, fields.get(":method", ""), fields.get(":path", ""), fields)
                exchange = self.exchanges[stream] = Exchange(self, seen)
                self.origin.begin(exchange)
            case h2.events.DataReceived(stream_id=stream, data=data, flow_controlled_length=length):
                assert stream is not None
                self.exchanges[stream].seen.body += data or b""
                if self.origin.reads_bodies and length:
                    self.h2.acknowledge_received_data(length, stream)
            case h2.events.WindowUpdated() | h2.events.RemoteSettingsChanged():
                for exchange in self.exchanges.values():
                    exchange.may_send.set()
            case h2.events.StreamEnded(stream_id=stream):
                assert stream is not None
                self.exchanges[stream].may_send.set()
            case h2.events.StreamReset(stream_id=stream, error_code=code):
                exchange = self.exchanges[stream or 0]
                exchange.seen.reset = code
                if exchange.task is not None:
                    exchange.task.cancel()
            case h2.events.ConnectionTerminated():
                self.gone = event
            case _:
                pass


class Http2Origin:
    """A listening origin, and its record of requests. A test may change `behaviour` and `max_streams`."""

    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self.max_streams: int | None = None
        """The stream limit announced on a new connection; None keeps the 100 of h2."""
        self.reads_bodies = True
        """False to leave the windows of request bodies exhausted."""
        self.requests: list[Seen] = []
        self.peers: list[Peer] = []
        self.open = 0
        self.most_open = 0
        self.faults: list[BaseException] = []
        self.base = ""
        self._tasks: set[asyncio.Task[None]] = set()

    @classmethod
    @asynccontextmanager
    async def serving(
        cls, host: str, tls: ssl.SSLContext, behaviour: Behaviour, port: int = 0
    ) -> AsyncIterator[Self]:
        """Yield a running origin; raise the errors of its behaviours at the end of the block."""
        origin = cls(behaviour)
        server = await asyncio.start_server(origin._serve, host, port, ssl=tls, backlog=1024)
        origin.base = f"https://{host}:{server.sockets[0].getsockname()[1]}"
        try:
            yield origin
        finally:
            server.close()
            for peer in origin.peers:
                await peer.hang_up()
            while origin._tasks:
                await asyncio.wait(origin._tasks)
            await server.wait_closed()
        if origin.faults:
            raise BaseExceptionGroup("errors in the origin", origin.faults)

    def url(self, path: str = "/") -> str:
        """Return the URL of a path."""
        return self.base + path

    def begin(self, exchange: Exchange) -> None:
        """Record a request and start its behaviour."""
        self.requests.append(exchange.seen)
        exchange.task = asyncio.create_task(self._answer(exchange))
        self._tasks.add(exchange.task)
        exchange.task.add_done_callback(self._tasks.discard)

    async def _answer(self, exchange: Exchange) -> None:
        try:
            await self.behaviour(exchange)
        except (h2.exceptions.StreamClosedError, ConnectionError):
            pass  # the client cancelled the request
        except Exception as fault:  # noqa: BLE001 any error fails the test
            self.faults.append(fault)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        peer = Peer(self, len(self.peers) + 1, (reader, writer))
        self.peers.append(peer)
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        try:
            await peer.serve()
        finally:
            self.open -= 1


async def ok(x: Exchange) -> None:
    """Respond with 200 and two bytes."""
    await x.respond()
