"""OpenTelemetry spans: one client span for each fetch. Imported only if FETCHFLEET_OTEL enables them.

A span is made after Redis has the result, from the entry and the log line of the fetch, so nothing is added
to the fetch itself. The standard OTEL_* variables configure exporter, sampler and resource.
"""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple
from urllib.parse import urlsplit

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)
from opentelemetry.trace.span import TraceState

from fetchfleet.jobs.contract.entry import Entry
from fetchfleet.jobs.contract.fetch import Fetch
from fetchfleet.jobs.contract.result import Outcome, Reason
from fetchfleet.worker.fetch.rules.trace_context import span_id_of, trace_id_of
from fetchfleet.worker.lanes.log_events import FinishedLine

SERVICE = "fetchfleet"
FLUSH_S = 2.0
"""The time that the end of a worker waits until the spans are exported."""

_NS_PER_MS = 1_000_000
_UNKNOWN_SERVICE = "unknown_service"
"""The name of the SDK for a service that OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES do not name."""
_PORTS = {"http": 80, "https": 443}


class Times(NamedTuple):
    """The start and the end of a span, in Unix nanoseconds."""

    start_ns: int
    end_ns: int


class _GivenIds(IdGenerator):
    """The IDs of the next span."""

    def __init__(self) -> None:
        self.fetch_id = ""

    def generate_span_id(self) -> int:
        """Return the span ID of the fetch, which its host has received if the policy sends `context`."""
        return int(span_id_of(self.fetch_id), 16)

    def generate_trace_id(self) -> int:
        """Return the ID of the trace of a fetch without a traceparent."""
        return int(trace_id_of(self.fetch_id), 16)


class FetchSpans:
    """Makes and exports the spans of one worker.

    roots: trace fetches without a traceparent too, each in a trace of its own.
    """

    def __init__(
        self, worker_id: str, version: str, *, roots: bool, exporter: SpanExporter | None = None
    ) -> None:
        self._exporter = OTLPSpanExporter() if exporter is None else exporter
        self._roots = roots
        self._ids = _GivenIds()
        resource = Resource.create({"service.version": version, "service.instance.id": worker_id})
        if str(resource.attributes[SERVICE_NAME]).startswith(_UNKNOWN_SERVICE):
            resource = resource.merge(Resource({SERVICE_NAME: SERVICE}))
        self._provider = TracerProvider(id_generator=self._ids, resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        self._tracer = self._provider.get_tracer(SERVICE, version)

    def record(self, entry: Entry, line: FinishedLine) -> None:
        """Make the span of a fetch whose result Redis has."""
        fetch = entry.fetch
        if fetch.traceparent is None and not self._roots:
            return
        self._ids.fetch_id = entry.id
        times = times_of(entry, line)
        span = self._tracer.start_span(
            fetch.method,
            context=_parent_of(fetch),
            kind=SpanKind.CLIENT,
            attributes=dict(attributes_of(entry, line)),
            start_time=times.start_ns,
        )
        for from_ms, until_ms in entry.retry_waits:
            wait_s = (until_ms - from_ms) / 1000
            span.add_event("fetchfleet.retry", {"fetchfleet.wait_s": wait_s}, from_ms * _NS_PER_MS)
        if line.outcome is Outcome.FAILED:
            span.set_status(Status(StatusCode.ERROR, line.reason.value if line.reason else None))
        span.end(times.end_ns)

    async def aclose(self) -> None:
        """Export the remaining spans, for FLUSH_S at most."""
        loop, closed = asyncio.get_running_loop(), asyncio.Event()

        def shut_down() -> None:
            self._provider.shutdown()
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(closed.set)

        # A daemon, so that a collector that does not respond cannot keep the process from its end.
        threading.Thread(target=shut_down, name="spans", daemon=True).start()
        try:
            async with asyncio.timeout(FLUSH_S):
                await closed.wait()
        except TimeoutError:
            self._exporter.shutdown()  # interrupts its retries


def times_of(entry: Entry, line: FinishedLine) -> Times:
    """Return the times of a span: from the first attempt to the result.

    The start of an attempt before the last one is not kept; the first retry marks it.
    """
    submitted_ns = entry.submitted_ms * _NS_PER_MS
    end_ns = submitted_ns + round((line.total_ms or 0.0) * _NS_PER_MS)
    start_ns = end_ns if line.queue_ms is None else submitted_ns + round(line.queue_ms * _NS_PER_MS)
    retries_ns = [from_ms * _NS_PER_MS for from_ms, _ in entry.retry_waits]
    return Times(min(start_ns, end_ns, *retries_ns), end_ns)


def attributes_of(entry: Entry, line: FinishedLine) -> Iterator[tuple[str, str | int]]:
    """Yield the attributes of a span: those of HTTP client spans, and the names of fetch and batch."""
    fetch = entry.fetch
    url = urlsplit(fetch.url)
    yield "http.request.method", fetch.method
    yield "url.full", line.url
    yield "server.address", url.hostname or ""
    yield "server.port", url.port or _PORTS.get(url.scheme, 0)
    if line.status is not None:
        yield "http.response.status_code", line.status
    if line.reason is not None:
        yield "error.type", str(line.status) if line.reason is Reason.HTTP_STATUS else line.reason.value
    resent = line.attempts + line.throttles + line.interruptions + line.hops - 1
    if resent > 0:
        yield "http.request.resend_count", resent
    if line.protocol is not None:
        yield "network.protocol.version", line.protocol.rpartition("/")[2]
    if line.peer is not None:
        address, _, port = line.peer.rpartition(":")
        yield "network.peer.address", address.strip("[]")
        yield "network.peer.port", int(port)
    yield "fetchfleet.fetch.id", line.id
    yield "fetchfleet.batch.id", line.batch
    yield "fetchfleet.outcome", line.outcome.value


def _parent_of(fetch: Fetch) -> Context:
    """Return the context with the span of the caller; without one, an empty context."""
    if (given := fetch.traceparent) is None:
        return Context()
    parent = SpanContext(
        trace_id=int(given[3:35], 16),
        span_id=int(given[36:52], 16),
        is_remote=True,
        trace_flags=TraceFlags(int(given[53:55], 16)),
        trace_state=None if fetch.tracestate is None else TraceState.from_header([fetch.tracestate]),
    )
    return set_span_in_context(NonRecordingSpan(parent), Context())
