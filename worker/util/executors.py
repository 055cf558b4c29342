"""Threads for what would hold up the loop, in groups: whoever waits for one group stands in no other's way.

The sink has two more, for blocks and for names (worker/sink/files/sink.py).
"""

import asyncio
import os
import threading
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any, TypeVar

from fetchfleet.worker.util import aio

T = TypeVar("T")

CODING = ThreadPoolExecutor((os.cpu_count() or 1) + 2, thread_name_prefix="coding")
"""Decode bodies and look through their lines: work for the processor, none of which waits for a disk."""

HASHING = ThreadPoolExecutor(2, thread_name_prefix="hashing")
"""Read whole files for their digest, for as long as that takes; few, to leave the disk to the others."""

SENDING = ThreadPoolExecutor(4, thread_name_prefix="sending")
"""Read what is sent, from an in folder that may be on a disk of its own."""


async def run_in(threads: Executor, work: Callable[..., T], *arguments: Any) -> T:
    """What the work returns, done in one of the threads."""
    return await asyncio.get_running_loop().run_in_executor(threads, work, *arguments)


async def run_stoppable(
    threads: Executor,
    work: Callable[..., T],
    *arguments: Any,
    in_vain: Callable[[T], None] | None = None,
) -> T:
    """What the work returns, which looks now and then at an Event, its last argument: set, it is to end.

    Whoever is cancelled here sets it, and waits for that end; `in_vain` is told what came of it then. What
    has not begun by then never does.
    """
    stop = threading.Event()
    submitted = threads.submit(work, *arguments, stop)
    waiting = asyncio.wrap_future(submitted)
    try:
        return await asyncio.shield(waiting)
    except asyncio.CancelledError:
        stop.set()
        if not submitted.cancel():
            await aio.end_of(waiting)
            if waiting.exception() is None and in_vain is not None:
                in_vain(waiting.result())
        raise
