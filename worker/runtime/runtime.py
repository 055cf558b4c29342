"""The life of a worker process: start its loops, acquire lanes, shut down in order.

worker/runtime/build.py constructs it, worker/runtime/arq_worker.py runs it.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

from redis.asyncio import Redis
from redis.exceptions import ResponseError
from structlog.typing import FilteringBoundLogger

from fetchfleet.jobs import keys
from fetchfleet.jobs.scripts.lanes import Early, Enough
from fetchfleet.worker.fetch.services import FetchServices
from fetchfleet.worker.inspect.registration import Registration
from fetchfleet.worker.intake.arq_jobs import ArqIngress
from fetchfleet.worker.intake.inbox import InboxReader
from fetchfleet.worker.lanes.lane import Lane
from fetchfleet.worker.observability import events
from fetchfleet.worker.observability.log import COUNTS, Event
from fetchfleet.worker.observability.repeats import Repeats
from fetchfleet.worker.observability.worker_figures import LaneFigures, WorkerFigures
from fetchfleet.worker.redis_support.event_tap import EventTap
from fetchfleet.worker.redis_support.foreign_members import ForeignMembers
from fetchfleet.worker.redis_support.health import RedisErrorReporter, RedisHealth
from fetchfleet.worker.redis_support.startup import startup_permissions
from fetchfleet.worker.runtime.disk_guard import DiskGuard
from fetchfleet.worker.runtime.fleet_signals import FleetSignals
from fetchfleet.worker.runtime.heartbeat import Heartbeat
from fetchfleet.worker.runtime.live_lanes import LiveLanes
from fetchfleet.worker.runtime.stats import FleetStatusLog, Stats
from fetchfleet.worker.runtime.timings import WorkerTimings
from fetchfleet.worker.scheduler.acquire import Acquirer
from fetchfleet.worker.scheduler.leases import Leases
from fetchfleet.worker.scheduler.sweep import Housekeeping, Sweep
from fetchfleet.worker.settings import Settings
from fetchfleet.worker.util import aio
from fetchfleet.worker.util.clock import mono_s

LEAVE_S = 2.0
"""The time that shutdown waits for Redis to remove this worker. If that fails, its heartbeat expires."""

Loop = Callable[[], Awaitable[None]]


@dataclass(kw_only=True, eq=False, repr=False)
class Runtime:
    """A worker process. Call start(), take_lane() for each notification, leave() and stop(), in this order.

    leave() and stop() may be repeated.
    """

    settings: Settings
    registration: Registration
    timings: WorkerTimings
    log: FilteringBoundLogger
    redis: Redis
    resources: AsyncExitStack
    """The open resources. `stop` closes them at its end."""
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
    fleet_status: FleetStatusLog
    disk_guard: DiskGuard
    event_tap: EventTap
    inbox: InboxReader
    arq_ingress: ArqIngress
    sweep: Sweep
    foreign: ForeignMembers
    housekeeping: Housekeeping
    _stopped: bool = field(default=False, init=False)
    _grace_ends_s: float = field(default=0.0, init=False)
    _loops: dict[str, asyncio.Task[None]] = field(default_factory=dict, init=False)
    """Loops that end last at shutdown, after every lane was released. By name."""
    _fleet_loops: dict[str, asyncio.Task[None]] = field(default_factory=dict, init=False)
    """Loops that end first at shutdown, because they bring new work or announce this worker. By name."""

    async def start(self) -> None:
        """Start the loops and join the fleet.

        Raises RefusedRedisError, redis.exceptions.RedisError or OSError. On an error the runtime is closed.
        """
        try:
            with startup_permissions():
                self._start_loop("settle", self.services.settler.run, self._loops)
                self._start_loop("renew", self.leases.run, self._loops)
                self._start_loop("key_repair", self.services.key_repair.run, self._loops)
                self._start_loop("disk_guard", self.disk_guard.run, self._loops)
                self._start_loop("stats", self.stats.run, self._loops)
                self._start_loop("event_tap", self.event_tap.run, self._loops)
                await self.services.store.renew([])  # raises if Redis denies the scripts to this worker
                await self._join()
        except BaseException:
            await self._close()
            raise
        disk = self.services.sink.disk
        self._start_loop("heartbeat", self.heartbeat.run, self._fleet_loops)
        self._start_loop("lanes", self.acquirer.run, self._fleet_loops)
        if self.settings.alone:
            self._start_loop("first_lanes", self.acquirer.look_for_first_lanes, self._fleet_loops)
        self._start_loop("sweep", self.sweep.run, self._fleet_loops)
        self._start_loop("fleet_status", self.fleet_status.run, self._fleet_loops)
        self._start_loop("intake", self.inbox.run, self._fleet_loops)
        self._start_loop("partial_files", disk.sweep_partial_files, self._fleet_loops)
        self._start_loop("index", disk.sweep_index, self._fleet_loops)
        loop = type(asyncio.get_running_loop()).__module__
        about, limits = self.registration.log_fields(), self.settings.limits
        if self.settings.store:
            about["spool"] = str(self.settings.out)
        self.log.info(Event.WORKER_STARTED, **about, out=self.settings.bodies, loop=loop, limits=limits)

    async def _join(self) -> None:
        """Join the fleet, again after the repair of a key with a conflicting value."""
        try:
            await self.heartbeat.join()
        except ResponseError:
            if not await self.services.key_repair.quarantine(keys.FIXED):
                raise
            await self.heartbeat.join()

    def _start_loop(self, name: str, loop: Loop, loops: dict[str, asyncio.Task[None]]) -> None:
        """Run a loop in a task. Log a bug that ends it, at most once a minute, and restart it."""
        repeats = Repeats()

        def on_bug(error: Exception) -> None:
            left_out = repeats.admit(type(error).__name__, mono_s())
            if left_out is not None:
                events.worker_bug(name, error, left_out, self.log)

        work = aio.restart_on_error(loop, on_bug, self.timings.restart_s)
        loops[name] = asyncio.create_task(work, name=name)

    @property
    def stopping(self) -> bool:
        """True since the start of shutdown."""
        return self.live_lanes.stopping

    def not_ready(self) -> Iterator[str]:
        """Yield the reasons this worker takes no work now, each as the end of "worker NAME …"."""
        if self.stopping:
            yield "is stopping"
        if self.live_lanes.drained.is_set():
            yield "is drained"
        if self.disk_guard.shortage:
            yield f"lacks disk space ({self.disk_guard.shortage})"
        if not self.leases.renews:
            yield "does not renew its leases"
        if mono_s() - self.heartbeat.sent_s > keys.WORKER_TTL_MS / 1000:
            yield "has no answer from Redis"

    def figures(self) -> WorkerFigures:
        """Return the current state for the metrics of this worker."""
        traffic, totals, lanes = self.stats.traffic, self.services.settler.totals, self.lanes.values()
        in_flight = {lane.name: len(lane.in_flight) for lane in lanes}
        finished: Mapping[str, int] = totals.by_lane or {}
        busiest = totals.busiest(self.settings.metrics_hosts, in_flight)
        return WorkerFigures(
            about={"worker": self.registration.name, **self.registration.log_fields()},
            totals=totals,
            lag_s=self.stats.lags_s,
            received_bytes=self.services.sink.disk.received_bytes,
            opened=traffic.opened,
            reused=traffic.reused,
            closed=traffic.closed,
            lanes=len(lanes),
            in_flight=sum(in_flight.values()),
            settling=self.services.settler.count,
            unverified_tls=sum(not lane.policy.verify for lane in lanes),
            log_events=COUNTS.events,
            log_lines_dropped=COUNTS.dropped,
            free_bytes=self.disk_guard.free_bytes,
            disk_refuses=self.disk_guard.shortage is not None,
            heartbeat_age_s=mono_s() - self.heartbeat.sent_s,
            ready=not any(self.not_ready()),
            busiest=[LaneFigures(name, in_flight.get(name, 0), finished.get(name, 0)) for name in busiest],
        )

    async def take_lane(
        self, name: str, generation: int, *, beyond_share: bool = False
    ) -> Early | Enough | None:
        """Acquire a lane of a notification and serve it in a task of its own.

        Return Early if the lane is not due yet, and Enough if this worker holds its share of lanes.
        beyond_share: acquire the lane even then, because no other worker did.
        """
        if self.stopping or self.live_lanes.drained.is_set():
            return Enough()
        if self.disk_guard.shortage:
            return Early(int(self.timings.disk_full_defer_s * 1000))
        return await self.acquirer.acquire(name, generation, beyond_share=beyond_share)

    async def stop_acquiring(self) -> None:
        """Stop looking for due lanes. take_lane still acquires them. For tests and benchmarks."""
        await aio.end(self._fleet_loops["lanes"])

    def begin_stop(self) -> None:
        """Begin shutdown: acquire no lanes and start no fetches. Those in flight have a grace period."""
        if self.stopping:
            return
        self._grace_ends_s = mono_s() + self.settings.grace_s
        self.log.info(Event.WORKER_STOPPING, lanes=len(self.lanes))
        self.live_lanes.stop_serving()

    async def stop(self) -> None:
        """Leave the fleet, wait for fetches until the grace period ends, return the rest, and close."""
        self.begin_stop()
        if self._stopped:
            return
        self._stopped = True

        async def leave_fleet() -> None:  # other workers take over the inboxes and this worker's share
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
