"""The id and the trace of a fetch as request headers, if the policy wants them sent. Pure."""

import msgspec

from fetchfleet.jobs.contract import trace_context
from fetchfleet.jobs.contract.entry import Hop
from fetchfleet.jobs.contract.model import Fetch

REQUEST_ID = "X-Request-ID"


def carried(request: Hop, fetch: Fetch, fetch_id: str, high: float, low: float) -> Hop:
    """Return the request with the fetch's id and trace; a header that the caller has set stays.

    high and low are chance, each in [0, 1): they make the span id of this attempt. Call it for each hop: a
    redirect may lead to a host whose policy sends nothing.
    """
    given = {name.lower() for name, _ in request.headers}
    made = [(REQUEST_ID, fetch_id)]
    if fetch.traceparent is not None and "traceparent" not in given:
        made.append(("traceparent", trace_context.child(fetch.traceparent, span_id(high, low))))
        if fetch.tracestate is not None:
            made.append(("tracestate", fetch.tracestate))
    more = tuple(header for header in made if header[0].lower() not in given)
    return msgspec.structs.replace(request, headers=request.headers + more)


def span_id(high: float, low: float) -> str:
    """Return 16 hex digits, not all zero (W3C Trace Context §3.2.2.4). One float has too few random bits."""
    number = int(high * (1 << 32)) << 32 | int(low * (1 << 32))
    return f"{number or 1:016x}"
