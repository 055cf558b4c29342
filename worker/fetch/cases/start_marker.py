"""Write a start marker to Redis before a fetch starts: the decision after a crash depends on it."""

import asyncio
import functools
from collections.abc import Awaitable, Callable
from typing import TypeVar

import msgspec

from fetchfleet.jobs.contract.entry import Entry
from fetchfleet.worker.fetch.rules import crashes
from fetchfleet.worker.fetch.services import FetchSession
from fetchfleet.worker.lanes import settler

A = TypeVar("A")


async def run_marked(
    session: FetchSession,
    entry: Entry,
    run_attempt: Callable[[FetchSession, Entry], Awaitable[A]],
    conclude: Callable[[A], Awaitable[None]],
) -> bool:
    """Attempt the fetch once Redis has its start marker, then conclude it.

    A suspect runs in isolation until Redis has its settlement. Returns False if the deadline passed while it
    waited for the isolation.
    """
    if not crashes.is_suspect(entry):
        await conclude(await _attempt_marked(session, entry, run_attempt))
        return True
    lane, isolation = session.lane, session.services.isolation
    try:
        async with asyncio.timeout(max(0, entry.deadline_ms - lane.clock.now_ms()) / 1000):
            await isolation.begin(entry.id)
    except TimeoutError:
        return False
    try:
        await conclude(await _attempt_marked(session, entry, run_attempt))
        await session.services.settler.flush_pending(lane)
    finally:
        isolation.end()
    return True


async def _attempt_marked(
    session: FetchSession, entry: Entry, run_attempt: Callable[[FetchSession, Entry], Awaitable[A]]
) -> A:
    started, written = msgspec.structs.replace(entry, begun=True), asyncio.Event()
    session.settle(settler.started(started, written.set))
    await written.wait()
    session.lane.replace_entry(started)
    if not crashes.is_suspect(entry):  # a suspect may have begun meanwhile
        await session.services.isolation.wait_open()
    timer = asyncio.get_running_loop().call_later(crashes.SOON_S, _mark_outlived, session, entry.id)
    try:
        return await run_attempt(session, entry)
    finally:
        timer.cancel()


def _mark_outlived(session: FetchSession, fetch_id: str) -> None:
    """Write to Redis that the worker has outlived the start of the fetch."""
    entry = session.lane.entries.get(fetch_id)
    if entry is not None and not session.lane.lost:
        outlived = msgspec.structs.replace(entry, outlived=True)
        session.lane.replace_entry(outlived)
        done = functools.partial(session.services.isolation.outlived, fetch_id)
        session.settle(settler.started(outlived, done))
