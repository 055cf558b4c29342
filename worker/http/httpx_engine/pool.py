"""A lane's connection pool: httpcore2's, with connections of our own."""

from typing import Any

import httpcore2

from fetchfleet.worker.http.http2.pool import SharedConnections
from fetchfleet.worker.http.httpx_engine.http11 import Dialler


class LanePool(httpcore2.AsyncConnectionPool):
    """Speaks HTTP/2 to https origins where it may and they can, and HTTP/1.1 to all others."""

    def __init__(self, **how: Any) -> None:
        super().__init__(**how)
        self._only_http1: list[httpcore2.Origin] = []  # few, and not hashable

    def create_connection(self, origin: httpcore2.Origin) -> httpcore2.AsyncConnectionInterface:
        """A connection to come; nothing is dialled yet."""
        http2 = self._http2 and origin.scheme == b"https" and origin not in self._only_http1
        dialler = Dialler(
            origin,
            ssl_context=self._ssl_context,
            keepalive_expiry=self._keepalive_expiry,
            http2=http2,
            network_backend=self._network_backend,
        )
        if not http2:
            return dialler
        expiry_s = self._keepalive_expiry or 0
        return SharedConnections(origin, dialler, expiry_s, lambda: self._only_http1.append(origin))

    async def drop_idle(self) -> None:
        """Close what nothing is under way on: where one was found dead, its like may be."""
        for connection in self.connections:
            if connection.is_idle():
                await connection.aclose()
