"""What nobody comes for goes: parts at the start and every hour, records of bodies once after a start."""

import asyncio
import time
from contextlib import suppress

from fetchfleet.worker.errors import InTheWayError
from fetchfleet.worker.sink.files import index
from fetchfleet.worker.sink.files.directory import PARTS, Folders

STALE_PART_S = 24 * 3600
SWEEP_EVERY_S = 3600.0
UNUSED_S = 30 * 24 * 3600
PAUSE_S = 1.0


async def sweep_parts(folders: Folders) -> None:
    """Look again and again, until cancelled."""
    while True:
        await asyncio.sleep(SWEEP_EVERY_S)
        with suppress(OSError, InTheWayError):
            await asyncio.to_thread(drop_stale_parts, folders)


def drop_stale_parts(folders: Folders) -> None:
    """Remove the parts that nobody has written to for a day: what is still wanted starts again then.

    Raises InTheWayError and OSError.
    """
    folders.drop_old(PARTS, time.time() - STALE_PART_S)


async def sweep_records(folders: Folders) -> None:
    """Look once through all records, folder by folder, slowly; the bodies themselves are the caller's."""
    for below in await asyncio.to_thread(index.below, folders):
        await asyncio.to_thread(index.sweep, folders, below, time.time() - UNUSED_S)
        await asyncio.sleep(PAUSE_S)
