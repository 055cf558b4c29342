"""So many go on in one turn of the loop: what comes all at once keeps the worker from nothing else for long.

When thousands of hosts answer in the same moment, the loop would be at their answers for seconds, and
the leases of the lanes would lapse meanwhile.
"""

import asyncio
from collections import deque

MOST_A_TURN = 16
"""An answer takes a millisecond, or less."""


class Turns:
    """One for all of a worker's exchanges."""

    def __init__(self, most: int = MOST_A_TURN) -> None:
        self._most = most
        self._left = most
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._renews = False

    async def next(self) -> None:
        """Go on at once, or in a later turn of the loop, in the order in which they came."""
        self._renew_soon()
        if self._left and not self._waiting:
            self._left -= 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        await turn

    def _renew_soon(self) -> None:
        if not self._renews:
            self._renews = True
            asyncio.get_running_loop().call_soon(self._renew)

    def _renew(self) -> None:
        self._renews = False
        self._left = self._most
        while self._waiting and self._left:
            turn = self._waiting.popleft()
            if not turn.done():  # else it was given up
                turn.set_result(None)
                self._left -= 1
        if self._waiting:
            self._renew_soon()
