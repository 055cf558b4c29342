"""Spans of a worker, exported over OTLP to a collector on loopback."""

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.component.conftest import HOST, Start
from tools.origin import behaviours as o
from tools.origin.server import Origin

COLLECTOR = "127.0.71.21"
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"


async def test_the_collector_receives_the_span_that_the_host_saw_as_its_parent(
    origin: Origin, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both attempts name it. A stopping worker exports what is left."""
    async with Origin.serving(COLLECTOR, o.OK) as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url("").rstrip("/"))
        worker = await start(hosts={HOST: {"context": True}}, otel="traced")
        origin.behaviour = o.fail_times(1, 500)
        result = await worker.one(origin.url(), traceparent=TRACEPARENT)
        await worker.one(origin.url("/untraced"))
        await worker.stop()
        [export] = collector.requests

    [spans] = ExportTraceServiceRequest.FromString(export.body).resource_spans
    [span] = spans.scope_spans[0].spans
    sent = [dict(seen.headers).get("traceparent", "") for seen in origin.requests]
    assert "/v1/traces" == export.target
    assert (TRACE, PARENT) == (span.trace_id.hex(), span.parent_span_id.hex())
    assert [f"00-{TRACE}-{span.span_id.hex()}-01"] * 2 == sent[:2]
    assert ["fetchfleet.retry"] == [event.name for event in span.events]
    assert result.id in {each.value.string_value for each in span.attributes}


async def test_a_collector_that_is_down_delays_no_fetch(
    origin: Origin, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The span is lost, and the worker stops."""
    async with Origin.serving(COLLECTOR, o.OK) as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url("").rstrip("/"))
    worker = await start(otel="all")

    await worker.one(origin.url())
    await worker.stop()

    assert 1 == len(origin.requests)
