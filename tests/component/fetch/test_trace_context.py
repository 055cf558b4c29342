"""Trace context: only hosts that the policy lists receive it."""

from fetchfleet import Outcome
from tests.component.conftest import HOST, OTHER_HOST, Lines, Start
from tools.one_worker import OneWorker
from tools.origin import behaviours as o
from tools.origin.server import Origin, Seen

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
CONTEXT = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "rojo=1,congo=2"}
NAMES = ("x-request-id", "traceparent", "tracestate")
LISTED = {HOST: {"context": True}}


def context_of(seen: Seen) -> dict[str, str]:
    """Return the headers of the request that carry the trace context."""
    return {name: value for name, value in seen.headers if name in NAMES}


async def test_by_default_no_host_receives_the_trace_context(origin: Origin, worker: OneWorker) -> None:
    """It would leak identifiers to third parties."""
    await worker.one(origin.url(), **CONTEXT)

    assert context_of(origin.requests[0]) == {}


async def test_a_listed_host_receives_the_id_of_the_fetch_and_its_trace(
    origin: Origin, start: Start, lines: Lines
) -> None:
    """Each attempt is its own span of the caller's trace. The log lines have the trace ID."""
    worker = await start(hosts=LISTED)
    origin.behaviour = o.fail_times(1, 500)

    result = await worker.one(origin.url(), **CONTEXT)
    first, second = (context_of(seen) for seen in origin.requests)

    assert {first["x-request-id"], second["x-request-id"]} == {result.id}
    assert {first["tracestate"], second["tracestate"]} == {CONTEXT["tracestate"]}
    spans = [seen["traceparent"].split("-") for seen in (first, second)]
    assert {(version, trace, flags) for version, trace, _, flags in spans} == {("00", TRACE, "01")}
    assert len({PARENT, *(span for _, _, span, _ in spans)}) == 3
    of_fetch = [line for line in lines if line.get("id") == result.id]
    assert [line["event"] for line in of_fetch] == ["fetch.retry", "fetch.finished"]
    assert {line["trace_id"] for line in of_fetch} == {TRACE}


async def test_a_redirect_takes_the_trace_context_only_to_listed_hosts(
    origin: Origin, other: Origin, start: Start
) -> None:
    """The chain leads from a listed host to an unlisted one and back."""
    worker = await start(hosts=LISTED)
    origin.behaviour = o.by_path({"/a": o.redirect("/b"), "/b": o.redirect(other.url("/c")), "/d": o.OK})
    other.behaviour = o.redirect(origin.url("/d"))

    result = await worker.one(origin.url("/a"), **CONTEXT)
    [unlisted] = other.requests

    assert result.outcome is Outcome.STORED
    assert context_of(unlisted) == {}
    assert [seen.target for seen in origin.requests] == ["/a", "/b", "/d"]
    assert [context_of(seen)["x-request-id"] for seen in origin.requests] == [result.id] * 3
    assert all(TRACE in context_of(seen)["traceparent"] for seen in origin.requests)


async def test_a_redirect_to_a_listed_host_takes_the_trace_context_there(
    origin: Origin, other: Origin, start: Start
) -> None:
    """The policy of the requested host decides, not that of the redirecting one."""
    worker = await start(hosts={OTHER_HOST: {"context": True}})
    origin.behaviour = o.redirect(other.url)

    result = await worker.one(origin.url("/a"))

    assert context_of(origin.requests[0]) == {}
    assert context_of(other.requests[0]) == {"x-request-id": result.id}


async def test_the_trace_headers_of_the_caller_are_kept(origin: Origin, start: Start) -> None:
    """Each header is sent once."""
    worker = await start(hosts=LISTED)

    await worker.one(origin.url(), headers={"X-Request-Id": "mine", "Traceparent": "own"}, **CONTEXT)

    seen = [(name, value) for name, value in origin.requests[0].headers if name in NAMES]
    assert sorted(seen) == [("traceparent", "own"), ("x-request-id", "mine")]
