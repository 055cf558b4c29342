"""HTTP/1.1 by httpcore2, without the reuse of connections whose next bytes are in doubt."""

import ssl
from collections.abc import Awaitable, Callable

import httpcore2

from fetchfleet.worker.http.compat import h11_trailing_data

Dial = Callable[[httpcore2.Request], Awaitable[httpcore2.AsyncNetworkStream]]
"""Opens a connection to the origin of a request, under TLS if its scheme is https."""


class Http11Connection(httpcore2.AsyncConnectionInterface):
    """One connection to an origin, dialled for its first request.

    It expires after a response that was followed by more bytes, whose framings contradict each other, or with
    an odd head: other bytes could be taken for the response to the next request (RFC 9112 §6.3, §9.2).
    """

    def __init__(self, origin: httpcore2.Origin, keepalive_expiry_s: float | None, dial: Dial) -> None:
        self._origin = origin
        self._keepalive_expiry_s = keepalive_expiry_s
        self._dial = dial
        self._failed = False
        self._http11: httpcore2.AsyncHTTP11Connection | None = None
        self._stream: httpcore2.AsyncNetworkStream | None = None
        self._tls: ssl.SSLObject | None = None
        self._doubtful = False
        """Whether the last response had both a Content-Length and a Transfer-Encoding, or odd field lines."""

    def open_on(self, stream: httpcore2.AsyncNetworkStream) -> httpcore2.AsyncHTTP11Connection:
        """Use this connection, which is open and speaks HTTP/1.1."""
        self._stream, self._tls = stream, stream.get_extra_info("ssl_object")
        self._http11 = httpcore2.AsyncHTTP11Connection(self._origin, stream, self._keepalive_expiry_s)
        return self._http11

    async def handle_async_request(self, request: httpcore2.Request) -> httpcore2.Response:
        """Make one exchange, as httpcore2's connections do; the pool brings one request at a time.

        Raises httpcore2.ConnectionNotAvailable if the host sent something, or hung up, while the connection
        was idle. The pool has looked too, but only as far as the event loop had.
        """
        http11 = self._http11
        if http11 is None:
            try:
                http11 = self.open_on(await self._dial(request))
            except BaseException:
                self._failed = True
                raise
        elif http11.is_idle() and self._stream is not None and self._stream.get_extra_info("unread"):
            await http11.aclose()
            raise httpcore2.ConnectionNotAvailable
        response = await http11.handle_async_request(request)
        names = {name.lower() for name, _ in response.headers}
        self._doubtful = {b"content-length", b"transfer-encoding"} <= names or self._head_was_odd()
        return response

    def has_expired(self) -> bool:
        """Return whether it must be closed, if it is idle."""
        http11 = self._http11
        if http11 is None:
            return self._failed
        if http11.is_idle() and (self._doubtful or h11_trailing_data(http11)[0] or self._tls_has_data()):
            return True
        return http11.has_expired()

    def _head_was_odd(self) -> bool:
        return self._stream is not None and bool(self._stream.get_extra_info("odd_head"))

    def _tls_has_data(self) -> bool:
        """Return whether TLS holds bytes that nothing has read; reads memory only, never the network.

        Records may arrive together, and are read one by one.
        """
        if self._tls is None:
            return False
        try:
            return bool(self._tls.read(1))
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLError:
            return True

    def can_handle_request(self, origin: httpcore2.Origin) -> bool:
        """Return whether it leads to that origin."""
        return origin == self._origin

    def is_available(self) -> bool:
        """Return whether it is open and idle."""
        return self._http11 is not None and self._http11.is_available()

    def is_connected(self) -> bool:
        """Return whether its socket is open."""
        return self._http11 is not None and self._http11.is_connected()

    def is_idle(self) -> bool:
        """Return whether no exchange runs on it."""
        return self._failed if self._http11 is None else self._http11.is_idle()

    def is_closed(self) -> bool:
        """Return whether it is closed, or could not be opened."""
        return self._failed if self._http11 is None else self._http11.is_closed()

    def info(self) -> str:
        """Describe it for a reader."""
        return f"{str(self._origin)!r}, connecting" if self._http11 is None else self._http11.info()

    async def aclose(self) -> None:
        """Close it."""
        if self._http11 is not None:
            await self._http11.aclose()
