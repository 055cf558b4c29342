"""Before a fetch is begun that must not be begun in doubt, Redis is told."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec

from jobs.entry import Entry
from worker import settle
from worker.crashes import is_suspect, must_be_noted
from worker.lane import Lane
from worker.parts import Parts


@asynccontextmanager
async def beginning(entry: Entry, lane: Lane, parts: Parts) -> AsyncIterator[None]:
    """The fetch may be begun. A suspect has had to wait until no other runs in this worker.

    So a fetch that workers die of is found out by itself: what else they had claimed is not blamed for it.
    """
    if not is_suspect(entry):
        await _note(entry, lane, parts)
        yield
        return
    async with parts.suspects:
        await _note(entry, lane, parts)
        yield


async def _note(entry: Entry, lane: Lane, parts: Parts) -> None:
    if not must_be_noted(entry):
        return
    begun = msgspec.structs.replace(entry, begun=True)
    noted = asyncio.Event()
    parts.settler.add(lane, settle.begun(begun, noted.set))
    await noted.wait()
    lane.entries[entry.id] = begun
