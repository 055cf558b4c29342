"""Bounds the work of one iteration of the event loop."""

import asyncio
from collections import deque

STEPS_PER_ITERATION = 16
"""One step, a dial or the start of a response, takes at most a millisecond."""


class LoopBudget:
    """Bounds how many steps run in one iteration of the event loop.

    When thousands of hosts respond at the same moment, their responses would otherwise occupy the loop for
    seconds, and the leases of the lanes would expire.
    """

    def __init__(self, steps: int = STEPS_PER_ITERATION) -> None:
        self._steps = steps
        self._left = steps
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._renewal_is_scheduled = False

    async def take(self) -> None:
        """Return at once, or in a later iteration of the loop, in the order of the calls."""
        turn = asyncio.get_running_loop().create_future()
        self.resolve(turn)
        await turn

    def resolve(self, turn: asyncio.Future[None]) -> None:
        """Resolve the future at once, or in a later iteration of the loop, in the order of the calls."""
        if not self._renewal_is_scheduled:
            self._renewal_is_scheduled = True
            asyncio.get_running_loop().call_soon(self._renew)
        if self._left and not self._waiting:
            self._left -= 1
            turn.set_result(None)
        else:
            self._waiting.append(turn)

    def _renew(self) -> None:
        self._left = self._steps
        while self._waiting and self._left:
            turn = self._waiting.popleft()
            if not turn.done():  # else it was cancelled
                turn.set_result(None)
                self._left -= 1
        self._renewal_is_scheduled = bool(self._waiting)
        if self._renewal_is_scheduled:
            asyncio.get_running_loop().call_soon(self._renew)
