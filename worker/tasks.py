"""Ending tasks for sure."""

import asyncio
import signal
from contextlib import suppress
from typing import Any

CANCEL_AGAIN_S = 1.0


async def end(*tasks: asyncio.Task[Any]) -> None:
    """Cancel the tasks and return when all have ended, however they do.

    One cancellation is not always enough: on Python 3.11 asyncio.wait_for, which redis-py sends every
    command through, forgets one that comes just as it is done.
    """
    left = {task for task in tasks if not task.done()}
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=CANCEL_AGAIN_S)
    await asyncio.gather(*tasks, return_exceptions=True)


async def end_of(task: asyncio.Future[Any]) -> None:
    """Return when the task has ended by itself, however often we are cancelled meanwhile."""
    while not task.done():
        with suppress(asyncio.CancelledError):
            await asyncio.wait([task])


async def until_signal(task: asyncio.Task[Any]) -> None:
    """Return when the task has ended, or SIGINT or SIGTERM has come; another one changes nothing."""
    signalled = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, signalled.set)
    waiting = asyncio.create_task(signalled.wait(), name="signal")
    await asyncio.wait([task, waiting], return_when=asyncio.FIRST_COMPLETED)
    await end(waiting)
