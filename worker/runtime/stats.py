"""Logs statistics every ten seconds: those of this worker, and those of the fleet if it is its turn."""

import asyncio
import os
import resource
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError
from structlog.typing import FilteringBoundLogger

from fetchfleet.jobs import keys
from fetchfleet.jobs.scripts.sweep import take_turn
from fetchfleet.worker.http.connection_stats import ConnectionStats
from fetchfleet.worker.inspect.overview import overview
from fetchfleet.worker.lanes.lane import Lane
from fetchfleet.worker.lanes.services import QuarantineReason
from fetchfleet.worker.lanes.settler import Settler
from fetchfleet.worker.observability import events
from fetchfleet.worker.observability.percentiles import Histogram, Recent, percentile
from fetchfleet.worker.observability.totals import WorkerTotals
from fetchfleet.worker.redis_support.health import RedisHealth
from fetchfleet.worker.util.clock import mono_s

LOGGED = (
    *("workers", "draining", "lacking", "lanes", "lanes_read", "lanes_in_all", "runnable"),
    *("waiting", "in_flight", "oldest_s", "inbox", "arq", "dead", "unread", "finished"),
)
"""The fields of an overview in the log."""

LAGS_S = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)
"""The bounds of the histogram of the event-loop lag. docs/metrics.md lists them."""

_PAGE_BYTES = resource.getpagesize()


class Stats:
    """Measures event-loop lag and logs statistics. One for each worker process; `run` is its task."""

    def __init__(
        self,
        traffic: ConnectionStats,
        lanes: Mapping[str, Lane],
        settler: Settler,
        quarantined: Mapping[QuarantineReason, int],
        totals: Callable[[], WorkerTotals],
        log: FilteringBoundLogger,
        *,
        every_s: float,
        lag_every_s: float,
    ) -> None:
        self.traffic = traffic
        self.lag_s = Recent()
        """Samples of the event-loop lag since the last line: how much too late a sleep ended."""
        self.lags_s = Histogram(LAGS_S)
        """The event-loop lag since the start."""
        self._lanes = lanes
        self._settler = settler
        self._quarantined = quarantined
        self._totals = totals
        self._log = log
        self._every_s = every_s
        self._lag_every_s = lag_every_s
        self._logged_s = mono_s()
        self._logged = (0, 0, 0)
        self._logged_quarantined: Mapping[QuarantineReason, int] = {}

    async def run(self) -> None:
        """Measure the lag and log a line at intervals, until cancelled."""
        while True:
            asked_s = mono_s()
            await asyncio.sleep(self._lag_every_s)
            now_s = mono_s()
            lag_s = max(0.0, now_s - asked_s - self._lag_every_s)
            self.lag_s.add(lag_s)
            self.lags_s.add(lag_s)
            if now_s - self._logged_s >= self._every_s:
                self.log_line()

    def log_line(self) -> None:
        """Log a line about the time since the last one."""
        now_s, traffic, lag_s = mono_s(), self.traffic, self.lag_s.pop_sorted()
        counts = (traffic.opened, traffic.reused, traffic.closed)
        opened, reused, closed = (now - before for now, before in zip(counts, self._logged, strict=True))
        connections = {"opened": opened, "reused": reused, "closed": closed}
        connections["open"] = traffic.opened - traffic.closed
        before, quarantined = self._logged_quarantined, dict(self._quarantined)
        events.stats(
            self._log,
            interval_s=round(now_s - self._logged_s, 1),
            lanes=len(self._lanes),
            in_flight=sum(len(lane.in_flight) for lane in self._lanes.values()),
            settling=self._settler.count,
            **_percentiles("pool_wait", traffic.pool_wait_s),
            **connections,
            **_percentiles("tcp", traffic.tcp_s),
            **_percentiles("tls", traffic.tls_s),
            lag_p50_ms=_ms(percentile(lag_s, 0.5)),
            lag_max_ms=_ms(percentile(lag_s, 1)),
            quarantined={
                why.value: count - before.get(why, 0)
                for why, count in quarantined.items()
                if count > before.get(why, 0)
            },
            rss_bytes=rss_bytes(),
            open_files=open_files(),
            **msgspec.structs.asdict(self._totals()),
        )
        self._logged_s, self._logged, self._logged_quarantined = now_s, counts, quarantined


class FleetStatusLog:
    """Logs the state of the fleet. One for each worker process; `run` is its task.

    In each interval one worker of the fleet does so.
    """

    def __init__(
        self, redis: Redis, health: RedisHealth, log: FilteringBoundLogger, *, every_s: float
    ) -> None:
        self._redis = redis
        self._health = health
        self._log = log
        self._every_s = every_s

    async def run(self) -> None:
        """Log a line whenever it is this worker's turn, until cancelled."""
        # Shorter than the interval, so that a single worker logs in each.
        every_ms = int(self._every_s * 900)
        while True:
            await asyncio.sleep(self._every_s)
            try:
                if await take_turn(self._redis, keys.STATUS_LOGGED, every_ms=every_ms):
                    await self.once()
            except (RedisError, OSError) as error:
                self._health.report(error)

    async def once(self) -> None:
        """Read the state of the fleet, and log it."""
        fleet = await overview(self._redis)
        events.fleet_status(self._log, **{name: getattr(fleet, name) for name in LOGGED})


def rss_bytes() -> int:
    """Return the resident memory of this process (proc(5), statm)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE_BYTES


def open_files() -> int:
    """Return the number of open descriptors of this process, without the one that lists them."""
    return len(os.listdir("/proc/self/fd")) - 1  # noqa: PTH208 no paths are wanted


def _percentiles(name: str, recent: Recent) -> dict[str, float | None]:
    samples = recent.pop_sorted()
    return {f"{name}_p50_ms": _ms(percentile(samples, 0.5)), f"{name}_p99_ms": _ms(percentile(samples, 0.99))}


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 2)
