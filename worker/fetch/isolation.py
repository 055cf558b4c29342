"""The isolation of suspects: fetches that one more crash of a worker may end as poison."""

import asyncio
from collections.abc import Callable

from fetchfleet.worker.fetch.rules.crashes import SOON_S

MOST_S = 2.0
"""The longest time for which a suspect keeps others from starting, however slow Redis is."""


class Isolation:
    """Lets one suspect run at a time in this worker, and lets nothing start beside its start.

    A worker that dies within SOON_S of a start may have died of it. A suspect must not be blamed for the
    start of another fetch, in any lane. So nothing else starts from SOON_S before its start until Redis knows
    its end, or that the worker has outlived its start. most_s: see MOST_S.
    """

    def __init__(self, soon_s: float = SOON_S, most_s: float = MOST_S) -> None:
        self._soon_s = soon_s
        self._most_s = most_s
        self.closed = False
        """Whether no fetch but the suspect may start."""
        self._turn = asyncio.Lock()
        self._suspect = ""
        self._wake_ups: set[Callable[[], None]] = set()
        self._at_the_latest: asyncio.TimerHandle | None = None

    async def begin(self, fetch_id: str) -> None:
        """Return when the suspect may start: its turn has come, and the worker has outlived other starts."""
        await self._turn.acquire()
        try:
            self._suspect, self.closed = fetch_id, True
            await asyncio.sleep(self._soon_s)
        except BaseException:
            self.end()
            raise
        self._at_the_latest = asyncio.get_running_loop().call_later(self._most_s, self._open)

    def outlived(self, fetch_id: str) -> None:
        """Let others start beside the suspect: Redis knows that the worker has outlived its start."""
        if self._suspect == fetch_id:
            self._open()

    def end(self) -> None:
        """Let others start, and the next suspect take its turn."""
        self._suspect = ""
        self._open()
        self._turn.release()

    def wake_when_open(self, wake: Callable[[], None]) -> None:
        """Call `wake` once, when others may start."""
        self._wake_ups.add(wake)

    async def opened(self) -> None:
        """Return when others may start."""
        while self.closed:
            event = asyncio.Event()
            self.wake_when_open(event.set)
            await event.wait()

    def _open(self) -> None:
        self.closed = False
        if self._at_the_latest is not None:
            self._at_the_latest.cancel()
            self._at_the_latest = None
        wake_ups, self._wake_ups = self._wake_ups, set()
        for wake in wake_ups:
            wake()
