"""Small bodies on their way to disk: whichever wait at a moment are stored by one thread, and told together.

Threads beside each other would stand in each other's way, for the interpreter and for the folder. Only where
a body has to wait, on a disk that is slow or stands still, there is one thread more at a time.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass

from worker.clock import mono_s
from worker.sink.folders import Folders

TURN_S = 0.005
"""After so long a thread tells what it has done, and begins anew."""

MOST_A_TURN = 32
"""Bodies; each may have folders of its own, which are open to the end of the turn."""

LATE_S = 0.05
"""A body that has waited for so long is for another thread."""

Work = Callable[[Folders], bool]
Outcome = bool | BaseException


@dataclass(slots=True)
class _Waiting:
    """outcome: there before `told`, which ends sooner where who waits is cancelled."""

    work: Work
    since_s: float
    told: asyncio.Future[None]
    outcome: Outcome | None = None


class Small:
    """The loop's side; work is done in those threads, so many of them at most."""

    def __init__(self, folders: Folders, threads: Executor, most: int) -> None:
        self._folders = folders
        self._threads = threads
        self._most = most
        self._at_work = 0
        self._waiting: deque[_Waiting] = deque()
        self._done: deque[_Waiting] = deque()
        self._looking: asyncio.TimerHandle | None = None

    async def do(self, work: Work) -> bool:
        """What the work returns or raises, once it is done; it gets the folders.

        However often we are cancelled: what it has put in place counts, and is told.
        """
        loop = asyncio.get_running_loop()
        waiting = _Waiting(work, mono_s(), loop.create_future())
        self._waiting.append(waiting)
        if not self._at_work:
            self._at_work = 1
            loop.call_soon(self._begin, loop)  # with all that are ready in this turn of the loop
        while waiting.outcome is None:
            if waiting.told.done():
                waiting.told = loop.create_future()
            with suppress(asyncio.CancelledError):
                await waiting.told
        if isinstance(waiting.outcome, BaseException):
            raise waiting.outcome
        return waiting.outcome

    def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            self._threads.submit(self._turn, loop)
        except RuntimeError as error:  # they have been shut down
            self._at_work -= 1
            while self._waiting:
                self._waiting[0].outcome = error
                self._done.append(self._waiting.popleft())
            self._tell()
            return
        if self._looking is None:
            self._looking = loop.call_later(LATE_S, self._look, loop)

    def _turn(self, loop: asyncio.AbstractEventLoop) -> None:
        """Runs off the loop. One body after the other, so that whoever waits is not bound to us."""
        ends_s = mono_s() + TURN_S
        try:
            with self._folders.at_hand(TURN_S) as folders, suppress(IndexError):
                for _ in range(MOST_A_TURN):
                    self._do(self._waiting.popleft(), folders)
                    if mono_s() >= ends_s:
                        break
        finally:
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(self._ended, loop)

    def _do(self, waiting: _Waiting, folders: Folders) -> None:
        try:
            waiting.outcome = waiting.work(folders)
        except BaseException as error:  # noqa: BLE001 whatever it is, it is the body's own
            waiting.outcome = error
        self._done.append(waiting)

    def _ended(self, loop: asyncio.AbstractEventLoop) -> None:
        self._at_work -= 1
        self._tell()
        if self._waiting and (not self._at_work or self._is_late()):
            self._at_work += 1
            self._begin(loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        """While threads are at work: one of them may be stuck, with bodies before and after it."""
        self._looking = None
        self._tell()
        if self._at_work < self._most and self._is_late():
            self._at_work += 1
            self._begin(loop)
        if self._at_work and self._looking is None:
            self._looking = loop.call_later(LATE_S, self._look, loop)

    def _is_late(self) -> bool:
        with suppress(IndexError):
            return mono_s() - self._waiting[0].since_s >= LATE_S
        return False

    def _tell(self) -> None:
        while self._done:
            told = self._done.popleft().told
            if not told.done():
                told.set_result(None)
