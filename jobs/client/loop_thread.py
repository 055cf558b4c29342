"""`LoopThread`: an event loop in a thread of its own, for the API without asyncio."""

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, wait
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")

Calls = SimpleQueue[Callable[[], None]]
"""Functions for a caller's thread."""

WAKE_S = 0.5
"""The longest wait without a check for signals. One that arrives as a wait begins does not end the wait."""


class LoopThread:
    """An event loop in a thread. Other threads run coroutines in it."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._loop = asyncio.new_event_loop()
        self._closing = False
        self._order = threading.RLock()
        """Held while a call is scheduled, so that each is ahead of the end of the loop, or refused."""
        self._thread = threading.Thread(target=self._serve, name="fetchfleet", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T], calls: Calls | None = None) -> T:
        """Return the result of a coroutine. If the caller is interrupted, cancel it and wait for its end.

        calls: functions to call in the caller's thread, which the coroutine adds and waits for. Raises
        RuntimeError if this object cannot be used, or is closed meanwhile.
        """
        done: Future[T] = Future()
        tasks: list[asyncio.Task[T]] = []

        def start() -> None:
            tasks.append(self._loop.create_task(work))
            tasks[0].add_done_callback(lambda task: _copy_result(task, done))

        def stop() -> None:
            if tasks:
                tasks[0].cancel()
            else:  # interrupted before `start` was scheduled
                work.close()
                done.set_exception(asyncio.CancelledError())

        try:
            with self._order:
                try:
                    self._check()
                except RuntimeError:
                    work.close()
                    done.cancel()
                    raise
                self._loop.call_soon_threadsafe(start)
            if calls is not None:
                done.add_done_callback(lambda _: calls.put(_nothing))
            while not done.done():
                if calls is None:
                    wait([done], WAKE_S)
                elif (call := _next_call(calls)) is not None:
                    call()
            return done.result()
        except BaseException:
            if not done.done():
                with suppress(RuntimeError):  # the loop is closed, so the coroutine has ended
                    self._loop.call_soon_threadsafe(stop)
                wait([done])
            raise

    def call_soon(self, function: Callable[..., object], *args: object) -> None:
        """Call a function in the thread of the loop."""
        self._loop.call_soon_threadsafe(function, *args)

    @property
    def is_closed(self) -> bool:
        """True after `close`, and in another process."""
        return self._closing or os.getpid() != self._pid

    def close(self) -> None:
        """Cancel every task, and end the loop and the thread."""
        with self._order:
            if not self._closing:
                self._closing = True
                self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _serve(self) -> None:
        try:
            self._loop.run_forever()
        finally:
            with self._order:
                self._closing = True  # also after SystemExit in a task
            self._loop.run_until_complete(_end_tasks())
            self._loop.close()

    def _check(self) -> None:
        if os.getpid() != self._pid:
            raise RuntimeError("this Fleet belongs to another process; make a new one after a fork")
        if self._closing:
            raise RuntimeError("this Fleet is closed; make a new one")
        if threading.get_ident() == self._thread.ident:
            raise RuntimeError("this Fleet cannot be used in its own thread; use fetchfleet.Fleet there")


def _next_call(calls: Calls) -> Callable[[], None] | None:
    """Return the next function, or None if none is added for a while."""
    try:
        return calls.get(timeout=WAKE_S)
    except Empty:
        return None


async def _end_tasks() -> None:
    """Cancel every other task of the loop, and wait for their ends."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    await asyncio.get_running_loop().shutdown_asyncgens()


def _copy_result(task: "asyncio.Task[T]", done: "Future[T]") -> None:
    """Copy the result of a task, or its error."""
    if task.cancelled():
        done.set_exception(RuntimeError("this Fleet was closed during the call"))
    elif (error := task.exception()) is not None:
        done.set_exception(error)
    else:
        done.set_result(task.result())


def _nothing() -> None:
    """Do nothing: wakes a caller that waits for the next call."""
