"""Before a fetch is begun that must not be begun in doubt, Redis is told."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext

import msgspec

from fetchfleet.jobs.contract.entry import Entry
from fetchfleet.worker.fetch.rules.crashes import is_suspect, must_be_noted
from fetchfleet.worker.fetch.services import Parts
from fetchfleet.worker.lanes import settler
from fetchfleet.worker.lanes.lane import Lane


def beginning(entry: Entry, lane: Lane, parts: Parts) -> AbstractAsyncContextManager[None]:
    """The fetch may be begun. A suspect has had to wait until no other runs in this worker.

    So a fetch that workers die of is found out by itself: what else they had claimed is not blamed for it.
    """
    return _noted(entry, lane, parts) if must_be_noted(entry) else nullcontext()


@asynccontextmanager
async def _noted(entry: Entry, lane: Lane, parts: Parts) -> AsyncIterator[None]:
    async with parts.suspects if is_suspect(entry) else nullcontext():
        begun = msgspec.structs.replace(entry, begun=True)
        noted = asyncio.Event()
        parts.settler.add(lane, settler.begun(begun, noted.set))
        await noted.wait()
        lane.entries[entry.id] = begun
        yield
