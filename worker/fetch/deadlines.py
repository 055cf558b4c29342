"""The time that attempts have. A bound that is far off has a note and no timer: most never come near."""

import asyncio

NEAR_S = 10.0
LOOK_EVERY_S = 2.0


class Deadlines:
    """Those of a worker process."""

    def __init__(self) -> None:
        self._far: dict[asyncio.Timeout, float] = {}
        self._look: asyncio.TimerHandle | None = None

    def timeout(self, left_s: float) -> asyncio.Timeout:
        """As asyncio.timeout, to be entered at once; `over` is to be called after its block."""
        if left_s <= NEAR_S:
            return asyncio.timeout(left_s)
        loop = asyncio.get_running_loop()
        bound = asyncio.timeout(None)
        self._far[bound] = loop.time() + left_s
        if self._look is None:
            self._look = loop.call_later(LOOK_EVERY_S, self._set_near)
        return bound

    def over(self, bound: asyncio.Timeout) -> None:
        """The bound's block has ended."""
        self._far.pop(bound, None)

    def _set_near(self) -> None:
        """Those that are near get their timers."""
        loop = asyncio.get_running_loop()
        near_s = loop.time() + NEAR_S
        for bound in [bound for bound, ends_s in self._far.items() if ends_s <= near_s]:
            bound.reschedule(self._far.pop(bound))
        self._look = loop.call_later(LOOK_EVERY_S, self._set_near) if self._far else None
