"""The isolation of suspects: fetches that one more crash of a worker may end as `poison`."""

import asyncio
from collections.abc import Callable

from fetchfleet.worker.fetch.rules.crashes import SOON_S

MAX_CLOSED_S = 2.0
"""The maximum time for which a suspect keeps other fetches from starting, however slow Redis is."""


class Isolation:
    """The order in which the suspects of this worker start, one at a time, apart from other starts.

    A worker that dies within SOON_S of a start may have died of it, so a suspect starts alone: from SOON_S
    before its start, no other fetch of any lane starts. This lasts until Redis has the settlement of the
    suspect, or the note that the worker outlived its start; `max_closed_s` at most.
    """

    def __init__(self, soon_s: float = SOON_S, max_closed_s: float = MAX_CLOSED_S) -> None:
        self._soon_s = soon_s
        self._max_closed_s = max_closed_s
        self.closed = False
        """True if no fetch but the suspect may start."""
        self._suspect_lock = asyncio.Lock()
        """Held by the suspect that runs."""
        self._suspect = ""
        """The ID of the suspect that runs, empty if none does."""
        self._wake_ups: set[Callable[[], None]] = set()
        self._open_timer: asyncio.TimerHandle | None = None

    async def begin(self, fetch_id: str) -> None:
        """Wait until no other suspect runs and the worker has outlived the starts of other fetches."""
        await self._suspect_lock.acquire()
        try:
            self._suspect, self.closed = fetch_id, True
            await asyncio.sleep(self._soon_s)
        except BaseException:
            self.end()
            raise
        self._open_timer = asyncio.get_running_loop().call_later(self._max_closed_s, self._open)

    def outlived(self, fetch_id: str) -> None:
        """Let other fetches start: Redis has the note that the worker outlived the start of the suspect."""
        if self._suspect == fetch_id:
            self._open()

    def end(self) -> None:
        """End the run of the suspect: other fetches may start, and the next suspect may begin."""
        self._suspect = ""
        self._open()
        self._suspect_lock.release()

    def wake_when_open(self, wake: Callable[[], None]) -> None:
        """Call `wake` once, as soon as other fetches may start."""
        self._wake_ups.add(wake)

    async def wait_open(self) -> None:
        """Wait until other fetches may start."""
        while self.closed:
            event = asyncio.Event()
            self.wake_when_open(event.set)
            await event.wait()

    def _open(self) -> None:
        self.closed = False
        if self._open_timer is not None:
            self._open_timer.cancel()
            self._open_timer = None
        wake_ups, self._wake_ups = self._wake_ups, set()
        for wake in wake_ups:
            wake()
