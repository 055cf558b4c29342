"""Between the network and the disk: while a block is taken, the next one is filled.

At most two blocks are in memory. Who fills faster than the disk takes has to wait, alone.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

BLOCK_BYTES = 384 * 1024


class Pump:
    """take gets the blocks in order, one at a time, in a task of their own."""

    def __init__(self, take: Callable[[bytearray], Coroutine[Any, Any, None]]) -> None:
        self._take = take
        self._taking: asyncio.Task[None] | None = None
        self.filling = bytearray()
        """What has not been handed over yet."""

    @property
    def started(self) -> bool:
        """Whether a block has been handed over."""
        return self._taking is not None

    async def add(self, chunk: bytes | bytearray) -> None:
        """Fill; raises what `take` raised of an earlier block."""
        self.filling += chunk
        if len(self.filling) >= BLOCK_BYTES:
            await self._hand_over()

    async def flush(self) -> None:
        """Hand over what is left, and wait until all is taken; raises what `take` raised."""
        if self.filling:
            await self._hand_over()
        await self._taken()

    async def rest(self) -> None:
        """Wait until no block is being taken any more, however that ended; what is left is let go of."""
        if self._taking is not None:
            await asyncio.wait([self._taking])
            if not self._taking.cancelled():
                self._taking.exception()  # nobody asks for it any more
        # Whoever takes the blocks knows us, and we him: what is left would stay until the collector comes.
        self.filling = bytearray()

    async def _hand_over(self) -> None:
        await self._taken()
        block, self.filling = self.filling, bytearray()
        self._taking = asyncio.create_task(self._take(block), name="block")

    async def _taken(self) -> None:
        if self._taking is not None:
            await asyncio.wait([self._taking])  # not for itself: our end is not its
            self._taking.result()
