"""asyncio helpers: reliable cancellation, restarted loops, cheap deadlines, permits, loop budgets."""

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
"""A step is a dial or the start of a response, and takes at most a millisecond."""


async def end(*tasks: asyncio.Task[Any], again_s: float = CANCEL_AGAIN_S) -> None:
    """Cancel the tasks and return when all have ended; ignore their results and exceptions.

    A cancellation may be lost: on Python 3.11, asyncio.wait_for ignores one that arrives just as it
    completes, and redis-py uses it for every command. again_s: the interval at which to cancel again. A
    repeated cancellation also interrupts a task's own clean-up.
    """
    if not tasks:
        return
    running = {task for task in tasks if not task.done()}
    while running:
        for task in running:
            task.cancel()
        _, running = await asyncio.wait(running, timeout=again_s)
    await asyncio.gather(*tasks, return_exceptions=True)


def peer_of(transport: asyncio.BaseTransport) -> str | None:
    """Return the other end of a connection as `ADDRESS:PORT`; None if it has closed the connection."""
    with suppress(OSError):
        peer = transport.get_extra_info("peername")
        if peer:
            address, port, *_ = peer
            return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
    return None


@asynccontextmanager
async def cancelling(task: asyncio.Task[Any], wait_s: float) -> AsyncIterator[None]:
    """Cancel the task; enter the block when it has ended or after wait_s. Exit only when it has ended."""
    ending = asyncio.create_task(end(task), name="ending")
    await asyncio.wait([ending], timeout=wait_s)
    try:
        yield
    finally:
        await ending


async def run_for_at_most(timeout_s: float, work: Coroutine[Any, Any, None]) -> None:
    """Run the work for at most timeout_s; ignore its exceptions."""
    task = asyncio.create_task(work, name="for at most")
    await asyncio.wait([task], timeout=timeout_s)
    await end(task)


async def finish_before_cancel(work: Coroutine[Any, Any, T], *, name: str) -> T:
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


async def restart_on_error(
    loop: Callable[[], Awaitable[None]], on_bug: Callable[[Exception], None], again_s: float
) -> None:
    """Run the loop until it returns. If it raises, pass the exception to on_bug and restart after again_s."""
    while True:
        try:
            return await loop()
        except Exception as error:  # noqa: BLE001 the worker needs the loop
            on_bug(error)
            await asyncio.sleep(again_s)


async def wait_until_done(task: asyncio.Future[Any]) -> None:
    """Return when the task has ended. Swallow every cancellation of the caller until then."""
    while not task.done():
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        task.add_done_callback(functools.partial(_set_done, ended))
        with suppress(asyncio.CancelledError):
            await ended


async def run_to_end(work: Coroutine[Any, Any, T]) -> T:
    """Return the work's result. Swallow every cancellation of the caller until the work has ended."""
    task = asyncio.create_task(work)
    await wait_until_done(task)
    return task.result()


def _set_done(ended: asyncio.Future[None], _task: asyncio.Future[Any]) -> None:
    if not ended.done():
        ended.set_result(None)


class Pending(Generic[T]):
    """The pending result of work in another thread."""

    __slots__ = ("_ended", "_error", "_result", "_waiter")

    def __init__(self) -> None:
        self._waiter: asyncio.Future[None] | None = None
        self._ended = False
        self._result: T | None = None
        self._error: BaseException | None = None

    def set_result(self, result: T) -> None:
        """Set the result, in any thread; then call `notify` on the event loop."""
        self._result, self._ended = result, True

    def set_error(self, error: BaseException) -> None:
        """Set the exception to raise, in any thread; then call `notify` on the event loop."""
        self._error, self._ended = error, True

    def notify(self) -> None:
        """Wake the caller of `result` or `result_to_end`. Must run on the event loop."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def result(self) -> T:
        """Return the result or raise the error. A cancelled caller may ask again."""
        if not self._ended:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        if self._error is not None:
            raise self._error
        return cast("T", self._result)

    async def result_to_end(self) -> T:
        """Return the result or raise the error, as `run_to_end`: swallow every cancellation until then."""
        while not self._ended:
            self._waiter = asyncio.get_running_loop().create_future()
            try:  # noqa: SIM105 contextlib.suppress costs more than the rest of this method
                await self._waiter
            except asyncio.CancelledError:
                pass
        return await self.result()


def stop_signal() -> asyncio.Event:
    """Return an event that SIGINT and SIGTERM set; this replaces their previous handlers."""
    signalled = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, signalled.set)
    return signalled


async def wait_for_either(task: asyncio.Task[Any], event: asyncio.Event) -> None:
    """Return when the task has ended or the event is set."""
    waiting = asyncio.create_task(event.wait(), name="signal")
    try:
        await asyncio.wait([task, waiting], return_when=asyncio.FIRST_COMPLETED)
    finally:
        await end(waiting)


NEAR_S = 10.0
"""The time left at which a deadline gets a timer of its own."""

CHECK_EVERY_S = 2.0
"""The interval at which the deadlines without a timer are checked."""


class Expiring(Protocol):
    """Work with a deadline."""

    def expire(self) -> None:
        """End the work at its deadline. Called at most once."""


class Deadlines:
    """The deadlines of a worker process.

    Most work ends long before its deadline. A deadline therefore gets a timer only once less than near_s is
    left.
    """

    def __init__(self, near_s: float = NEAR_S, check_every_s: float = CHECK_EVERY_S) -> None:
        self._near_s = near_s
        self._check_every_s = check_every_s
        self._far: dict[Expiring, float] = {}
        self._near: dict[Expiring, asyncio.TimerHandle] = {}
        self._check: asyncio.TimerHandle | None = None

    def add(self, work: Expiring, left_s: float) -> None:
        """Expire the work in left_s, unless it is discarded before."""
        loop = asyncio.get_running_loop()
        if left_s <= self._near_s:
            self._near[work] = loop.call_later(left_s, self._expire, work)
            return
        self._far[work] = loop.time() + left_s
        if self._check is None:
            self._check = loop.call_later(self._check_every_s, self._set_timers)

    def discard(self, work: Expiring) -> None:
        """Remove work that has ended. A second call does nothing."""
        if self._far.pop(work, None) is None:
            timer = self._near.pop(work, None)
            if timer is not None:
                timer.cancel()

    def _expire(self, work: Expiring) -> None:
        del self._near[work]
        work.expire()

    def _set_timers(self) -> None:
        """Set a timer for each deadline that is less than near_s away."""
        loop = asyncio.get_running_loop()
        near_s = loop.time() + self._near_s
        for work in [work for work, ends_s in self._far.items() if ends_s <= near_s]:
            self._near[work] = loop.call_at(self._far.pop(work), self._expire, work)
        self._check = loop.call_later(self._check_every_s, self._set_timers) if self._far else None


class Slots:
    """A semaphore whose waiters are futures and get their permits in order."""

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
        """True if a caller waits for a permit."""
        return bool(self._waiting)

    def queue(self) -> asyncio.Future[None]:
        """Return a future that is done when the caller has a permit. Pass it to `leave` to stop waiting."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self.take():
            waiter.set_result(None)
        else:
            self._waiting.append(waiter)
        return waiter

    def leave(self, waiter: asyncio.Future[None]) -> bool:
        """Stop waiting. Return whether the caller has a permit, which it must then release."""
        if waiter.done():
            return True
        self._waiting.remove(waiter)
        return False

    def release(self) -> None:
        """Release a permit; the first waiter gets it."""
        if self._waiting:
            self._waiting.popleft().set_result(None)
        else:
            self._free += 1


class LoopBudget:
    """Limits the number of steps that run in one iteration of the event loop.

    If thousands of hosts respond at the same time, their responses would otherwise block the loop for
    seconds, and leases would lapse.
    """

    def __init__(self, steps: int = STEPS_PER_ITERATION) -> None:
        self._steps = steps
        self._left = steps
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def take(self) -> None:
        """Wait for a step: return at once, or in a later iteration of the loop, in the order of the calls."""
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
            if not turn.done():  # not cancelled
                turn.set_result(None)
                self._left -= 1
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._renew)
