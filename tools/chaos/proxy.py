"""A proxy between one worker and Redis that can cut, black-hole or slow down its connections."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

BLOCK_BYTES = 1 << 16
BACKLOG = 1024


class Proxy:
    """Forwards the connections of one Unix socket to another."""

    def __init__(self, target: Path) -> None:
        self._target = target
        self._tasks: set[asyncio.Task[None]] = set()
        self.delay_s = 0.0
        """Delay of each block of data; may change at any time."""
        self.forwards = asyncio.Event()
        """Cleared to hold all data back."""
        self.forwards.set()

    @classmethod
    @asynccontextmanager
    async def between(cls, socket: Path, target: Path) -> AsyncIterator["Proxy"]:
        """Yield a proxy that listens on a socket and connects to the target."""
        proxy = cls(target)
        server = await asyncio.start_unix_server(proxy._accept, socket, backlog=BACKLOG)
        try:
            yield proxy
        finally:
            server.close()
            await proxy.cut()

    async def cut(self) -> None:
        """Close every connection at once."""
        while self._tasks:
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(self._tasks)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._connect(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        redis_writer = None
        try:
            redis_reader, redis_writer = await asyncio.open_unix_connection(self._target)
            directions = [
                asyncio.create_task(self._forward(reader, redis_writer)),
                asyncio.create_task(self._forward(redis_reader, writer)),
            ]
            try:
                await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for direction in directions:
                    direction.cancel()
                await asyncio.gather(*directions, return_exceptions=True)
        except OSError:
            pass  # Redis is unavailable: the client reads an end of file
        finally:
            for end in (writer, redis_writer):
                if end is not None:
                    end.transport.abort()

    async def _forward(self, source: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await source.read(BLOCK_BYTES):
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                await self.forwards.wait()
                to.write(data)
                await to.drain()
