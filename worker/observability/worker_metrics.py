"""The metrics of a worker for Prometheus: their names, and their values from its figures."""

from collections.abc import Callable, Iterable, Iterator, Sequence

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from fetchfleet.jobs.contract.result import Outcome, Reason
from fetchfleet.worker.observability.log import Event
from fetchfleet.worker.observability.percentiles import Histogram
from fetchfleet.worker.observability.totals import FetchTotals
from fetchfleet.worker.observability.worker_figures import WorkerFigures

NO_FAILURES: dict[tuple[Outcome, Reason | None], int] = {(Outcome.FAILED, reason): 0 for reason in Reason}
NO_LINES = {event.value: 0 for event in Event}
"""Counters that start at 0. A first failure in a new series would be no increase for Prometheus."""


class WorkerCollector(Collector):
    """Reads the worker at each scrape. read: returns its current state."""

    def __init__(self, read: Callable[[], WorkerFigures]) -> None:
        self._read = read

    def describe(self) -> Iterable[Metric]:
        """Describe nothing in advance."""
        return []

    def collect(self) -> Iterable[Metric]:
        """Yield the metrics of the worker."""
        return families_of(self._read())


def registry_of(read: Callable[[], WorkerFigures]) -> CollectorRegistry:
    """Return the registry of a worker, with the metrics of its process."""
    registry = CollectorRegistry()
    registry.register(WorkerCollector(read))
    ProcessCollector(registry=registry)
    return registry


def families_of(figures: WorkerFigures) -> Iterator[Metric]:
    """Yield the metrics of a worker. Pure."""
    yield InfoMetricFamily(
        "fetchfleet_worker", "The worker, its version and its settings.", dict(figures.about)
    )
    yield from _fetches(figures.totals)
    yield _counter("received_bytes", "Bytes of bodies received.", figures.received_bytes)
    yield _counter("connections_opened", "Connections to hosts that were opened.", figures.opened)
    yield _counter("connections_reused", "Requests that used an open connection.", figures.reused)
    yield _counter("connections_closed", "Connections to hosts that were closed.", figures.closed)
    yield _gauge("connections_open", "Open connections to hosts.", figures.opened - figures.closed)
    yield _gauge("lanes_held", "Lanes that the worker holds.", figures.lanes)
    yield _gauge("fetches_in_flight", "Fetches in flight.", figures.in_flight)
    yield _gauge("fetches_settling", "Settlements that wait for Redis.", figures.settling)
    yield _gauge("lanes_unverified_tls", "Lanes held without certificate checks.", figures.unverified_tls)
    yield _histogram("event_loop_lag_seconds", "Delay of the event loop.", figures.lag_s)
    log_events = {**NO_LINES, **figures.log_events}
    lines = [((event,), count) for event, count in sorted(log_events.items())]
    yield _counters("log_events", "Log lines by event, those left out by sampling too.", ("event",), lines)
    yield _counter("log_lines_dropped", "Log lines that the output refused.", figures.log_lines_dropped)
    if figures.free_bytes is not None:
        yield _gauge("disk_free_bytes", "Free space of the out folder.", figures.free_bytes)
    yield _gauge(
        "disk_refuses", "1 if no fetch starts because bodies cannot be stored.", figures.disk_refuses
    )
    yield _gauge("heartbeat_age_seconds", "Time since Redis accepted a heartbeat.", figures.heartbeat_age_s)
    yield _gauge("ready", "1 if the worker takes work now.", figures.ready)
    if figures.busiest:
        in_flight = GaugeMetricFamily(
            "fetchfleet_lane_in_flight", "Fetches in flight of the busiest lanes.", labels=("lane",)
        )
        for lane in figures.busiest:
            in_flight.add_metric((lane.name,), lane.in_flight)
        yield in_flight
        finished = [((lane.name,), lane.finished) for lane in figures.busiest]
        yield _counters("lane_finished", "Fetches finished of the busiest lanes.", ("lane",), finished)


def _fetches(totals: FetchTotals) -> Iterator[Metric]:
    """Yield the counters and histograms of fetches."""
    counts = {**NO_FAILURES, **totals.finished}
    finished = [((outcome.value, _label(reason)), count) for (outcome, reason), count in counts.items()]
    yield _counters("fetches_finished", "Fetches with a result in Redis.", ("outcome", "reason"), finished)
    retries = [((_label(reason),), count) for reason, count in totals.retries.items()]
    yield _counters("fetch_retries", "Attempts that another one follows.", ("reason",), retries)
    yield _counter("fetch_throttles", "Responses that asked to back off.", totals.throttles)
    yield _counter("fetch_interruptions", "Attempts that were cut off.", totals.interruptions)
    ms = 1000.0
    yield _histogram("fetch_duration_seconds", "From submit to the end.", totals.total_ms, ms)
    yield _histogram("fetch_queue_seconds", "From submit to the last attempt.", totals.queue_ms, ms)
    yield _histogram(
        "fetch_connect_seconds",
        "TCP and TLS of the last attempt, if it opened a connection.",
        totals.connect_ms,
        ms,
    )
    yield _histogram(
        "fetch_first_byte_seconds",
        "From the start of the last attempt to its response.",
        totals.first_byte_ms,
        ms,
    )
    yield _histogram("body_size_bytes", "Sizes of stored bodies.", totals.body_bytes)


def _label(reason: str | None) -> str:
    return "" if reason is None else str(reason)


def _counter(name: str, documentation: str, value: float) -> Metric:
    return CounterMetricFamily(f"fetchfleet_{name}", documentation, value=value)


def _counters(
    name: str, documentation: str, labels: Sequence[str], values: Iterable[tuple[Sequence[str], int]]
) -> Metric:
    family = CounterMetricFamily(f"fetchfleet_{name}", documentation, labels=labels)
    for label_values, value in values:
        family.add_metric(label_values, value)
    return family


def _gauge(name: str, documentation: str, value: float) -> Metric:
    return GaugeMetricFamily(f"fetchfleet_{name}", documentation, value=float(value))


def _histogram(name: str, documentation: str, histogram: Histogram, units: float = 1.0) -> Metric:
    """Return a histogram in base units. units: the number of the histogram's units in a base unit."""
    *bounds, (_, total) = histogram.cumulative()
    buckets = [*((str(bound / units), count) for bound, count in bounds), ("+Inf", total)]
    return HistogramMetricFamily(f"fetchfleet_{name}", documentation, buckets, histogram.sum / units)
