"""A proxy between one worker and Redis that can cut, black-hole or slow down its connections."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

BLOCK_BYTES = 1 << 16
BACKLOG = 1024


class Line:
    """Forwards one Unix socket to another; `delay_s` and `passes` may change at any time."""

    def __init__(self, there: Path) -> None:
        self._there = there
        self._tasks: set[asyncio.Task[None]] = set()
        self.delay_s = 0.0
        self.passes = asyncio.Event()
        self.passes.set()

    @classmethod
    @asynccontextmanager
    async def between(cls, here: Path, there: Path) -> AsyncIterator["Line"]:
        """Yield a running proxy."""
        line = cls(there)
        server = await asyncio.start_unix_server(line._accept, here, backlog=BACKLOG)
        try:
            yield line
        finally:
            server.close()
            await line.cut()

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
        other = None
        try:
            redis, other = await asyncio.open_unix_connection(self._there)
            ways = [
                asyncio.create_task(self._carry(reader, other)),
                asyncio.create_task(self._carry(redis, writer)),
            ]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)
        except OSError:
            pass  # Redis is unavailable: the client reads an end of file
        finally:
            for end in (writer, other):
                if end is not None:
                    end.transport.abort()

    async def _carry(self, source: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await source.read(BLOCK_BYTES):
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                await self.passes.wait()
                to.write(data)
                await to.drain()
