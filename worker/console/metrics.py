"""The metrics of the fleet for Prometheus, read from Redis when they are asked for."""

import asyncio
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from redis.asyncio import Redis
from redis.exceptions import RedisError

from fetchfleet.jobs.contract.safe_text import shown
from fetchfleet.worker.inspect.doors import Door, arq_door, inbox_door
from fetchfleet.worker.inspect.overview import Overview, finished_of, overview_of
from fetchfleet.worker.inspect.snapshot import WorkerReport, snapshot
from fetchfleet.worker.observability.totals import NO_REASON
from fetchfleet.worker.util.clock import mono_s

CACHED_S = 2.0
"""The time for which the metrics are cached, so that several scrapers cost one read."""

READ_WITHIN_S = 8.0
"""The maximum time of a read. Prometheus waits for 10 s by default."""

MAX_WORKERS = 1_000
"""The maximum number of workers with counters of their own."""


class FleetReading(NamedTuple):
    """The state of a fleet, as the metrics need it."""

    overview: Overview
    inbox: Door
    arq: Door
    workers: Mapping[str, WorkerReport]
    """The reports of the live workers, by instance."""


async def read_fleet(redis: Redis) -> FleetReading:
    """Read the state of the fleet, in a few round trips."""
    fleet = await snapshot(redis)
    numbers = await overview_of(redis, fleet)
    return FleetReading(numbers, await inbox_door(redis), await arq_door(redis, fleet.now_ms), fleet.workers)


class FleetMetrics:
    """The metrics of a fleet, cached for CACHED_S. One for each server."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._text = b""
        self._read_s = float("-inf")
        self._reading = asyncio.Lock()

    async def text(self) -> bytes:
        """Return the metrics in the text format. If Redis does not answer, `fetchfleet_fleet_up` is 0."""
        async with self._reading:
            if mono_s() - self._read_s > CACHED_S:
                self._text = text_of_metrics(await self._read())
                self._read_s = mono_s()
            return self._text

    async def _read(self) -> FleetReading | None:
        try:
            async with asyncio.timeout(READ_WITHIN_S):
                return await read_fleet(self._redis)
        except (RedisError, OSError):  # a TimeoutError too
            return None


def text_of_metrics(reading: FleetReading | None) -> bytes:
    """Return the metrics in the text format. reading: None if Redis does not answer. Pure."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Families(families_of(reading)))
    return generate_latest(registry)


class _Families(Collector):
    """Metrics that are known already."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = list(families)

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterable[Metric]:
        return self._families


def families_of(reading: FleetReading | None) -> Iterator[Metric]:
    """Yield the metrics of a fleet. reading: None if Redis does not answer. Pure."""
    yield _gauge("up", "Whether Redis answered: 1 or 0.", int(reading is not None))
    if reading is None:
        return
    fleet, inbox, arq, workers = reading
    states = {"live": fleet.workers, "draining": fleet.draining, "lacking": fleet.lacking}
    yield _gauges("workers", "Live workers; drained ones; those that cannot store bodies.", "state", states)
    yield _gauges("lanes", "Lanes that are not idle, by state.", "state", fleet.lanes)
    yield _gauge(
        "lanes_not_read", "Lanes beyond those in the other metrics.", fleet.lanes_in_all - fleet.lanes_read
    )
    yield _gauge("lanes_runnable", "Lanes with a waiting fetch that could start now.", fleet.runnable)
    backlog = {"lanes": fleet.backlog, "inbox": inbox.fetches, "arq": arq.fetches}
    yield _gauges("backlog_fetches", "Fetches without a result, by place.", "place", backlog)
    yield _gauge("in_flight_fetches", "Fetches in flight.", fleet.in_flight)
    oldest_s = max(fleet.oldest_s or 0, arq.oldest_s or 0)
    yield _gauge("oldest_fetch_age_seconds", "Age of the oldest waiting fetch; 0 without one.", oldest_s)
    yield _gauge("inbox_messages", "Inbox messages that no worker has enqueued yet.", inbox.messages)
    yield _gauge("dead_letters", "Dead letters.", fleet.dead)
    yield _gauges(
        "results_unread", "Results that a consumer group has not acknowledged.", "group", fleet.unread
    )
    yield from _worker_counters(workers)


def _worker_counters(workers: Mapping[str, WorkerReport]) -> Iterator[Metric]:
    """Yield the counters of each worker since its start."""
    finished = CounterMetricFamily(
        "fetchfleet_fleet_worker_finished",
        "Fetches that a worker has finished since its start.",
        labels=("instance", "outcome", "reason"),
    )
    received = CounterMetricFamily(
        "fetchfleet_fleet_worker_received_bytes",
        "Bytes of bodies that a worker has received since its start.",
        labels=("instance",),
    )
    for instance in sorted(workers)[:MAX_WORKERS]:
        report, name = workers[instance], shown(instance)
        for outcome, reasons in finished_of([report]).items():
            for reason, count in reasons.items():
                finished.add_metric((name, outcome, "" if reason == NO_REASON else reason), count)
        received.add_metric((name,), max(0, report.received_bytes))
    yield finished
    yield received


def _gauge(name: str, documentation: str, value: float) -> Metric:
    return GaugeMetricFamily(f"fetchfleet_fleet_{name}", documentation, value=value)


def _gauges(name: str, documentation: str, label: str, values: Mapping[str, int]) -> Metric:
    family = GaugeMetricFamily(f"fetchfleet_fleet_{name}", documentation, labels=(label,))
    for value, number in values.items():
        family.add_metric((shown(value),), number)
    return family
