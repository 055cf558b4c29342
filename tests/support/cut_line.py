"""A line to Redis that is cut once, at a chosen request or at a chosen reply."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

BLOCK_BYTES = 1 << 16


class Lost(StrEnum):
    """A request that Redis never sees, or a reply to one that Redis has carried out."""

    REQUEST = "request"
    REPLY = "reply"


class CutLine:
    """Forwards a Unix socket to a Redis. The message number `at`, from 1, cuts its connection."""

    def __init__(self, redis_url: str, lost: Lost, at: int) -> None:
        self._there = urlsplit(redis_url)
        self._lost = lost
        self._left = at
        self._tasks: set[asyncio.Task[None]] = set()
        self._ends: list[asyncio.StreamWriter] = []
        self.url = ""

    @property
    def was_cut(self) -> bool:
        """Return whether the message has come."""
        return self._left <= 0

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._ends.append(writer)
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._there.scheme == "unix":
            redis, other = await asyncio.open_unix_connection(self._there.path)
        else:
            redis, other = await asyncio.open_connection(self._there.hostname, self._there.port)
        self._ends.append(other)
        ways = [
            asyncio.create_task(self._carry(reader, other, Lost.REQUEST)),
            asyncio.create_task(self._carry(redis, writer, Lost.REPLY)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            for end in (writer, other):
                end.transport.abort()

    async def _carry(self, source: asyncio.StreamReader, to: asyncio.StreamWriter, kind: Lost) -> None:
        with suppress(OSError):
            while data := await source.read(BLOCK_BYTES):
                if kind is self._lost and not self.was_cut:
                    self._left -= 1
                    if self.was_cut:
                        return
                to.write(data)
                await to.drain()

    async def end(self) -> None:
        """Close every connection."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for end in self._ends:
            end.transport.abort()
        await asyncio.sleep(0)  # the transports close their sockets at the next turn of the loop


@asynccontextmanager
async def cut_line(redis_url: str, lost: Lost, at: int) -> AsyncIterator[CutLine]:
    """Yield a line to the first database of a Redis; its own URL is `url`."""
    line = CutLine(redis_url, lost, at)
    with TemporaryDirectory(prefix="ff-") as folder:
        here = Path(folder) / "line.sock"
        line.url = f"unix://{here}"
        server = await asyncio.start_unix_server(line._accept, here)
        try:
            yield line
        finally:
            server.close()
            await line.end()
