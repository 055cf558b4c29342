"""A connection over another one: what changes one thing of it says only that."""

from collections.abc import Coroutine
from typing import Any

import httpcore2


class Over(httpcore2.AsyncNetworkStream):
    """Does as the connection below does."""

    def __init__(self, stream: httpcore2.AsyncNetworkStream) -> None:
        self._stream = stream

    def read(self, max_bytes: int, timeout: float | None = None) -> Coroutine[Any, Any, bytes]:
        """What has come."""
        return self._stream.read(max_bytes, timeout)

    def write(self, buffer: bytes, timeout: float | None = None) -> Coroutine[Any, Any, None]:
        """Send all of it."""
        return self._stream.write(buffer, timeout)

    async def aclose(self) -> None:
        """Hang up."""
        await self._stream.aclose()

    async def start_tls(self, *how: Any, **named: Any) -> httpcore2.AsyncNetworkStream:
        """The same connection under TLS; where that fails, or is given up, this one is closed.

        httpcore2 closes it for errors alone: a cancelled handshake would leave its socket open.
        """
        try:
            return await self._stream.start_tls(*how, **named)
        except BaseException:
            await self.aclose()
            raise

    def get_extra_info(self, info: str) -> Any:
        """Of the connection below."""
        return self._stream.get_extra_info(info)
