"""Spans of fetches: their times, attributes and parents."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from fetchfleet import Fetch, Outcome, Reason
from fetchfleet.jobs.contract.entry import Entry
from fetchfleet.jobs.contract.fetch import Priority
from fetchfleet.worker.fetch.rules.trace_context import span_id_of, trace_id_of
from fetchfleet.worker.fetch.spans import SERVICE, FetchSpans, attributes_of, times_of
from fetchfleet.worker.lanes.log_events import FinishedLine

NOW_MS = 1_796_000_000_000
ID = "0123456789abcdef-00000007"
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"
URL = "https://api.example.com/a?token=secret"
MS = st.floats(0, 1e7)


def entry(waits: tuple[tuple[int, int], ...] = (), **fields: Any) -> Entry:
    """Return the entry of a fetch. waits: those of its retries."""
    fetch = Fetch(**{"url": URL, "traceparent": TRACEPARENT, **fields})
    return Entry(id=ID, deadline_ms=NOW_MS + fetch.lifetime_ms, fetch=fetch, retry_waits=waits)


STORED = FinishedLine(
    worker="one",
    id=ID,
    batch=ID[:16],
    lane="api.example.com",
    method="GET",
    url="https://api.example.com/a?token=***",
    status=200,
    outcome=Outcome.STORED,
    reason=None,
    note=None,
    bytes=3,
    stale=False,
    attempts=1,
    throttles=0,
    interruptions=0,
    queue_ms=100.0,
    connect_ms=10.0,
    ttfb_ms=20.0,
    total_ms=150.0,
    protocol="HTTP/1.1",
    reused=False,
    dns_ms=1.0,
    tls_ms=5.0,
    peer="192.0.2.7:443",
    hops=0,
    content_type="text/plain",
    path="01/23",
    priority=Priority.NORMAL,
    waited_ms=None,
    lenient=msgspec.UNSET,
    trace_id=TRACE,
)


def line(**fields: Any) -> FinishedLine:
    """Return the log line of a stored fetch with other fields."""
    return msgspec.structs.replace(STORED, **fields)


async def spans_of(*fetches: tuple[Entry, FinishedLine], roots: bool = False) -> tuple[ReadableSpan, ...]:
    """Return the exported spans."""
    exporter = InMemorySpanExporter()
    spans = FetchSpans("one", "0.1.0", roots=roots, exporter=exporter)
    for fetch in fetches:
        spans.record(*fetch)
    await spans.aclose()
    return exporter.get_finished_spans()


async def test_the_span_of_a_fetch_is_a_child_of_the_callers_span() -> None:
    """It covers the attempt, and has the span ID that the host has received."""
    [span] = await spans_of((entry(), line()))

    assert span.parent is not None
    assert span.context is not None
    assert (int(TRACE, 16), int(PARENT, 16)) == (span.context.trace_id, span.parent.span_id)
    assert int(span_id_of(ID), 16) == span.context.span_id
    assert ("GET", SpanKind.CLIENT, StatusCode.UNSET) == (span.name, span.kind, span.status.status_code)
    assert ((NOW_MS + 100) * 1_000_000, (NOW_MS + 150) * 1_000_000) == (span.start_time, span.end_time)
    assert {
        "http.request.method": "GET",
        "url.full": "https://api.example.com/a?token=***",
        "server.address": "api.example.com",
        "server.port": 443,
        "http.response.status_code": 200,
        "network.protocol.version": "1.1",
        "network.peer.address": "192.0.2.7",
        "network.peer.port": 443,
        "fetchfleet.fetch.id": ID,
        "fetchfleet.batch.id": ID[:16],
        "fetchfleet.outcome": "stored",
    } == dict(span.attributes or {})


async def test_a_fetch_without_a_trace_has_a_span_only_if_all_are_traced() -> None:
    """Its trace has one span."""
    untraced = entry(traceparent=None)
    [span] = await spans_of((untraced, line()), roots=True)

    assert () == await spans_of((untraced, line()))
    assert span.parent is None
    assert span.context is not None
    assert int(trace_id_of(ID), 16) == span.context.trace_id


async def test_a_trace_that_the_caller_does_not_sample_is_not_exported() -> None:
    """The flag sampled of the traceparent is 0."""
    assert () == await spans_of((entry(traceparent=TRACEPARENT[:-1] + "0"), line()))


async def test_a_failed_fetch_has_the_error_and_its_retries() -> None:
    """Each retry is an event at the start of its wait; the span begins no later."""
    failed = line(outcome=Outcome.FAILED, reason=Reason.HTTP_STATUS, status=500, attempts=3)
    waits = ((NOW_MS + 50, NOW_MS + 60), (NOW_MS + 70, NOW_MS + 95))
    [span] = await spans_of((entry(waits), failed))

    assert StatusCode.ERROR is span.status.status_code
    assert ("500", 2) == (span.attributes["error.type"], span.attributes["http.request.resend_count"])  # type: ignore[index]
    assert [(NOW_MS + 50) * 1_000_000, (NOW_MS + 70) * 1_000_000] == [
        event.timestamp for event in span.events
    ]
    assert [0.01, 0.025] == [dict(event.attributes or {})["fetchfleet.wait_s"] for event in span.events]
    assert (NOW_MS + 50) * 1_000_000 == span.start_time


async def test_the_resource_names_the_service_unless_the_environment_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The standard variable is OTEL_SERVICE_NAME."""
    [span] = await spans_of((entry(), line()))
    monkeypatch.setenv("OTEL_SERVICE_NAME", "mine")
    [renamed] = await spans_of((entry(), line()))

    assert (SERVICE, "one") == tuple(
        span.resource.attributes[name] for name in ("service.name", "service.instance.id")
    )
    assert "mine" == renamed.resource.attributes["service.name"]


@given(st.none() | MS, st.none() | MS, st.lists(st.tuples(st.integers(0, NOW_MS), st.integers(0, NOW_MS))))
def test_a_span_never_ends_before_its_start(
    queue_ms: float | None, total_ms: float | None, waits: list[tuple[int, int]]
) -> None:
    """Clocks and missing timings do not matter."""
    times = times_of(entry(tuple(waits)), line(queue_ms=queue_ms, total_ms=total_ms))

    assert times.start_ns <= times.end_ns


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"peer": "[2001:db8::1]:8443"}, {"network.peer.address": "2001:db8::1", "network.peer.port": 8443}),
        ({"protocol": "HTTP/2"}, {"network.protocol.version": "2"}),
        ({"reason": Reason.TLS, "status": None}, {"error.type": "tls"}),
        ({"throttles": 2, "hops": 1}, {"http.request.resend_count": 3}),
    ],
)
def test_attributes_follow_the_conventions(fields: dict[str, Any], expected: dict[str, str | int]) -> None:
    """Addresses have no brackets, and resends have any cause."""
    assert expected.items() <= dict(attributes_of(entry(), line(**fields))).items()
