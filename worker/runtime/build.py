"""The composition root: opens the resources of a worker and wires its components into a Runtime."""

import asyncio
import dataclasses
import random
from collections.abc import Callable
from contextlib import AsyncExitStack

from msgspec import Struct, field
from redis.asyncio import Redis
from structlog.typing import FilteringBoundLogger

from fetchfleet.jobs.client.submit import NO_LIMITS, Limits
from fetchfleet.jobs.contract.entry import Entry
from fetchfleet.jobs.notify import arq_client
from fetchfleet.jobs.redis_connection import connect, redis_now_ms
from fetchfleet.jobs.scripts.lanes import ENDED
from fetchfleet.worker.fetch.services import FetchServices
from fetchfleet.worker.http.connection_stats import ConnectionStats
from fetchfleet.worker.http.factory import build_engine
from fetchfleet.worker.http.net.redis_guard import redis_addresses
from fetchfleet.worker.inspect.registration import Registration, abilities_of, registration_of
from fetchfleet.worker.inspect.workers.peers import Peers
from fetchfleet.worker.intake.arq_jobs import ArqIngress
from fetchfleet.worker.intake.inbox import InboxReader
from fetchfleet.worker.intake.webhooks import Webhooks
from fetchfleet.worker.lanes.invalid_claims import log_quarantine, not_recorded
from fetchfleet.worker.lanes.lane import Lane
from fetchfleet.worker.lanes.log_events import FinishedLine
from fetchfleet.worker.lanes.robots_cache import RobotsCache
from fetchfleet.worker.lanes.settler import Settler
from fetchfleet.worker.lanes.store import LaneStore
from fetchfleet.worker.observability.log import get_logger
from fetchfleet.worker.observability.totals import FetchTotals
from fetchfleet.worker.redis_support.event_tap import EventTap
from fetchfleet.worker.redis_support.foreign_members import ForeignMembers
from fetchfleet.worker.redis_support.health import RedisErrorReporter, RedisHealth
from fetchfleet.worker.redis_support.key_repair import KeyRepair, RepairingSubmitter
from fetchfleet.worker.redis_support.lost_fetches import LostFetches
from fetchfleet.worker.redis_support.startup import await_usable_redis, check_rights, startup_permissions
from fetchfleet.worker.runtime.disk_guard import DiskGuard
from fetchfleet.worker.runtime.fleet_signals import DrainSignal, FleetSignals
from fetchfleet.worker.runtime.heartbeat import FleetCheck, Heartbeat, WorkerReporter
from fetchfleet.worker.runtime.live_lanes import LiveLanes
from fetchfleet.worker.runtime.live_policy import LivePolicy
from fetchfleet.worker.runtime.notifier import LaneNotifier
from fetchfleet.worker.runtime.runtime import Runtime
from fetchfleet.worker.runtime.stats import FleetStatusLog, Stats
from fetchfleet.worker.runtime.timings import WorkerTimings
from fetchfleet.worker.scheduler.acquire import Acquirer
from fetchfleet.worker.scheduler.leases import Leases
from fetchfleet.worker.scheduler.rebalancer import Rebalancer
from fetchfleet.worker.scheduler.sweep import Housekeeping, LaneReclaimer, Sweep
from fetchfleet.worker.settings import ALL, OFF, Settings
from fetchfleet.worker.sink.factory import sink_of
from fetchfleet.worker.sink.files.directory import unusable_out
from fetchfleet.worker.util.aio import Slots
from fetchfleet.worker.util.backoff import Spacing
from fetchfleet.worker.util.clock import RedisClock


class _Base(Struct, frozen=True, kw_only=True, eq=False):
    """Objects that most components of a worker need."""

    settings: Settings
    registration: Registration
    peers: Peers
    timings: WorkerTimings
    log: FilteringBoundLogger
    redis: Redis
    clock: RedisClock
    redis_errors: RedisErrorReporter
    key_repair: KeyRepair
    health: RedisHealth
    notifier: LaneNotifier
    lanes: dict[str, Lane] = field(default_factory=dict)
    traffic: ConnectionStats = field(default_factory=ConnectionStats)


async def build(settings: Settings, timings: WorkerTimings | None = None) -> Runtime:
    """Return a runtime that is ready to start. If that fails, close the opened resources.

    Waits while Redis loads its data. Raises RefusedRedisError, UnreachableRedisError, PolicyError,
    redis.exceptions.RedisError or OSError.
    """
    async with AsyncExitStack() as opened:
        log = get_logger(worker=settings.worker_id)
        redis = connect(settings.redis_url)
        opened.push_async_callback(redis.connection_pool.aclose)
        opened.push_async_callback(redis.aclose)
        with startup_permissions():
            await await_usable_redis(redis, settings.redis_url, log)
            timings = timings or WorkerTimings()
            redis_errors = RedisErrorReporter(log, recovery_s=timings.redis_recovery_s)
            key_repair = KeyRepair(
                redis, int(settings.lease_s * 1000), redis_errors, log, timings.key_check_s
            )
            health = RedisHealth(redis_errors, key_repair)
            notifier = LaneNotifier(arq_client(redis.connection_pool), health)
            clock = RedisClock()
            clock.sync(await redis_now_ms(redis))
            await check_rights(redis)
            registration = registration_of(settings, clock.now_ms())
            base = _Base(
                settings=settings,
                registration=registration,
                peers=Peers(redis, registration, log),
                timings=timings,
                log=log,
                redis=redis,
                clock=clock,
                redis_errors=redis_errors,
                key_repair=key_repair,
                health=health,
                notifier=notifier,
            )
            services, live_policy = await _open_services(base, opened)
            return await _wire(base, services, live_policy, opened)


async def _open_services(base: _Base, opened: AsyncExitStack) -> tuple[FetchServices, LivePolicy]:
    """Open the engine, the sink and the lane store, and create the live policy."""
    settings, redis, health, log = base.settings, base.redis, base.health, base.log
    sink = sink_of(settings, base.registration.instance)
    opened.callback(sink.close)
    store = LaneStore(redis, base.registration.instance, int(settings.lease_s * 1000))
    opened.push_async_callback(store.aclose)
    http = build_engine(settings, await redis_addresses(redis), base.traffic, log)
    opened.push_async_callback(http.aclose)
    try:
        sink.open()
    except OSError as error:
        raise unusable_out(settings.out, error) from error
    live_policy = LivePolicy(settings.policy, redis, base.lanes, http.pools, health, log)

    def on_had_ended(lane: Lane, fetch_id: str) -> None:
        log_quarantine(lane, services, *not_recorded(ENDED, fetch_id))

    services = FetchServices(
        worker_id=settings.worker_id,
        user_agent=settings.user_agent,
        store=store,
        settler=Settler(
            redis,
            health.report,
            for_all=settings.results_length > 0,
            key_repair=base.key_repair,
            on_had_ended=on_had_ended,
            totals=FetchTotals(by_lane=settings.metrics_hosts > 0),
            log_one_of=settings.log_one_of,
            max_waiting=base.timings.lanes.max_settlements,
        ),
        key_repair=base.key_repair,
        engine=http.engine,
        pools=http.pools,
        sink=sink,
        robots=RobotsCache(redis),
        clock=base.clock,
        slots=Slots(settings.max_in_flight),
        policy=lambda: live_policy.policy,
        notify=base.notifier.try_send,
        chance=random.random,
        report_redis_error=health.report,
        log=log,
        parameters=base.timings.lanes,
        abilities=abilities_of(base.registration),
        signing_keys=settings.signing_keys,
        record_span=_record_span(base, opened),
        others=None if settings.alone else base.peers.abilities,
        returns=Spacing(base.timings.lanes.newer_return_s, base.timings.lanes.return_every_s),
    )
    return services, live_policy


def _record_span(base: _Base, opened: AsyncExitStack) -> Callable[[Entry, FinishedLine], None] | None:
    """Return the function that makes spans of fetches; None if FETCHFLEET_OTEL is off."""
    if base.settings.otel == OFF:
        return None
    from fetchfleet.worker.fetch.spans import FetchSpans  # noqa: PLC0415 it needs an extra

    about = base.registration
    spans = FetchSpans(about.name, about.version, roots=base.settings.otel == ALL)
    opened.push_async_callback(spans.aclose)
    return spans.record


async def _wire(
    base: _Base, services: FetchServices, live_policy: LivePolicy, opened: AsyncExitStack
) -> Runtime:
    """Wire the components that acquire lanes, accept fetches, and announce this worker to the fleet."""
    settings, timings, redis, log = base.settings, base.timings, base.redis, base.log
    lanes, health = base.lanes, base.health
    store, settler = services.store, services.settler
    disk_guard = DiskGuard(services.sink.disk, settings.min_free_bytes, lanes, log, timings.disk_check_s)
    await disk_guard.check()
    leases = Leases(lanes, settings.lease_s, store, services.clock, health.report, log)
    wanted = asyncio.Event()
    live_lanes = LiveLanes(lanes, services, live_policy, leases, disk_guard, wanted, log)
    acquirer = Acquirer(services, lanes, live_lanes.begin, live_lanes.accepts, random.sample, wanted)
    rebalancer = Rebalancer(lanes, log, timings.lanes.release_within_s)
    event_tap = EventTap(redis, settings.worker_id, health, log)
    signals = FleetSignals(lanes, acquirer, rebalancer, live_policy, live_lanes, event_tap)
    drain = DrainSignal(redis, base.registration.instance, live_lanes, rebalancer, log)
    reporter = WorkerReporter(base.registration, lanes, settler, services.sink.disk, live_policy, disk_guard)
    heartbeat = _heartbeat(base, reporter, leases, signals, drain)
    submitter = RepairingSubmitter(base.key_repair, redis, base.notifier.send, Limits(settings.max_backlog))
    # The Redis of `fetchfleet run` has no other producers, so its inbox is rarely polled.
    inbox_timings = dataclasses.replace(timings.inbox, look_s=2.0) if settings.alone else timings.inbox
    inbox = InboxReader(
        *(settings.redis_url, settings.worker_id, submitter, base.redis_errors, log, inbox_timings),
        accepts=live_lanes.undrained,
        repair=base.key_repair.quarantine,
    )
    opened.push_async_callback(inbox.aclose)
    foreign = ForeignMembers(redis, log)
    return Runtime(
        settings=settings,
        registration=base.registration,
        timings=timings,
        log=log,
        redis=redis,
        redis_errors=base.redis_errors,
        health=health,
        services=services,
        lanes=lanes,
        live_lanes=live_lanes,
        leases=leases,
        acquirer=acquirer,
        signals=signals,
        heartbeat=heartbeat,
        stats=Stats(
            *(base.traffic, lanes, settler, services.quarantined, reporter.totals, log),
            every_s=timings.stats_s,
            lag_every_s=timings.loop_lag_s,
        ),
        fleet_status=FleetStatusLog(redis, health, log, every_s=timings.fleet_status_s),
        disk_guard=disk_guard,
        event_tap=event_tap,
        inbox=inbox,
        arq_ingress=ArqIngress(redis, submitter, log),
        sweep=_sweep(base, acquirer, foreign),
        foreign=foreign,
        housekeeping=Housekeeping(redis, settings.results_length, log),
        resources=opened.pop_all(),
    )


def _heartbeat(
    base: _Base, reporter: WorkerReporter, leases: Leases, signals: FleetSignals, drain: DrainSignal
) -> Heartbeat:
    """Return the heartbeat, which checks the other workers too."""
    return Heartbeat(
        base.redis,
        base.settings,
        base.clock,
        reporter,
        leases,
        signals,
        drain,
        base.health,
        fleet_check=FleetCheck(base.redis, base.registration, base.peers, base.log, base.timings),
        every_s=base.timings.heartbeat_s,
    )


def _sweep(base: _Base, acquirer: Acquirer, foreign: ForeignMembers) -> Sweep:
    """Return the sweep. Reclaimed lanes are announced by notifications and acquired by this worker too."""
    return Sweep(
        base.redis,
        LaneReclaimer(base.redis, base.key_repair, base.notifier.try_send, acquirer.look_soon, base.log),
        foreign,
        base.key_repair,
        LostFetches(
            base.redis,
            base.settings.worker_id,
            base.log,
            to_all_results=base.settings.results_length > 0,
        ),
        # A full fleet must not delay webhooks.
        Webhooks(
            base.redis,
            RepairingSubmitter(base.key_repair, base.redis, base.notifier.send, NO_LIMITS),
            base.log,
        ),
        base.health,
        every_s=base.timings.sweep_s,
        reclaim_delay_s=base.timings.reclaim_delay_s,
    )
