"""The disk guard: stops new fetches while bodies cannot be stored."""

import asyncio
from collections.abc import Mapping

from structlog.typing import FilteringBoundLogger

from fetchfleet.worker.lanes.lane import Lane
from fetchfleet.worker.observability import events
from fetchfleet.worker.observability.repeats import Repeats
from fetchfleet.worker.sink.base import Disk
from fetchfleet.worker.sink.disk_space import shortage
from fetchfleet.worker.util.clock import mono_s


class DiskGuard:
    """Watches the disk of the sink. One for each worker process; `run` is its task.

    During a shortage it releases the held lanes, because another worker may have space. Fetches in flight may
    finish. Work that needs no space continues in Acquirer.acquire_for_upkeep.
    """

    def __init__(
        self,
        disk: Disk,
        min_free_bytes: int,
        lanes: Mapping[str, Lane],
        log: FilteringBoundLogger,
        check_s: float,
    ) -> None:
        self._disk = disk
        self._min_free_bytes = min_free_bytes
        self._lanes = lanes
        self._log = log
        self._check_s = check_s
        self.shortage: str | None = None
        """The missing resource: bytes, files, writing or folder. None if bodies can be stored."""
        self.error: str | None = None
        """The error of failed writes, if that is the cause of the shortage."""
        self.free_bytes: int | None = None
        """The free space at the last check; None if it is unknown."""
        self._repeats = Repeats()
        self._logged = False
        """True if the shortage was logged, so that its end must be logged too."""

    async def run(self) -> None:
        """Check at intervals, until cancelled."""
        while True:
            await asyncio.sleep(self._check_s)
            await self.check()

    async def check(self) -> None:
        """Check once and log a change. If the check itself fails, nothing changes, and fetches will fail."""
        try:
            space = await self._disk.space()
        except OSError:
            return
        self.free_bytes = space.free_bytes
        if space.reopened:
            events.disk_reopened(space.reopened, self._log)
        before = self.shortage
        self.shortage = shortage(space, self._min_free_bytes, was_short=before is not None)
        self.error = space.error if self.shortage else None
        if self.shortage and self.shortage != before:
            left_out = self._repeats.admit(self.shortage, mono_s())
            if left_out is not None:
                report = events.disk_full if space.disk_at_fault else events.disk_refused
                report(space.free_bytes, space.free_files, self.shortage, space.error, left_out, self._log)
                self._logged = True
        if before and not self.shortage and self._logged:
            events.disk_ok(space.free_bytes, space.free_files, self._log)
            self._logged = False
        if self.shortage:
            for lane in self._lanes.values():
                lane.stop_serving()
