"""Thread pools for work that would block the event loop. Each purpose has its own, so none delays another.

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
"""Decodes bodies and checks JSON Lines: CPU work that never waits for a disk."""

HASHING = ThreadPoolExecutor(2, thread_name_prefix="hashing")
"""Computes the digests of existing files. Two threads, to leave disk bandwidth for writing bodies."""

SENDING = ThreadPoolExecutor(4, thread_name_prefix="sending")
"""Reads request bodies from the `--in` folder, which may be on another disk."""


async def run_in(threads: Executor, work: Callable[..., T], *arguments: Any) -> T:
    """Run the work in one of the threads and return its result."""
    return await asyncio.get_running_loop().run_in_executor(threads, work, *arguments)


async def run_stoppable(
    threads: Executor,
    work: Callable[..., T],
    *arguments: Any,
    on_cancelled: Callable[[T], None] | None = None,
) -> T:
    """Run work in one of the threads. Its last argument is a threading.Event that tells it to return early.

    Cancellation sets the event and waits for the work to end; `on_cancelled` then receives its result. Work
    that has not started by then is not run.
    """
    stop = threading.Event()
    submitted = threads.submit(work, *arguments, stop)
    waiting = asyncio.wrap_future(submitted)
    try:
        return await asyncio.shield(waiting)
    except asyncio.CancelledError:
        stop.set()
        if not submitted.cancel():
            await aio.wait_until_done(waiting)
            if waiting.exception() is None and on_cancelled is not None:
                on_cancelled(waiting.result())
        raise
