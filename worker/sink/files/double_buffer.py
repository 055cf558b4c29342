"""A double buffer between the network and the disk: one block is written while the next one fills.

At most two blocks are in memory. A producer faster than the disk waits, and delays no other body.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

BLOCK_BYTES = 384 * 1024


class DoubleBuffer:
    """Passes blocks to `write` in order, one at a time, in tasks of their own."""

    def __init__(self, write: Callable[[bytearray], Coroutine[Any, Any, None]]) -> None:
        self._write = write
        self._writing: asyncio.Task[None] | None = None
        self.filling = bytearray()
        """Bytes not handed over yet."""

    async def add(self, chunk: bytes | bytearray) -> None:
        """Fill the buffer. Raises the error of an earlier block."""
        self.filling += chunk
        if len(self.filling) >= BLOCK_BYTES:
            await self._hand_over()

    async def flush(self) -> None:
        """Hand over the rest, and wait until everything is written. Raises the error of any block."""
        if self.filling:
            await self._hand_over()
        await self._written()

    async def abandon(self) -> None:
        """Wait until no block is being written, ignoring its error, and drop the rest."""
        if self._writing is not None:
            await asyncio.wait([self._writing])
            if not self._writing.cancelled():
                self._writing.exception()  # mark as retrieved
        # This buffer and its owner form a reference cycle, so the bytes would wait for the garbage collector.
        self.filling = bytearray()

    async def _hand_over(self) -> None:
        await self._written()
        block, self.filling = self.filling, bytearray()
        self._writing = asyncio.create_task(self._write(block), name="block")

    async def _written(self) -> None:
        if self._writing is not None:
            await asyncio.wait([self._writing])  # instead of awaiting it: our cancellation must not reach it
            self._writing.result()
