"""The time limits of attempts. A limit that is far off has no timer: most attempts end long before it."""

import asyncio

NEAR_S = 10.0
LOOK_EVERY_S = 2.0


class Deadlines:
    """Those of a worker process. A limit less than near_s away has a timer."""

    def __init__(self, near_s: float = NEAR_S, look_every_s: float = LOOK_EVERY_S) -> None:
        self._near_s = near_s
        self._look_every_s = look_every_s
        self._far: dict[asyncio.Timeout, float] = {}
        self._look: asyncio.TimerHandle | None = None

    def timeout(self, left_s: float) -> asyncio.Timeout:
        """Return a limit like that of asyncio.timeout, to be entered at once; call `over` after its block."""
        if left_s <= self._near_s:
            return asyncio.timeout(left_s)
        loop = asyncio.get_running_loop()
        limit = asyncio.timeout(None)
        self._far[limit] = loop.time() + left_s
        if self._look is None:
            self._look = loop.call_later(self._look_every_s, self._set_timers)
        return limit

    def over(self, limit: asyncio.Timeout) -> None:
        """Forget a limit whose block has ended."""
        self._far.pop(limit, None)

    def _set_timers(self) -> None:
        """Give timers to the limits that have come near."""
        loop = asyncio.get_running_loop()
        near_s = loop.time() + self._near_s
        for limit in [limit for limit, ends_s in self._far.items() if ends_s <= near_s]:
            limit.reschedule(self._far.pop(limit))
        self._look = loop.call_later(self._look_every_s, self._set_timers) if self._far else None
