"""Small bodies on their way to disk: one thread stores all that wait, and reports them together.

Several threads would compete for the interpreter and for the folder. Only on a slow disk does each body get
a thread, and if one thread is stuck, another takes the waiting bodies.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import suppress
from time import thread_time
from typing import NamedTuple

from fetchfleet.worker.sink.files.directory import Directory
from fetchfleet.worker.sink.index_entry import StoredAt
from fetchfleet.worker.util import aio
from fetchfleet.worker.util.clock import mono_s

Work = Callable[[Directory], StoredAt | None]


class BatchTimings(NamedTuple):
    """When a turn of a thread ends, and when a disk counts as stuck or slow."""

    turn_s: float = 0.005
    """After that, a thread reports what it has done and starts anew."""
    turn_bodies: int = 32
    """Bodies a turn at most: each may have folders of its own, held open until the turn ends."""
    stuck_s: float = 0.05
    """Threads that have finished nothing for so long are stuck, and another one starts."""
    slow_s: float = 0.002
    """A disk that needs so long for a body is slow; many threads wait for it better than one."""
    slow_turns: int = 8
    """Slow turns in a row before the disk counts as slow: one may have waited for the processor."""
    slow_for_s: float = 1.0
    """After that, one thread tries again: many may have waited for each other, not for the disk."""


class _SmallBody(aio.Pending[StoredAt | None]):
    """A body that waits to be stored."""

    __slots__ = ("opening", "stored", "work")

    def __init__(self, loop: asyncio.AbstractEventLoop, work: Work) -> None:
        super().__init__(loop)
        self.work = work
        self.opening = 0
        """Of the out folder that the body was stored in."""
        self.stored: StoredAt | None = None


class _Turn:
    """A turn of a thread: when it began, on the clock and in processor time of the loop."""

    def __init__(self) -> None:
        self._began_s, self._used_s = mono_s(), thread_time()

    def waited_s(self) -> float:
        """Return its duration less the processor time of the loop, for which it may have had to wait."""
        return mono_s() - self._began_s - (thread_time() - self._used_s)


class SmallBatch:
    """Stores small bodies in at most `max_threads` of the threads. Its methods run on the loop."""

    def __init__(
        self, directory: Directory, threads: Executor, max_threads: int, timings: BatchTimings | None = None
    ) -> None:
        self._directory = directory
        self._threads = threads
        self._max_threads = max_threads
        self._timings = timings or BatchTimings()
        self._waiting: deque[_SmallBody] = deque()
        self._named: deque[_SmallBody] = deque()
        """Stored bodies that are not confirmed yet: see Directory.confirm."""
        self._done: deque[_SmallBody] = deque()
        self._turns: set[_Turn] = set()
        self._stuck: set[_Turn] = set()
        """The turns that are stuck."""
        self._progress = False
        """Whether any body has been stored since the last look."""
        self._slow_turns = 0
        self._slow_until_s = 0.0
        self._timer: asyncio.TimerHandle | None = None

    async def do(self, work: Work) -> StoredAt | None:
        """Run the work in a thread, with the directory held open; returns or raises its outcome.

        A cancelled caller still waits for the outcome: a body that has its name counts.
        """
        loop = asyncio.get_running_loop()
        body = _SmallBody(loop, work)
        self._waiting.append(body)
        self._start_turn(loop)
        return await body.wait()

    def _start_turn(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start one more thread if there are bodies for it and fewer are at work than should be."""
        wanted = self._max_threads if mono_s() < self._slow_until_s else 1
        at_work = len(self._turns)
        pending = self._waiting or self._named
        if pending and at_work < self._max_threads and at_work - len(self._stuck) < wanted:
            turn = _Turn()
            self._turns.add(turn)
            loop.call_soon(self._submit, loop, turn)  # so that it takes all bodies of this turn of the loop

    def _submit(self, loop: asyncio.AbstractEventLoop, turn: _Turn) -> None:
        try:
            self._threads.submit(self._take_turn, loop, turn)
        except RuntimeError as error:  # the threads have been shut down
            self._turns.remove(turn)
            while self._waiting:
                self._waiting[0].set_error(error)
                self._done.append(self._waiting.popleft())
            self._notify()
            return
        if self._timer is None:
            self._timer = loop.call_later(self._timings.stuck_s, self._look, loop)

    def _take_turn(self, loop: asyncio.AbstractEventLoop, turn: _Turn) -> None:
        """Store one waiting body after the other, and confirm them together; runs off the loop."""
        timings, done = self._timings, 0
        ends_s = mono_s() + timings.turn_s
        try:
            self._confirm()  # bodies of a turn that is stuck
            with self._directory.held_open(timings.turn_s) as directory, suppress(IndexError):
                while done < timings.turn_bodies and mono_s() < ends_s:
                    body = self._waiting.popleft()
                    done += 1
                    try:
                        body.stored = body.work(directory)
                    except BaseException as error:  # noqa: BLE001 the body's own error, of any kind
                        body.set_error(error)
                        self._done.append(body)
                    else:
                        body.opening = directory.opening
                        self._named.append(body)
            self._confirm()
        finally:
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(self._end_turn, loop, turn, done)

    def _confirm(self) -> None:
        """Check, once for all that are named, that bodies are where their results will say."""
        named: list[_SmallBody] = []
        with suppress(IndexError):
            while True:
                named.append(self._named.popleft())
        in_place = self._directory.in_place() if named else True
        for body in named:
            if in_place and body.opening == self._directory.opening:
                body.set_result(body.stored)
            else:
                body.set_error(self._directory.out_of_place())
        self._done.extend(named)

    def _end_turn(self, loop: asyncio.AbstractEventLoop, turn: _Turn, done: int) -> None:
        timings = self._timings
        if len(self._turns) == 1 and done:
            self._slow_turns = self._slow_turns + 1 if turn.waited_s() >= done * timings.slow_s else 0
            if self._slow_turns == timings.slow_turns:
                self._slow_turns, self._slow_until_s = 0, mono_s() + timings.slow_for_s
        self._turns.remove(turn)
        self._stuck.discard(turn)
        self._notify()
        self._start_turn(loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        """While threads are at work: report stored bodies, and mark the turns as stuck without progress."""
        self._notify()
        if not self._progress:
            self._stuck.update(self._turns)
        self._progress = False
        self._start_turn(loop)
        self._timer = loop.call_later(self._timings.stuck_s, self._look, loop) if self._turns else None

    def _notify(self) -> None:
        while self._done:
            self._progress = True
            self._done.popleft().notify()
