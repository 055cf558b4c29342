"""A client pinned to one address, and what is under way on it until nobody wants it any more."""

import asyncio
from contextlib import suppress
from dataclasses import dataclass

from pyreqwest.client import Client
from pyreqwest.request import StreamRequest
from pyreqwest.response import Response

from fetchfleet.worker.http.reqwest.socket_marks import hang_up

LOOK_AGAIN_S = 0.2
"""A connection that is just being made may be hung up too early; it is looked for again."""


Bounds = tuple[float, float | None]


@dataclass(slots=True, eq=False)
class Pinned:
    """A client that knows its host at this address alone.

    mark_ms: by which its connections are known. bounds: for how long it connects and waits for a head.
    """

    client: Client
    address: str
    bounds: Bounds
    mark_ms: int
    answered: bool = False
    """Whether an answer came over it: then there may be connections that the host has closed since."""
    retired: bool = False
    """Whether requests begin elsewhere."""
    wanted: int = 0
    """Exchanges whose answer somebody waits for, or reads."""
    unwanted: int = 0
    """Requests that were given up before their head came; the host may be at work on them."""

    async def head_of(self, request: StreamRequest) -> "Exchange":
        """Send the request and wait for the head of its answer; raises pyreqwest's errors.

        Cancelled, it returns once the host is rid of the request: until then it counts as in flight. Its
        connection is one of several, so it waits for those who want the others, or for its own bound.
        """
        asked = asyncio.ensure_future(request.__aenter__())
        self.wanted += 1
        try:
            response = await asyncio.shield(asked)
        except BaseException as error:
            self.no_more()
            if isinstance(error, asyncio.CancelledError):
                await self._rid_of(request, asked)
            raise
        finally:
            del asked  # its error knows this frame: a circle, that would keep the client and its connections
        self.answered = True
        return Exchange(self, request, response)

    def retire(self) -> None:
        """No more requests on its connections: one of them is in doubt, or dead, and its like may be."""
        self.retired = True

    def no_more(self) -> None:
        """One that was wanted is not any more."""
        self.wanted -= 1
        if self.unwanted and not self.wanted:
            hang_up(self.mark_ms)

    async def _rid_of(self, request: StreamRequest, asked: asyncio.Future[Response]) -> None:
        self.retire()
        self.unwanted += 1
        try:
            while not asked.done():
                if not self.wanted:
                    hang_up(self.mark_ms)
                with suppress(asyncio.CancelledError):
                    await asyncio.wait([asked], timeout=LOOK_AGAIN_S)
        finally:
            self.unwanted -= 1
        if asked.exception() is None:
            await request.__aexit__(None, None, None)


@dataclass(slots=True, eq=False)
class Exchange:
    """An answer whose head is here; `end` when nobody reads on."""

    pinned: Pinned
    request: StreamRequest
    response: Response

    async def end(self) -> None:
        """Let go of its connection: to be used again if the body was read, else closed."""
        self.pinned.no_more()
        await self.request.__aexit__(None, None, None)
