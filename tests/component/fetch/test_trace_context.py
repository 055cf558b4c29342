"""Which hosts are told what a fetch is part of, and which are not."""

from fetchfleet import Outcome
from tests.component.conftest import HOST, OTHER_HOST, Lines, Start
from tools.one_worker import OneWorker
from tools.origin import behaviours as o
from tools.origin.server import Origin, Seen

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
CONTEXT = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "rojo=1,congo=2"}
NAMES = ("x-request-id", "traceparent", "tracestate")
TOLD = {HOST: {"context": True}}


def told(seen: Seen) -> dict[str, str]:
    """What of the context the request brought."""
    return {name: value for name, value in seen.headers if name in NAMES}


async def test_by_default_no_host_is_told(origin: Origin, worker: OneWorker) -> None:
    """Most hosts are strangers."""
    await worker.one(origin.url(), **CONTEXT)

    assert told(origin.requests[0]) == {}


async def test_a_listed_host_is_told_the_fetchs_id_and_its_trace(
    origin: Origin, start: Start, lines: Lines
) -> None:
    """Each attempt is a span of its own in the caller's trace, and the log can be searched for it."""
    worker = await start(hosts=TOLD)
    origin.behaviour = o.fail_times(1, 500)

    result = await worker.one(origin.url(), **CONTEXT)
    first, second = (told(seen) for seen in origin.requests)

    assert {first["x-request-id"], second["x-request-id"]} == {result.id}
    assert {first["tracestate"], second["tracestate"]} == {CONTEXT["tracestate"]}
    spans = [seen["traceparent"].split("-") for seen in (first, second)]
    assert {(version, trace, flags) for version, trace, _, flags in spans} == {("00", TRACE, "01")}
    assert len({PARENT, *(span for _, _, span, _ in spans)}) == 3
    of_fetch = [line for line in lines if line.get("id") == result.id]
    assert [line["event"] for line in of_fetch] == ["fetch.retry", "fetch.finished"]
    assert {line["trace_id"] for line in of_fetch} == {TRACE}


async def test_a_redirect_takes_the_context_only_to_hosts_that_are_listed(
    origin: Origin, other: Origin, start: Start
) -> None:
    """There and back again: the host in the middle hears nothing, the listed one the same both times."""
    worker = await start(hosts=TOLD)
    origin.behaviour = o.by_path({"/a": o.redirect("/b"), "/b": o.redirect(other.url("/c")), "/d": o.OK})
    other.behaviour = o.redirect(origin.url("/d"))

    result = await worker.one(origin.url("/a"), **CONTEXT)
    [unlisted] = other.requests

    assert result.outcome is Outcome.STORED
    assert told(unlisted) == {}
    assert [seen.target for seen in origin.requests] == ["/a", "/b", "/d"]
    assert [told(seen)["x-request-id"] for seen in origin.requests] == [result.id] * 3
    assert all(TRACE in told(seen)["traceparent"] for seen in origin.requests)


async def test_what_leads_to_a_listed_host_is_told_there(origin: Origin, other: Origin, start: Start) -> None:
    """The policy of the host that is asked counts, not that of the host which sent us."""
    worker = await start(hosts={OTHER_HOST: {"context": True}})
    origin.behaviour = o.redirect(other.url)

    result = await worker.one(origin.url("/a"))

    assert told(origin.requests[0]) == {}
    assert told(other.requests[0]) == {"x-request-id": result.id}


async def test_the_callers_own_headers_stand(origin: Origin, start: Start) -> None:
    """Each once on the wire."""
    worker = await start(hosts=TOLD)

    await worker.one(origin.url(), headers={"X-Request-Id": "mine", "Traceparent": "own"}, **CONTEXT)

    seen = [(name, value) for name, value in origin.requests[0].headers if name in NAMES]
    assert sorted(seen) == [("traceparent", "own"), ("x-request-id", "mine")]
