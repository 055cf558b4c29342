"""Serves the metrics of a worker over HTTP, without a thread: a slow scraper delays nothing."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import cast

from fetchfleet.worker.errors import BAD_USE, CommandError
from fetchfleet.worker.observability.worker_figures import WorkerFigures
from fetchfleet.worker.util.listen import listening_socket

PATH = b"/metrics"

MAX_REQUEST_BYTES = 8192
MAX_CONNECTIONS = 32
"""The maximum number of connections; further ones are closed at once."""

WITHIN_S = 10.0
"""The time after which a connection is closed, whether the scraper has read the response or not."""


class MetricsServer:
    """The metrics of a worker at HOST:PORT."""

    def __init__(self) -> None:
        self.read: Callable[[], WorkerFigures] | None = None
        """Returns the state of the worker; None while it starts."""

    @asynccontextmanager
    async def serve(self, host: str, port: int) -> AsyncIterator[None]:
        """Serve the metrics within the block. Raises CommandError if that is not possible."""
        try:
            from prometheus_client import generate_latest  # noqa: PLC0415 only with metrics

            from fetchfleet.worker.observability.worker_metrics import registry_of  # noqa: PLC0415
        except ModuleNotFoundError as error:
            message = f"--metrics needs {error.name}: pip install 'fetchfleet[metrics]'"
            raise CommandError(message, BAD_USE) from None
        try:
            listening = listening_socket(host, port)
        except OSError as error:
            message = f"--metrics: cannot listen on {host}, port {port}: {error.strerror}"
            raise CommandError(message, BAD_USE) from None
        registry = registry_of(self._reading)

        def respond(request: bytes) -> bytes:
            return response_to(request, None if self.read is None else lambda: generate_latest(registry))

        connections: set[asyncio.Transport] = set()
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: _Scrape(respond, connections), sock=listening)
        try:
            yield
        finally:
            server.close()
            for connection in [*connections]:
                connection.abort()

    def _reading(self) -> WorkerFigures:
        assert self.read is not None
        return self.read()


def response_to(request: bytes, text: Callable[[], bytes] | None) -> bytes:
    """Return the response to the header section of a request. text: None while the worker starts."""
    method, _, rest = request.partition(b" ")
    path = rest.partition(b" ")[0].partition(b"?")[0]
    if method not in {b"GET", b"HEAD"}:
        return _response("405 Method Not Allowed", b"", "Allow: GET, HEAD\r\n")
    if path != PATH:
        return _response("404 Not Found", b"The metrics are at /metrics.\n")
    if text is None:
        return _response("503 Service Unavailable", b"The worker is starting.\n")
    response = _response("200 OK", text())
    return response.partition(b"\r\n\r\n")[0] + b"\r\n\r\n" if method == b"HEAD" else response


class _Scrape(asyncio.Protocol):
    """One connection: one request, one response."""

    def __init__(self, respond: Callable[[bytes], bytes], connections: set[asyncio.Transport]) -> None:
        self._respond = respond
        self._connections = connections
        self._request = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._connection = cast("asyncio.Transport", transport)  # that of uvloop is not a subclass
        self._timer = asyncio.get_running_loop().call_later(WITHIN_S, self._connection.abort)
        self._connections.add(self._connection)
        if len(self._connections) > MAX_CONNECTIONS:
            self._connection.abort()

    def data_received(self, data: bytes) -> None:
        if self._connection.is_closing():
            return
        self._request += data
        if len(self._request) > MAX_REQUEST_BYTES:
            self._connection.abort()
        elif b"\r\n\r\n" in self._request:
            self._connection.write(self._respond(self._request))
            self._connection.close()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 part of the interface
        self._timer.cancel()
        self._connections.discard(self._connection)


def _response(status: str, body: bytes, more: str = "") -> bytes:
    """Return a response that ends its connection."""
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n"
        f"Content-Length: {len(body)}\r\nCache-Control: no-store\r\nConnection: close\r\n{more}\r\n"
    )
    return head.encode() + body
