"""A proxy to Redis that cuts a connection once, at a chosen request or reply."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

BLOCK_BYTES = 1 << 16


class Lost(StrEnum):
    """The message that is lost with the connection."""

    REQUEST = "request"
    """Redis never receives it."""
    REPLY = "reply"
    """Redis has carried out its request."""


class CutProxy:
    """Forwards a Unix socket to a Redis, until message number `at` (from 1) of the kind `lost`.

    That message is dropped, and its connection is cut.
    """

    def __init__(self, redis_url: str, lost: Lost, at: int) -> None:
        self._redis = urlsplit(redis_url)
        self._lost = lost
        self._remaining = at
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []
        self.url = ""

    @property
    def was_cut(self) -> bool:
        """True once the message was lost."""
        return self._remaining <= 0

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._redis.scheme == "unix":
            redis_reader, redis_writer = await asyncio.open_unix_connection(self._redis.path)
        else:
            redis_reader, redis_writer = await asyncio.open_connection(self._redis.hostname, self._redis.port)
        self._writers.append(redis_writer)
        directions = [
            asyncio.create_task(self._forward(reader, redis_writer, Lost.REQUEST)),
            asyncio.create_task(self._forward(redis_reader, writer, Lost.REPLY)),
        ]
        try:
            await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for direction in directions:
                direction.cancel()
            await asyncio.gather(*directions, return_exceptions=True)
            for end in (writer, redis_writer):
                end.transport.abort()

    async def _forward(self, source: asyncio.StreamReader, to: asyncio.StreamWriter, kind: Lost) -> None:
        with suppress(OSError):
            while data := await source.read(BLOCK_BYTES):
                if kind is self._lost and not self.was_cut:
                    self._remaining -= 1
                    if self.was_cut:
                        return
                to.write(data)
                await to.drain()

    async def close(self) -> None:
        """Close every connection."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for writer in self._writers:
            writer.transport.abort()
        await asyncio.sleep(0)  # the transports close their sockets in the next iteration of the loop


@asynccontextmanager
async def cut_proxy(redis_url: str, lost: Lost, at: int) -> AsyncIterator[CutProxy]:
    """Yield a proxy to the first database of a Redis; clients connect to its `url`."""
    proxy = CutProxy(redis_url, lost, at)
    with TemporaryDirectory(prefix="ff-") as folder:
        socket = Path(folder) / "proxy.sock"
        proxy.url = f"unix://{socket}"
        server = await asyncio.start_unix_server(proxy._accept, socket)
        try:
            yield proxy
        finally:
            server.close()
            await proxy.close()
