"""Takes lanes: the one that arq hands over, and then whichever others are due, many in one round trip.

So a hand-off is a hint. A thousand lanes need no thousand jobs of arq's, and one that this worker left to the
others is taken as soon as one of them looks.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence, Sized
from contextlib import contextmanager
from typing import Protocol

from redis.exceptions import RedisError, ResponseError

from fetchfleet.jobs.scripts.lanes import Early, Enough
from fetchfleet.worker.fetch.services import FetchServices
from fetchfleet.worker.lanes.store import Held
from fetchfleet.worker.util import aio
from fetchfleet.worker.util.clock import mono_s

AT_ONCE = 64
"""So many lanes are taken in one round trip."""

LOOK_AT = 4 * AT_ONCE
"""Out of so many they are chosen by chance: others look at the same ones at the same time."""


class Begin(Protocol):
    """Serves a lane that was taken, asked for at that time (our monotonic clock)."""

    async def __call__(self, name: str, held: Held, asked_s: float, *, insisted: bool = False) -> None:
        """Return when it is in our hands."""


class Taking:
    """One for a worker process; `run` is its task.

    lanes: those that it has. may: whether it wants any. choose: so many of them, by chance. wanted: set to
    have it look.
    """

    def __init__(
        self,
        services: FetchServices,
        lanes: Sized,
        begin: Begin,
        may: Callable[[], bool],
        choose: Callable[[Sequence[str], int], Sequence[str]],
        wanted: asyncio.Event,
    ) -> None:
        self._parts = services
        self._lanes = lanes
        self._begin = begin
        self._may = may
        self._choose = choose
        self._under_way = 0
        """Many are taken at once, and none of them is ours yet."""
        self.wanted = wanted
        wanted.set()

    def look_soon(self) -> None:
        """Lanes may be due, and we may have fewer than our share of them."""
        self.wanted.set()

    async def run(self) -> None:
        """Look whenever that is wanted, until cancelled."""
        while True:
            await self.wanted.wait()
            self.wanted.clear()
            more = True
            try:
                while more and self._may():
                    # Not cut short: what was taken and not begun is nobody's until its lease ends.
                    more = await aio.whole(self._take_some(), name="taking lanes")
            except (RedisError, OSError) as error:
                self._parts.report_redis_error(error)

    async def take(self, name: str, generation: int, *, insist: bool) -> Early | Enough | None:
        """Take over a lane that was handed to us; insist: whatever our share is.

        Early if it is not due yet, Enough if this worker has its share of the lanes.
        """
        asked_s = mono_s()
        held = None if insist else self._held
        with self._counted(1):
            try:
                taken = await self._parts.store.take(name, generation, held)
            except ResponseError as error:
                if not await self._parts.key_repair.repair(error, name):
                    raise
                return Early(0)
            if not isinstance(taken, Held):
                return taken
            await self._begin(name, taken, asked_s, insisted=insist)
        self.look_soon()
        return None

    async def _take_some(self) -> bool:
        """Whether there may be more for us to take."""
        names = await self._parts.store.due(self._parts.clock.now_ms(), LOOK_AT)
        chosen = self._choose(names, min(len(names), AT_ONCE))
        if not chosen:
            return False
        asked_s = mono_s()
        held = self._held
        with self._counted(len(chosen)):
            found = await self._parts.store.take_many(chosen, held)
            for name, taken in zip(chosen, found, strict=True):
                if isinstance(taken, Held):
                    await self._begin(name, taken, asked_s)
                elif isinstance(taken, Exception) and not await self._parts.key_repair.repair(taken, name):
                    self._parts.report_redis_error(taken)
        ours = any(isinstance(taken, Held) for taken in found)
        enough = any(isinstance(taken, Enough) for taken in found)
        # What another was quicker with was counted as ours: then it may not have been enough.
        return ours and (not enough or None in found)

    @property
    def _held(self) -> int:
        return len(self._lanes) + self._under_way

    @contextmanager
    def _counted(self, count: int) -> Iterator[None]:
        """What is being taken counts as ours."""
        self._under_way += count
        try:
            yield
        finally:
            self._under_way -= count
