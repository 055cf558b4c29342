"""Looks once a second whether the disk has room for bodies; without it the worker takes no lanes."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from fetchfleet.worker.lanes.lane import Lane
from fetchfleet.worker.observability import events
from fetchfleet.worker.sink.disk_space import Space, lack

LOOK_EVERY_S = 1.0

LEFT_ALONE_S = 1.0
"""A lane that we decline for want of room is offered again after so long."""


class Room:
    """One for a worker process; `run` is its task.

    Lanes at hand are given back: another worker may have room. What is in flight in them may end.
    """

    def __init__(
        self,
        space: Callable[[], Awaitable[Space]],
        least_bytes: int,
        lanes: Mapping[str, Lane],
        log: Any,
    ) -> None:
        self._space = space
        self._least_bytes = least_bytes
        self._lanes = lanes
        self._log = log
        self.lacking: str | None = None

    async def run(self) -> None:
        """Look, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            await self.look()

    async def look(self) -> None:
        """Look once, and say what has changed. A disk that does not say is no news: fetches will tell."""
        try:
            space = await self._space()
        except OSError:
            return
        before = self.lacking
        self.lacking = lack(space, self._least_bytes, lacked=before is not None)
        if self.lacking and not before:
            events.disk_full(space.free_bytes, space.free_files, self.lacking, self._log)
        if before and not self.lacking:
            events.disk_ok(space.free_bytes, space.free_files, self._log)
        if self.lacking:
            for lane in self._lanes.values():
                lane.leave()
