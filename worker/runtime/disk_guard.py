"""The disk guard: while bodies cannot be stored, the worker starts no fetch."""

import asyncio
from collections.abc import Mapping

from structlog.typing import FilteringBoundLogger

from fetchfleet.worker.lanes.lane import Lane
from fetchfleet.worker.observability import events
from fetchfleet.worker.observability.repeats import Repeats
from fetchfleet.worker.sink.base import Disk
from fetchfleet.worker.sink.disk_space import lack
from fetchfleet.worker.util.clock import mono_s


class DiskGuard:
    """One for a worker process; `run` is its task.

    While the disk lacks something, it gives back the lanes at hand, since another worker may have space.
    Fetches in flight may end. What needs no space goes on: Acquirer.keep_up.
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
        self.lacking: str | None = None
        """The resource that the disk lacks: bytes, files, writing or folder. None if it lacks none."""
        self.error: str | None = None
        """The error of the writes that are refused; None if there is none."""
        self._repeats = Repeats()
        self._logged = False
        """Whether the last lack was logged, so that its end is logged too."""

    async def run(self) -> None:
        """Check at intervals, until cancelled."""
        while True:
            await asyncio.sleep(self._check_s)
            await self.check()

    async def check(self) -> None:
        """Check once and log a change. A disk that cannot be asked changes nothing; fetches will fail."""
        try:
            space = await self._disk.space()
        except OSError:
            return
        if space.reopened:
            events.disk_reopened(space.reopened, self._log)
        before = self.lacking
        self.lacking = lack(space, self._min_free_bytes, lacked=before is not None)
        self.error = space.error if self.lacking else None
        if self.lacking and self.lacking != before:
            left_out = self._repeats.admit(self.lacking, mono_s())
            if left_out is not None:
                report = events.disk_full if space.disk_at_fault else events.disk_refused
                report(space.free_bytes, space.free_files, self.lacking, space.error, left_out, self._log)
                self._logged = True
        if before and not self.lacking and self._logged:
            events.disk_ok(space.free_bytes, space.free_files, self._log)
            self._logged = False
        if self.lacking:
            for lane in self._lanes.values():
                lane.leave()
