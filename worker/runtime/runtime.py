"""One worker process: acquires lanes, keeps its own loops going, and shuts down in order.

`build` (worker/runtime/build.py) makes it. arq's Worker is known to worker/runtime/arq_worker.py only.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

from redis.asyncio import Redis
from structlog.typing import FilteringBoundLogger

from fetchfleet.jobs import keys
from fetchfleet.jobs.scripts.lanes import Early, Enough
from fetchfleet.worker.fetch.services import FetchServices
from fetchfleet.worker.inspect.registration import Registration
from fetchfleet.worker.intake.arq_jobs import ArqIngress
from fetchfleet.worker.intake.inbox import InboxReader
from fetchfleet.worker.lanes.lane import Lane
from fetchfleet.worker.observability import events
from fetchfleet.worker.observability.log import Event
from fetchfleet.worker.observability.repeats import Repeats
from fetchfleet.worker.redis_support.foreign_members import ForeignMembers
from fetchfleet.worker.redis_support.health import RedisErrorReporter, RedisHealth
from fetchfleet.worker.redis_support.startup import startup_permissions
from fetchfleet.worker.runtime.disk_guard import DiskGuard
from fetchfleet.worker.runtime.fleet_signals import FleetSignals
from fetchfleet.worker.runtime.heartbeat import Heartbeat
from fetchfleet.worker.runtime.live_lanes import LiveLanes
from fetchfleet.worker.runtime.stats import Stats
from fetchfleet.worker.runtime.timings import WorkerTimings
from fetchfleet.worker.scheduler.acquire import Acquirer
from fetchfleet.worker.scheduler.leases import Leases
from fetchfleet.worker.scheduler.sweep import Housekeeping, Sweep
from fetchfleet.worker.settings import Settings
from fetchfleet.worker.util import aio
from fetchfleet.worker.util.clock import mono_s

LEAVE_S = 2.0
"""How long to wait for Redis when leaving the fleet; if it does not answer, the heartbeat expires instead."""

Loop = Callable[[], Awaitable[None]]


@dataclass(kw_only=True, eq=False, repr=False)
class Runtime:
    """start() → take_lane() … → leave() → stop(). leave() and stop() may be repeated."""

    settings: Settings
    registration: Registration
    timings: WorkerTimings
    log: FilteringBoundLogger
    redis: Redis
    resources: AsyncExitStack
    """What is open; closed at the end of `stop`."""
    redis_errors: RedisErrorReporter
    health: RedisHealth
    services: FetchServices
    lanes: Mapping[str, Lane]
    """The lanes that this worker holds, by pool."""
    live_lanes: LiveLanes
    leases: Leases
    acquirer: Acquirer
    signals: FleetSignals
    heartbeat: Heartbeat
    stats: Stats
    disk_guard: DiskGuard
    inbox: InboxReader
    arq_ingress: ArqIngress
    sweep: Sweep
    foreign: ForeignMembers
    housekeeping: Housekeeping
    _stopped: bool = field(default=False, init=False)
    _grace_ends_s: float = field(default=0.0, init=False)
    _loops: dict[str, asyncio.Task[None]] = field(default_factory=dict, init=False)
    """Loops that go on until every lane is given back, by name."""
    _fleet_loops: dict[str, asyncio.Task[None]] = field(default_factory=dict, init=False)
    """Loops that end first at shutdown: they bring new work or announce this worker."""

    async def start(self) -> None:
        """Start the loops and join the fleet.

        Raises RefusedRedisError, redis.exceptions.RedisError or OSError; the runtime is closed then.
        """
        try:
            with startup_permissions():
                self._keep("settle", self.services.settler.run, self._loops)
                self._keep("renew", self.leases.run, self._loops)
                self._keep("foreign", self.services.key_repair.run, self._loops)
                self._keep("room", self.disk_guard.run, self._loops)
                self._keep("stats", self.stats.run, self._loops)
                await self.services.store.renew([])  # fails if Redis denies this worker its scripts
                await self.heartbeat.join()
        except BaseException:
            await self._close()
            raise
        disk = self.services.sink.disk
        self._keep("heartbeat", self.heartbeat.run, self._fleet_loops)
        self._keep("lanes", self.acquirer.run, self._fleet_loops)
        self._keep("sweep", self.sweep.run, self._fleet_loops)
        self._keep("intake", self.inbox.run, self._fleet_loops)
        self._keep("parts", disk.sweep_partial_files, self._fleet_loops)
        self._keep("records", disk.sweep_index, self._fleet_loops)
        loop = type(asyncio.get_running_loop()).__module__
        about = self.registration.log_fields()
        self.log.info(Event.WORKER_STARTED, **about, out=str(self.settings.out), loop=loop)

    def _keep(self, name: str, loop: Loop, loops: dict[str, asyncio.Task[None]]) -> None:
        """Run a loop in a task; log a bug that ends it, and start it again."""
        repeats = Repeats()

        def on_bug(error: Exception) -> None:  # one that comes back as often as the loop is started again
            left_out = repeats.admit(type(error).__name__, mono_s())
            if left_out is not None:
                events.worker_bug(name, error, left_out, self.log)

        kept = aio.restart_on_error(loop, on_bug, self.timings.restart_s)
        loops[name] = asyncio.create_task(kept, name=name)

    @property
    def stopping(self) -> bool:
        """True if shutdown has begun."""
        return self.live_lanes.leaving

    def not_ready(self) -> Iterator[str]:
        """Yield the reasons why this worker would take no work now."""
        if self.stopping:
            yield "is stopping"
        if self.live_lanes.drained.is_set():
            yield "is drained"
        if self.disk_guard.lacking:
            yield f"lacks disk space ({self.disk_guard.lacking})"
        if not self.leases.renews:
            yield "does not renew its leases"
        if mono_s() - self.heartbeat.sent_s > keys.WORKER_TTL_MS / 1000:
            yield "has no answer from Redis"

    async def take_lane(
        self, name: str, generation: int, *, beyond_share: bool = False
    ) -> Early | Enough | None:
        """Acquire a lane that is due and serve it in a task of its own.

        Early if it is not due yet, Enough if this worker has its share of the lanes. beyond_share: acquire it
        all the same, because no other worker did.
        """
        if self.stopping or self.live_lanes.drained.is_set():
            return Enough()
        if self.disk_guard.lacking:
            return Early(int(self.timings.disk_full_defer_s * 1000))
        return await self.acquirer.acquire(name, generation, beyond_share=beyond_share)

    async def stop_acquiring(self) -> None:
        """Look for no lanes any more; take_lane still acquires."""
        await aio.end(self._fleet_loops["lanes"])

    def leave(self) -> None:
        """Acquire no lane and start no fetch any more; the grace period of those in flight begins."""
        if self.stopping:
            return
        self._grace_ends_s = mono_s() + self.settings.grace_s
        self.log.info(Event.WORKER_STOPPING, lanes=len(self.lanes))
        self.live_lanes.leave()

    async def stop(self) -> None:
        """Leave the fleet, let short fetches end, hand the rest back, close everything."""
        self.leave()
        if self._stopped:
            return
        self._stopped = True

        async def leave_fleet() -> None:  # the inbox and this worker's share of the lanes go to the others
            await aio.end(*self._fleet_loops.values())
            await self.inbox.lease.end()
            await self.heartbeat.end()

        await aio.run_for_at_most(LEAVE_S, leave_fleet())
        await self.live_lanes.end(self._grace_ends_s, self.settings.lease_s)
        await self._close()
        self.stats.log_line()
        self.log.info(Event.WORKER_STOPPED)

    async def _close(self) -> None:
        await aio.end(*self.live_lanes.tasks(), *self._fleet_loops.values(), *self._loops.values())
        await self.resources.aclose()
