"""Small bodies on their way to disk: whichever wait at a moment are stored by one thread, and told together.

Threads beside each other would stand in each other's way, for the interpreter and for the folder. Only on a
disk that is slow each body has a thread, and where one is stuck those that wait have another.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass
from time import thread_time

from fetchfleet.worker.sink.files.directory import Folders
from fetchfleet.worker.util.clock import mono_s

TURN_S = 0.005
"""After so long a thread tells what it has done, and begins anew."""

MOST_A_TURN = 32
"""Bodies; each may have folders of its own, which are open to the end of the turn."""

STUCK_S = 0.05
"""Threads that have done nothing for so long are not waited for: another takes what waits."""

SLOW_S = 0.002
"""A disk that takes so long for a body is waited for, which many threads do better than one."""

SLOW_TURNS = 8
"""In a row, before a disk is slow: in a few it may have been the processor that was waited for."""

SLOW_FOR_S = 1.0
"""Then one thread looks again: whether many wait for the disk or for each other is not to be seen."""

Work = Callable[[Folders], bool]
Outcome = bool | BaseException


@dataclass(slots=True)
class _Waiting:
    """outcome: there before `told`, which ends sooner where who waits is cancelled."""

    work: Work
    told: asyncio.Future[None]
    outcome: Outcome | None = None


class _Turn:
    """Of a thread: when it began, and what the loop had used of the processor by then."""

    def __init__(self) -> None:
        self._began_s, self._used_s = mono_s(), thread_time()

    def waited_s(self) -> float:
        """How long it has taken beside what the loop has used, for which it may have had to wait."""
        return mono_s() - self._began_s - (thread_time() - self._used_s)


class Small:
    """The loop's side; work is done in those threads, so many of them at most."""

    def __init__(self, folders: Folders, threads: Executor, most: int) -> None:
        self._folders = folders
        self._threads = threads
        self._most = most
        self._waiting: deque[_Waiting] = deque()
        self._done: deque[_Waiting] = deque()
        self._turns: set[_Turn] = set()
        self._stuck: set[_Turn] = set()
        """Those of the turns that nobody counts on."""
        self._goes_on = False
        """Whether anything was done since the last look."""
        self._slow_turns = 0
        self._slow_until_s = 0.0
        self._looking: asyncio.TimerHandle | None = None

    async def do(self, work: Work) -> bool:
        """What the work returns or raises, once it is done; it gets the folders.

        However often we are cancelled: what it has put in place counts, and is told.
        """
        loop = asyncio.get_running_loop()
        waiting = _Waiting(work, loop.create_future())
        self._waiting.append(waiting)
        self._have_it_done(loop)
        while waiting.outcome is None:
            if waiting.told.done():
                waiting.told = loop.create_future()
            with suppress(asyncio.CancelledError):
                await waiting.told
        if isinstance(waiting.outcome, BaseException):
            raise waiting.outcome
        return waiting.outcome

    def _have_it_done(self, loop: asyncio.AbstractEventLoop) -> None:
        """One thread more for what waits, if there are not as many as there should be."""
        wanted = self._most if mono_s() < self._slow_until_s else 1
        at_work = len(self._turns)
        if self._waiting and at_work < self._most and at_work - len(self._stuck) < wanted:
            turn = _Turn()
            self._turns.add(turn)
            loop.call_soon(self._begin, loop, turn)  # with all that are ready in this turn of the loop

    def _begin(self, loop: asyncio.AbstractEventLoop, turn: _Turn) -> None:
        try:
            self._threads.submit(self._take_turn, loop, turn)
        except RuntimeError as error:  # they have been shut down
            self._turns.remove(turn)
            while self._waiting:
                self._waiting[0].outcome = error
                self._done.append(self._waiting.popleft())
            self._tell()
            return
        if self._looking is None:
            self._looking = loop.call_later(STUCK_S, self._look, loop)

    def _take_turn(self, loop: asyncio.AbstractEventLoop, turn: _Turn) -> None:
        """Runs off the loop. One body after the other, so that whoever waits is not bound to us."""
        ends_s, done = mono_s() + TURN_S, 0
        try:
            with self._folders.at_hand(TURN_S) as folders, suppress(IndexError):
                while done < MOST_A_TURN and mono_s() < ends_s:
                    self._do(self._waiting.popleft(), folders)
                    done += 1
        finally:
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(self._ended, loop, turn, done)

    def _do(self, waiting: _Waiting, folders: Folders) -> None:
        try:
            waiting.outcome = waiting.work(folders)
        except BaseException as error:  # noqa: BLE001 whatever it is, it is the body's own
            waiting.outcome = error
        self._done.append(waiting)

    def _ended(self, loop: asyncio.AbstractEventLoop, turn: _Turn, done: int) -> None:
        if len(self._turns) == 1 and done:
            self._slow_turns = self._slow_turns + 1 if turn.waited_s() >= done * SLOW_S else 0
            if self._slow_turns == SLOW_TURNS:
                self._slow_turns, self._slow_until_s = 0, mono_s() + SLOW_FOR_S
        self._turns.remove(turn)
        self._stuck.discard(turn)
        self._tell()
        self._have_it_done(loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        """While threads are at work: all of them may be stuck, with bodies before and after theirs."""
        self._tell()
        if not self._goes_on:
            self._stuck.update(self._turns)
        self._goes_on = False
        self._have_it_done(loop)
        self._looking = loop.call_later(STUCK_S, self._look, loop) if self._turns else None

    def _tell(self) -> None:
        while self._done:
            self._goes_on = True
            told = self._done.popleft().told
            if not told.done():
                told.set_result(None)
