"""The state that the pages keep between requests: the last snapshot, and recent figures."""

import asyncio
from collections.abc import Awaitable, Callable

from fetchfleet.worker.console.pages.history import History
from fetchfleet.worker.inspect.snapshot import Snapshot
from fetchfleet.worker.util.clock import mono_s

SHARED_FOR_S = 1.5
"""The time for which a snapshot is used again: so many viewers cost Redis no more than one."""
MAX_STREAMS = 100
"""The maximum number of live streams. Further pages do not update themselves until one ends."""


class PagesState:
    """The state that all pages of a server share."""

    def __init__(self) -> None:
        self.history = History()
        self.streams = 0
        """The number of open live streams."""
        self._lock = asyncio.Lock()
        self._snapshot: Snapshot | None = None
        self._read_s = float("-inf")

    async def snapshot(self, read: Callable[[], Awaitable[Snapshot]]) -> Snapshot:
        """Return the state of the fleet, read now or a moment ago."""
        async with self._lock:
            if self._snapshot is None or mono_s() - self._read_s > SHARED_FOR_S:
                self._snapshot = await read()
                self._read_s = mono_s()
            return self._snapshot

    def forget(self) -> None:
        """Read the state of the fleet again with the next request: an action has changed it."""
        self._read_s = float("-inf")
