"""The lanes that this worker holds: serves each in a task of its own, and ends them all at shutdown."""

import asyncio
from collections.abc import Sequence

from redis.exceptions import RedisError
from structlog.typing import FilteringBoundLogger

from fetchfleet.worker.fetch.services import FetchServices
from fetchfleet.worker.gate.saved_state import bounded
from fetchfleet.worker.gate.state import GateState, reset
from fetchfleet.worker.lanes import log_events
from fetchfleet.worker.lanes.lane import Lane
from fetchfleet.worker.lanes.session import LaneSession
from fetchfleet.worker.lanes.store import AcquiredLane
from fetchfleet.worker.observability.log import Event
from fetchfleet.worker.runtime.disk_guard import DiskGuard
from fetchfleet.worker.runtime.live_policy import LivePolicy
from fetchfleet.worker.scheduler.lane_loop import serve_lane
from fetchfleet.worker.scheduler.leases import Leases
from fetchfleet.worker.scheduler.rebalancer import UNWANTED_S
from fetchfleet.worker.util.clock import mono_s

FRESH = GateState()


class LiveLanes:
    """One for a worker process.

    lanes: filled and emptied here, read by others. lanes_wanted: set when a lane ends and leaves space for
    another.
    """

    def __init__(
        self,
        lanes: dict[str, Lane],
        services: FetchServices,
        live_policy: LivePolicy,
        leases: Leases,
        disk_guard: DiskGuard,
        lanes_wanted: asyncio.Event,
        log: FilteringBoundLogger,
    ) -> None:
        self._lanes = lanes
        self._services = services
        self._live_policy = live_policy
        self._leases = leases
        self._disk_guard = disk_guard
        self._lanes_wanted = lanes_wanted
        self._log = log
        self._tasks: dict[str, asyncio.Task[None]] = {}
        """What serves each lane, by its pool."""
        self._cancels_version: bytes | None = None
        self._resets_version: bytes | None = None
        self.leaving = False
        """Set at shutdown: no fetch starts any more."""
        self.drained = asyncio.Event()
        """Set while an operator has drained this worker: it holds no lanes and takes nothing in."""
        self.undrained = asyncio.Event()
        """Set while `drained` is not."""
        self.undrained.set()

    def accepts(self) -> bool:
        """Return whether this worker may acquire lanes."""
        return not self.leaving and not self.drained.is_set() and not self._disk_guard.lacking

    async def begin(
        self,
        name: str,
        acquired: AcquiredLane,
        asked_s: float,
        *,
        beyond_share: bool = False,
        for_upkeep: bool = False,
    ) -> None:
        """Serve a lane that was acquired by a call made at asked_s (monotonic).

        beyond_share: this worker has its share already, so the lane is not given back at once. for_upkeep: it
        is given back as soon as what needs no attempt has ended.
        """
        self._services.clock.sync(acquired.now_ms)
        if acquired.policy_version != self._live_policy.version:  # a pause, or its end, holds at once
            await self._live_policy.update(acquired.policy_version)
        policies = self._live_policy.policy
        policy = policies.for_lane(name) if policies.tables else policies.default
        state = acquired.gate
        if state != FRESH:
            state = bounded(state, policy, acquired.now_ms)
        lane = Lane(
            name,
            acquired.token,
            policy,
            state,
            self._services.clock,
            lease_ends_s=asked_s + self._leases.usable_s,
            unwanted_until_s=asked_s + UNWANTED_S if beyond_share else 0.0,
            for_upkeep=for_upkeep,
        )
        if acquired.cancelled:
            lane.cancel(acquired.cancelled)
        if acquired.reset_by:
            self._reset(lane, acquired.reset_by)
        self._lanes[lane.pool] = lane
        if self.leaving or self.drained.is_set():
            lane.leave()
        self._cancels_version = None  # a batch may have been cancelled since the lane was acquired
        self._log.info(
            Event.LANE_TAKEN, lane=name, token=acquired.token, orphans=len(acquired.orphans.serialized)
        )
        if not policy.verify:
            log_events.unverified_tls(lane, self._services.repeats, self._log)
        task = asyncio.create_task(self._serve(lane, acquired), name=f"lane {name}")
        self._tasks[lane.pool] = task

    async def _serve(self, lane: Lane, acquired: AcquiredLane) -> None:
        try:
            if acquired.reset_by:
                await self._make_retries_due(lane)
            session = LaneSession(lane, self._services)
            await serve_lane(session, acquired.orphans, acquired.other_deaths, acquired.claim)
        finally:
            del self._lanes[lane.pool], self._tasks[lane.pool]
            self._lanes_wanted.set()

    async def apply_cancels(self, version: bytes | None) -> None:
        """Tell each lane which of its batches are cancelled, if the version of these in Redis is new."""
        if version == self._cancels_version:
            return
        self._cancels_version = version
        lanes = list(self._lanes.values())
        try:
            found = await self._services.store.cancelled([lane.name for lane in lanes])
            for lane in lanes:
                if batches := found.by_lane[lane.name]:
                    lane.cancel(batches)
            for name, error in found.refused:
                if not await self._services.key_repair.repair(error, name):
                    self._services.report_redis_error(error)
            if found.refused or not found.complete:
                self._cancels_version = None
        except BaseException:
            self._cancels_version = None
            raise

    async def apply_resets(self, version: bytes | None) -> None:
        """Reset the lanes that an operator has marked, if the version of these marks in Redis is new."""
        if version == self._resets_version:
            return
        lanes = list(self._lanes.values())
        found = await self._services.store.take_resets([lane.name for lane in lanes])
        marked = [(lane, by) for lane, by in zip(lanes, found, strict=True) if by]
        for lane, by in marked:
            self._reset(lane, by)
        for lane, _ in marked:
            await self._make_retries_due(lane)
        self._resets_version = version

    def _reset(self, lane: Lane, by: str) -> None:
        log_events.reset(lane, by, self._log)
        LaneSession(lane, self._services).change_gate(reset(lane.gate), save=True)
        lane.notify()

    async def _make_retries_due(self, lane: Lane) -> None:
        """Make due the retries that were on their way to Redis as the operator reset the lane."""
        await self._services.settler.caught_up(lane)
        try:
            await self._services.store.make_retries_due(lane.name, lane.clock.now_ms())
        except (RedisError, OSError) as error:
            self._services.report_redis_error(error)
        lane.notify()

    def drain(self) -> None:
        """Take no lane any more; those at hand are given back by the rebalancer."""
        self.drained.set()
        self.undrained.clear()

    def undrain(self) -> None:
        """Take lanes again."""
        self.drained.clear()
        self.undrained.set()
        self._lanes_wanted.set()

    def leave(self) -> None:
        """Start no fetch any more, and give each lane back when its fetches have ended."""
        self.leaving = True
        for lane in self._lanes.values():
            lane.leave()

    async def end(self, grace_ends_s: float, lease_s: float) -> None:
        """Wait for the fetches until grace_ends_s (monotonic), then cut them short and give the lanes back.

        Give up after lease_s more: Redis then gives the lanes to others.
        """
        tasks = self.tasks()
        if tasks:
            await asyncio.wait(tasks, timeout=max(0.0, grace_ends_s - mono_s()))
        for lane in self._lanes.values():
            lane.cut_short()
        if tasks:
            await asyncio.wait(tasks, timeout=lease_s)

    def tasks(self) -> Sequence[asyncio.Task[None]]:
        """Return the tasks of the lanes that are being served."""
        return list(self._tasks.values())
