"""The heartbeat: once a second, a worker publishes its report and reads the changes in the fleet."""

import asyncio
import contextlib
from collections.abc import Mapping

import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError
from structlog.typing import FilteringBoundLogger

from fetchfleet.jobs import keys
from fetchfleet.jobs.redis_connection import text_of
from fetchfleet.jobs.scripts.lanes import busy_within_ms
from fetchfleet.worker.gate.gate import SATURATED, Closed
from fetchfleet.worker.inspect.registration import Registration, doubles_of
from fetchfleet.worker.inspect.snapshot import LaneReport, WorkerReport
from fetchfleet.worker.inspect.workers.peers import Peers
from fetchfleet.worker.lanes.lane import Lane
from fetchfleet.worker.lanes.settler import Settler
from fetchfleet.worker.observability import events, redact
from fetchfleet.worker.observability.log import COUNTS
from fetchfleet.worker.observability.percentiles import Rate
from fetchfleet.worker.observability.totals import WorkerTotals
from fetchfleet.worker.policy.published import NO_FILE, published
from fetchfleet.worker.redis_support import drains
from fetchfleet.worker.redis_support.health import RedisHealth
from fetchfleet.worker.runtime.disk_guard import DiskGuard
from fetchfleet.worker.runtime.fleet_signals import DrainSignal, FleetSignals, Signals
from fetchfleet.worker.runtime.live_policy import LivePolicy
from fetchfleet.worker.runtime.timings import WorkerTimings
from fetchfleet.worker.scheduler.balance import FleetLoad
from fetchfleet.worker.scheduler.leases import Leases
from fetchfleet.worker.settings import Settings
from fetchfleet.worker.sink.base import Disk
from fetchfleet.worker.util.clock import RedisClock, mono_s

SLOW_S = 2.0
"""A reply after this time counts as a failure of Redis: lane owners may have results to write first."""

FIRST_NAME_CHECK_BEATS = 3
"""Heartbeats before the first check of names. A dead predecessor of the same name is not counted then."""

MAX_ERROR_CHARS = 300
"""The maximum length of an error in the report, in characters."""

MAX_WORKERS = 10_000
"""The maximum number of worker names to read. Another program may have written any number."""


class WorkerReporter:
    """Builds the report of this worker: held lanes, fetches in flight, waits, totals and rates."""

    def __init__(
        self,
        registration: Registration,
        lanes: Mapping[str, Lane],
        settler: Settler,
        disk: Disk,
        live_policy: LivePolicy,
        disk_guard: DiskGuard,
    ) -> None:
        self.registration = registration
        self._lanes = lanes
        self._settler = settler
        self._disk = disk
        self._live_policy = live_policy
        self._disk_guard = disk_guard
        self._finished = Rate()
        self._received = Rate()

    @property
    def lane_count(self) -> int:
        """The number of lanes that this worker holds."""
        return len(self._lanes)

    def totals(self) -> WorkerTotals:
        """Return the counters of this worker since its start."""
        return self._settler.totals.published(
            received_bytes=self._disk.received_bytes, log_lines_dropped=COUNTS.dropped
        )

    def report(self, *, draining: bool = False) -> WorkerReport:
        """Return the current report. Each call adds a sample to the rates."""
        now_s = mono_s()
        lanes = {}
        for lane in self._lanes.values():
            admission = lane.admission()
            closed = admission if isinstance(admission, Closed) else None
            lanes[lane.name] = LaneReport(
                in_flight=len(lane.in_flight),
                why=closed.why.value if closed else None,
                until_ms=closed.until_ms if closed else None,
                full=True if admission is SATURATED else msgspec.UNSET,
                ranges=lane.ranges or msgspec.UNSET,
            )
        finished, received_bytes = self._settler.finished, self._disk.received_bytes
        return WorkerReport(
            registration=self.registration,
            draining=draining,
            lacking=self._disk_guard.shortage or "",
            lacking_error=redact.text(error)[:MAX_ERROR_CHARS] if (error := self._disk_guard.error) else "",
            policy_version=text_of(self._live_policy.version),
            policy_refused=self._live_policy.refused[:MAX_ERROR_CHARS],
            lanes=lanes,
            finished=finished,
            finished_per_s=round(self._finished.add(now_s, finished), 1),
            received_bytes=received_bytes,
            received_bytes_per_s=round(self._received.add(now_s, received_bytes)),
            totals=self.totals(),
        )


class FleetCheck:
    """Detects live workers with the same name, and live workers with different settings.

    Workers with one name work, but their log lines and results cannot be distinguished.
    """

    def __init__(
        self,
        redis: Redis,
        registration: Registration,
        peers: Peers,
        log: FilteringBoundLogger,
        timings: WorkerTimings,
    ) -> None:
        self._redis = redis
        self._registration = registration
        self._peers = peers
        self._workers = 0
        self._log = log
        self._every_ms = timings.name_check_s * 1000
        self._due_ms = registration.started_ms + FIRST_NAME_CHECK_BEATS * timings.heartbeat_s * 1000

    async def run(self, now_ms: int, workers: int = 1) -> None:
        """Check names and settings if a check is due; only settings if the number of workers has changed."""
        if now_ms < self._due_ms and (workers == self._workers or not self._workers):
            return
        self._workers = workers
        await self._peers.look_for_differences()
        if now_ms < self._due_ms:
            return
        self._due_ms = now_ms + self._every_ms
        live = await self._redis.zrangebyscore(
            keys.WORKERS, now_ms - keys.WORKER_TTL_MS, "+inf", 0, MAX_WORKERS, withscores=True
        )
        if doubles := doubles_of(self._registration, [(text_of(worker), at_ms) for worker, at_ms in live]):
            events.worker_name_taken(self._registration.instance, doubles, self._log)


class Heartbeat:
    """Sends heartbeats. One for each worker process; `run` is its task.

    A worker that cannot renew its leases sends none.
    """

    def __init__(
        self,
        redis: Redis,
        settings: Settings,
        clock: RedisClock,
        reporter: WorkerReporter,
        leases: Leases,
        signals: FleetSignals,
        drain: DrainSignal,
        health: RedisHealth,
        *,
        fleet_check: FleetCheck,
        every_s: float,
    ) -> None:
        self._redis = redis
        self._policy = settings.policy
        self._busy_within_ms = busy_within_ms(int(settings.lease_s * 1000))
        self._clock = clock
        self._reporter = reporter
        self._leases = leases
        self._signals = signals
        self._drain = drain
        self._health = health
        self._every_s = every_s
        self._fleet_check = fleet_check
        self.sent_s = mono_s()
        """The time when Redis accepted the last heartbeat, by the monotonic clock."""
        self._may_be_listed = False
        """True if this worker may be in keys.LACKING."""

    async def run(self) -> None:
        """Send a heartbeat at intervals, until cancelled."""
        while True:
            await asyncio.sleep(self._every_s)
            if not self._leases.renews:
                continue
            asked_s = mono_s()
            try:
                await self.send()
                self._health.answered()
            except (RedisError, OSError) as error:
                self._health.report(error)
            if mono_s() - asked_s > SLOW_S:
                self._health.report(TimeoutError(f"Redis took {mono_s() - asked_s:.1f} s to answer"))

    async def join(self) -> None:
        """Send the first heartbeat. It replaces the announcement of this worker by its name."""
        await self._redis.zrem(keys.WORKERS, self._reporter.registration.name)
        await self.send()

    async def send(self) -> None:
        """Send one heartbeat and act on the reply."""
        report = self._reporter.report(draining=self._drain.drained)
        instance, digest = self._reporter.registration.instance, self._reporter.registration.policy
        now_ms = self._clock.now_ms()
        async with self._redis.pipeline(transaction=False) as pipe:
            # First, because a sweep removes a worker without a report.
            pipe.set(keys.worker(instance), msgspec.json.encode(report), px=keys.WORKER_TTL_MS)
            if report.draining or report.lacking:  # does not count as a worker, so others take its share
                pipe.zrem(keys.WORKERS, instance)
            else:
                pipe.zadd(keys.WORKERS, {instance: now_ms})
            pipe.zremrangebyscore(keys.WORKERS, "-inf", now_ms - keys.WORKER_TTL_MS)
            if report.lacking:
                pipe.sadd(keys.LACKING, instance)
                pipe.pexpire(keys.LACKING, keys.WORKER_TTL_MS)
            elif self._may_be_listed:
                pipe.srem(keys.LACKING, instance)
            pipe.pexpire(keys.policy_file(digest), keys.POLICY_FILE_TTL_MS)
            pipe.hget(keys.DRAINS, instance)
            pipe.get(keys.RESETS)
            pipe.get(keys.CANCELS)
            pipe.get(keys.POLICY_VERSION)
            pipe.zcount(keys.ATTENTION, "-inf", now_ms + self._busy_within_ms)
            pipe.zcount(keys.WORKERS, "-inf", now_ms + keys.WORKER_TTL_MS)
            pipe.hgetall(keys.HANDED)
            pipe.exists(keys.WATCHED)
            (
                *_,
                is_published,
                drain,
                resets,
                cancels,
                policy_version,
                busy,
                workers,
                handed,
                watched,
            ) = await pipe.execute()
        self.sent_s, self._may_be_listed = mono_s(), bool(report.lacking)
        if not is_published and digest != NO_FILE:
            await self._redis.set(
                keys.policy_file(digest), published(self._policy), px=keys.POLICY_FILE_TTL_MS
            )
        await self._drain.apply(drain, self._reporter.lane_count)
        load, version = FleetLoad(busy, workers), policy_version or b""
        await self._signals.apply(Signals(load, version, cancels, resets, handed, bool(watched)))
        await self._fleet_check.run(now_ms, workers)

    async def end(self) -> None:
        """Remove this worker from the fleet, so that others take its share."""
        with contextlib.suppress(RedisError, OSError):
            await self._redis.zrem(keys.WORKERS, self._reporter.registration.instance)
            await self._redis.srem(keys.LACKING, self._reporter.registration.instance)  # type: ignore[misc]
            await self._redis.delete(keys.worker(self._reporter.registration.instance))
            await drains.forget(self._redis, self._reporter.registration.instance)
