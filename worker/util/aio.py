"""Tasks that end for certain, loops that survive bugs, deadlines without timers, slots without tasks."""

import asyncio
import functools
import signal
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any, Generic, Protocol, TypeVar, cast

T = TypeVar("T")

CANCEL_AGAIN_S = 1.0

STEPS_PER_ITERATION = 16
"""One step, a dial or the start of a response, takes at most a millisecond."""


async def end(*tasks: asyncio.Task[Any], again_s: float = CANCEL_AGAIN_S) -> None:
    """Cancel the tasks and return when all have ended, with whatever result.

    One cancellation may be lost: on Python 3.11 asyncio.wait_for, which redis-py uses for every command,
    ignores one that comes just as it is done. again_s: when to cancel again, which also interrupts a task's
    own clean-up.
    """
    left = {task for task in tasks if not task.done()}
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=again_s)
    await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def ended(task: asyncio.Task[Any], patience_s: float) -> AsyncIterator[None]:
    """Cancel the task; enter the block once it has ended or after patience_s, and leave it after the task."""
    ending = asyncio.create_task(end(task), name="ending")
    await asyncio.wait([ending], timeout=patience_s)
    try:
        yield
    finally:
        await ending


async def for_at_most(timeout_s: float, work: Coroutine[Any, Any, None]) -> None:
    """Do the work for at most timeout_s; ignore what it raises."""
    task = asyncio.create_task(work, name="for at most")
    await asyncio.wait([task], timeout=timeout_s)
    await end(task)


async def whole(work: Coroutine[Any, Any, T], *, name: str) -> T:
    """Return the work's result. A first cancellation waits for the work to end, a second cancels it."""
    task = asyncio.create_task(work, name=name)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        try:
            await asyncio.wait([task])
        finally:
            await end(task)
        raise


async def keep_going(
    loop: Callable[[], Awaitable[None]], on_bug: Callable[[Exception], None], again_s: float
) -> None:
    """Run the loop until it returns; report what it raises and start it again after again_s."""
    while True:
        try:
            return await loop()
        except Exception as error:  # noqa: BLE001 the worker needs the loop
            on_bug(error)
            await asyncio.sleep(again_s)


async def end_of(task: asyncio.Future[Any]) -> None:
    """Return when the task has ended by itself, however often the caller is cancelled meanwhile."""
    while not task.done():
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        task.add_done_callback(functools.partial(_set_done, ended))
        with suppress(asyncio.CancelledError):
            await ended


async def to_the_end(work: Coroutine[Any, Any, T]) -> T:
    """Run the work to its end even if the caller is cancelled, once or repeatedly; returns its result."""
    task = asyncio.create_task(work)
    await end_of(task)
    return task.result()


def _set_done(ended: asyncio.Future[None], _task: asyncio.Future[Any]) -> None:
    if not ended.done():
        ended.set_result(None)


class Pending(Generic[T]):
    """A result on its way from another thread."""

    __slots__ = ("_ended", "_error", "_notified", "_result")

    def __init__(self) -> None:
        self._notified: asyncio.Future[None] | None = None
        self._ended = False
        self._result: T | None = None
        self._error: BaseException | None = None

    def set_result(self, result: T) -> None:
        """Set the result; call `notify` on the loop afterwards."""
        self._result, self._ended = result, True

    def set_error(self, error: BaseException) -> None:
        """Set the error to raise; call `notify` on the loop afterwards."""
        self._error, self._ended = error, True

    def notify(self) -> None:
        """Wake the caller; runs on the loop."""
        if self._notified is not None and not self._notified.done():
            self._notified.set_result(None)

    async def wait(self) -> T:
        """Return or raise the outcome. A cancelled caller still waits for it."""
        while not self._ended:
            self._notified = asyncio.get_running_loop().create_future()
            try:  # noqa: SIM105 contextlib.suppress costs more than the rest of this method
                await self._notified
            except asyncio.CancelledError:
                pass
        if self._error is not None:
            raise self._error
        return cast("T", self._result)


def signals() -> asyncio.Event:
    """Return an event that SIGINT and SIGTERM set from now on, instead of what they did."""
    signalled = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, signalled.set)
    return signalled


async def until(task: asyncio.Task[Any], event: asyncio.Event) -> None:
    """Return when the task has ended or the event is set."""
    waiting = asyncio.create_task(event.wait(), name="signal")
    try:
        await asyncio.wait([task, waiting], return_when=asyncio.FIRST_COMPLETED)
    finally:
        await end(waiting)


NEAR_S = 10.0


LOOK_EVERY_S = 2.0


class Expiring(Protocol):
    """Work with a deadline."""

    def expire(self) -> None:
        """Give up; called once, at the deadline."""


class Deadlines:
    """The deadlines of a worker process. One that is less than near_s away has its own timer."""

    def __init__(self, near_s: float = NEAR_S, look_every_s: float = LOOK_EVERY_S) -> None:
        self._near_s = near_s
        self._look_every_s = look_every_s
        self._far: dict[Expiring, float] = {}
        self._near: dict[Expiring, asyncio.TimerHandle] = {}
        self._look: asyncio.TimerHandle | None = None

    def add(self, work: Expiring, left_s: float) -> None:
        """Have the work expire after left_s, unless it is discarded before."""
        loop = asyncio.get_running_loop()
        if left_s <= self._near_s:
            self._near[work] = loop.call_later(left_s, self._expire, work)
            return
        self._far[work] = loop.time() + left_s
        if self._look is None:
            self._look = loop.call_later(self._look_every_s, self._set_timers)

    def discard(self, work: Expiring) -> None:
        """Forget work that has ended; a second call does nothing."""
        if self._far.pop(work, None) is None:
            timer = self._near.pop(work, None)
            if timer is not None:
                timer.cancel()

    def _expire(self, work: Expiring) -> None:
        del self._near[work]
        work.expire()

    def _set_timers(self) -> None:
        """Give timers to the deadlines that have come near."""
        loop = asyncio.get_running_loop()
        near_s = loop.time() + self._near_s
        for work in [work for work, ends_s in self._far.items() if ends_s <= near_s]:
            self._near[work] = loop.call_at(self._far.pop(work), self._expire, work)
        self._look = loop.call_later(self._look_every_s, self._set_timers) if self._far else None


class Slots:
    """A number of permits; those who wait for one get it in order."""

    def __init__(self, free: int) -> None:
        self._free = free
        self._waiting: deque[asyncio.Future[None]] = deque()

    def take(self) -> bool:
        """Take a permit if one is free."""
        if self._free <= 0:
            return False
        self._free -= 1
        return True

    @property
    def wanted(self) -> bool:
        """True if someone waits for a permit."""
        return bool(self._waiting)

    def queue(self) -> asyncio.Future[None]:
        """Return a future that is done once the caller has a permit; see `leave`."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self.take():
            waiter.set_result(None)
        else:
            self._waiting.append(waiter)
        return waiter

    def leave(self, waiter: asyncio.Future[None]) -> bool:
        """Stop waiting; return whether the caller has a permit, which it must release."""
        if waiter.done():
            return True
        self._waiting.remove(waiter)
        return False

    def release(self) -> None:
        """Return a permit; the first in the queue gets it."""
        if self._waiting:
            self._waiting.popleft().set_result(None)
        else:
            self._free += 1


class LoopBudget:
    """Bounds how many steps run in one iteration of the event loop.

    When thousands of hosts respond at the same moment, their responses would otherwise occupy the loop for
    seconds, and the leases of the lanes would expire.
    """

    def __init__(self, steps: int = STEPS_PER_ITERATION) -> None:
        self._steps = steps
        self._left = steps
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def take(self) -> None:
        """Return at once, or in a later iteration of the loop, in the order of the calls."""
        turn = asyncio.get_running_loop().create_future()
        self.resolve(turn)
        await turn

    def resolve(self, turn: asyncio.Future[None]) -> None:
        """Resolve the future at once, or in a later iteration of the loop, in the order of the calls."""
        if self._left:
            self._left -= 1
            turn.set_result(None)
            return
        self._waiting.append(turn)
        if len(self._waiting) == 1:
            asyncio.get_running_loop().call_soon(self._renew)

    def _renew(self) -> None:
        self._left = self._steps
        while self._waiting and self._left:
            turn = self._waiting.popleft()
            if not turn.done():  # else it was cancelled
                turn.set_result(None)
                self._left -= 1
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._renew)
