"""The lanes that this worker holds. Each is served in a task of its own; shutdown ends all of them."""

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
from fetchfleet.worker.runtime.disk_guard import DiskGuard
from fetchfleet.worker.runtime.live_policy import LivePolicy
from fetchfleet.worker.scheduler.lane_loop import serve_lane
from fetchfleet.worker.scheduler.leases import Leases
from fetchfleet.worker.scheduler.rebalancer import UNWANTED_S
from fetchfleet.worker.util.clock import mono_s

FRESH = GateState()


class LiveLanes:
    """The held lanes of a worker process."""

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
        """lanes: by pool; only this class changes it. lanes_wanted: set when a lane has ended."""
        self._lanes = lanes
        self._services = services
        self._live_policy = live_policy
        self._leases = leases
        self._disk_guard = disk_guard
        self._lanes_wanted = lanes_wanted
        self._log = log
        self._tasks: dict[str, asyncio.Task[None]] = {}
        """The task that serves each lane, by pool."""
        self._cancels_version: bytes | None = None
        self._resets_version: bytes | None = None
        self.stopping = False
        """True since the start of shutdown: no fetch starts."""
        self.drained = asyncio.Event()
        """Set during a drain: the worker acquires no lanes, and takes no messages or jobs."""
        self.undrained = asyncio.Event()
        """Set while `drained` is not set."""
        self.undrained.set()

    def accepts(self) -> bool:
        """Return whether this worker may acquire lanes."""
        return not self.stopping and not self.drained.is_set() and not self._disk_guard.shortage

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

        beyond_share: the worker held its share already, so the rebalancer does not release the lane at once.
        for_upkeep: release the lane when all fetches that need no attempt have ended.
        """
        self._services.clock.sync(acquired.now_ms)
        if acquired.policy_version != self._live_policy.version:  # a pause or its end takes effect at once
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
        if self.stopping or self.drained.is_set():
            lane.stop_serving()
        self._cancels_version = None  # read again: a batch may have been cancelled since the acquisition
        log_events.taken(lane, len(acquired.orphans.serialized), self._services.worker_id)
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
        """Cancel the fetches of cancelled batches in the held lanes, if the version is new."""
        if version == self._cancels_version:
            return
        self._cancels_version = version
        lanes = list(self._lanes.values())
        try:
            cancelled = await self._services.store.cancelled([lane.name for lane in lanes])
            for lane in lanes:
                if batches := cancelled.by_lane[lane.name]:
                    lane.cancel(batches)
            for name, error in cancelled.refused:
                if not await self._services.key_repair.repair(error, name):
                    self._services.report_redis_error(error)
            if cancelled.refused or not cancelled.complete:
                self._cancels_version = None
        except BaseException:
            self._cancels_version = None
            raise

    async def apply_resets(self, version: bytes | None) -> None:
        """Reset the held lanes that an operator has marked, if the version is new."""
        if version == self._resets_version:
            return
        lanes = list(self._lanes.values())
        operators = await self._services.store.take_resets([lane.name for lane in lanes])
        marked = [(lane, by) for lane, by in zip(lanes, operators, strict=True) if by]
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
        """Make the retries of a reset lane due, including those that are still being written to Redis."""
        await self._services.settler.flush_pending(lane)
        try:
            await self._services.store.make_retries_due(lane.name, lane.clock.now_ms())
        except (RedisError, OSError) as error:
            self._services.report_redis_error(error)
        lane.notify()

    def drain(self) -> None:
        """Stop acquiring lanes. The rebalancer releases the held ones."""
        self.drained.set()
        self.undrained.clear()

    def undrain(self) -> None:
        """Acquire lanes again."""
        self.drained.clear()
        self.undrained.set()
        self._lanes_wanted.set()

    def stop_serving(self) -> None:
        """Start no more fetches, and release each lane when its fetches have ended."""
        self.stopping = True
        for lane in self._lanes.values():
            lane.stop_serving()

    async def end(self, grace_ends_s: float, lease_s: float) -> None:
        """Wait for fetches until grace_ends_s (monotonic), then interrupt them and release the lanes.

        Return after another lease_s at the latest, when the leases have lapsed anyway.
        """
        tasks = self.tasks()
        if tasks:
            await asyncio.wait(tasks, timeout=max(0.0, grace_ends_s - mono_s()))
        for lane in self._lanes.values():
            lane.interrupt()
        if tasks:
            await asyncio.wait(tasks, timeout=lease_s)

    def tasks(self) -> Sequence[asyncio.Task[None]]:
        """Return the tasks of the lanes that are being served."""
        return list(self._tasks.values())
