"""HTTP/1.1 by httpcore2, less the connections of which nobody knows what would come next on them."""

import ssl
from functools import cached_property

import httpcore2


class Http11Connection(httpcore2.AsyncHTTP11Connection):
    """Expires with an answer after which more came, or one whose framings contradict each other.

    What came would be taken for the answer to the next request (RFC 9112 §6.3, §9.2).
    """

    _doubtful = False

    async def handle_async_request(self, request: httpcore2.Request) -> httpcore2.Response:
        """As httpcore2's does.

        What a host said unasked is looked for once more: its pool looked only as far as the loop had.
        """
        if self.is_idle() and self._network_stream.get_extra_info("unread"):
            await self.aclose()
            raise httpcore2.ConnectionNotAvailable
        response = await super().handle_async_request(request)
        names = {name.lower() for name, _ in response.headers}
        self._doubtful = {b"content-length", b"transfer-encoding"} <= names
        return response

    def has_expired(self) -> bool:
        """Whether it is to be closed, being idle."""
        unsafe = self.is_idle() and (self._doubtful or self._more_came())
        return unsafe or super().has_expired()

    def _more_came(self) -> bool:
        """Beyond the answer; what is not read yet is looked for by httpcore2, and as it is used again."""
        return bool(self._h11_state.trailing_data[0]) or _unread(self._tls)

    @cached_property
    def _tls(self) -> ssl.SSLObject | None:
        """Looked for once: each idle connection is asked several times a fetch."""
        tls: ssl.SSLObject | None = self._network_stream.get_extra_info("ssl_object")
        return tls


class Dialler(httpcore2.AsyncHTTPConnection):
    """A connection of HTTP/1.1 to come; or, by `dial`, one to speak something else on."""

    async def dial(self, request: httpcore2.Request) -> httpcore2.AsyncNetworkStream:
        """A new connection to the origin, under TLS where its scheme says so."""
        return await self._connect(request)

    async def handle_async_request(self, request: httpcore2.Request) -> httpcore2.Response:
        """As httpcore2's does, on a connection of our kind; the pool brings one request at a time."""
        if self._connection is None:
            try:
                network = await self._connect(request)
            except BaseException:
                self._connect_failed = True
                raise
            self._connection = Http11Connection(self._origin, network, self._keepalive_expiry)
        return await self._connection.handle_async_request(request)


def _unread(tls: ssl.SSLObject | None) -> bool:
    """Whether TLS has something that nobody has read: records come together, and are read one by one.

    In memory: this reads nothing from the network.
    """
    if tls is None:
        return False
    try:
        return bool(tls.read(1))
    except ssl.SSLWantReadError:
        return False
    except ssl.SSLError:
        return True
