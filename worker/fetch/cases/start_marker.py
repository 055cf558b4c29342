"""Note in Redis that a fetch starts, before it does: after a crash the decision depends on it."""

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
    attempted: Callable[[FetchSession, Entry], Awaitable[A]],
    conclude: Callable[[A], Awaitable[None]],
) -> bool:
    """Attempt the fetch once Redis knows that it starts, then conclude it.

    A suspect runs where none but it can be blamed for a death, until Redis knows what became of it. False if
    its deadline passed before it might start.
    """
    if not crashes.is_suspect(entry):
        await conclude(await _marked(session, entry, attempted))
        return True
    lane, isolation = session.lane, session.services.isolation
    try:
        async with asyncio.timeout(max(0, entry.deadline_ms - lane.clock.now_ms()) / 1000):
            await isolation.begin(entry.id)
    except TimeoutError:
        return False
    try:
        await conclude(await _marked(session, entry, attempted))
        await session.services.settler.caught_up(lane)
    finally:
        isolation.end()
    return True


async def _marked(
    session: FetchSession, entry: Entry, attempted: Callable[[FetchSession, Entry], Awaitable[A]]
) -> A:
    started, noted = msgspec.structs.replace(entry, begun=True), asyncio.Event()
    session.settle(settler.started(started, noted.set))
    await noted.wait()
    session.lane.rewrite(started)
    if not crashes.is_suspect(entry):  # a suspect may have begun meanwhile
        await session.services.isolation.opened()
    timer = asyncio.get_running_loop().call_later(crashes.SOON_S, _outlive, session, entry.id)
    try:
        return await attempted(session, entry)
    finally:
        timer.cancel()


def _outlive(session: FetchSession, fetch_id: str) -> None:
    """Note in Redis that the worker has outlived the start of the fetch."""
    entry = session.lane.entries.get(fetch_id)
    if entry is not None and not session.lane.lost:
        outlived = msgspec.structs.replace(entry, outlived=True)
        session.lane.rewrite(outlived)
        done = functools.partial(session.services.isolation.outlived, fetch_id)
        session.settle(settler.started(outlived, done))
