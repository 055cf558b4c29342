"""The ID and the trace of a fetch as request headers, for the policy key `context`. Pure."""

from hashlib import blake2b

import msgspec

from fetchfleet.jobs.contract.checks import trace_context
from fetchfleet.jobs.contract.entry import Hop
from fetchfleet.jobs.contract.fetch import Fetch

REQUEST_ID = "X-Request-ID"


def with_context(request: Hop, fetch: Fetch, fetch_id: str, span_id: str) -> Hop:
    """Return the request with the fetch's ID and trace. A header that the caller has set stays.

    Called for each hop, since a redirect may lead to a host whose policy sends no context.
    span_id: the parent of the spans of the host.
    """
    caller_names = {name.lower() for name, _ in request.headers}
    context = [(REQUEST_ID, fetch_id)]
    if fetch.traceparent is not None and "traceparent" not in caller_names:
        context.append(("traceparent", trace_context.child(fetch.traceparent, span_id)))
        if fetch.tracestate is not None:
            context.append(("tracestate", fetch.tracestate))
    added = tuple(header for header in context if header[0].lower() not in caller_names)
    return msgspec.structs.replace(request, headers=request.headers + added)


def random_span_id(high: float, low: float) -> str:
    """Return a span ID of random numbers in [0, 1): 16 hex digits, not all zero (W3C Trace Context §3.2.2.4).

    One random float has fewer than the 64 bits needed.
    """
    number = int(high * (1 << 32)) << 32 | int(low * (1 << 32))
    return f"{number or 1:016x}"


def span_id_of(fetch_id: str) -> str:
    """Return the ID of the span of a fetch. Its requests, retries included, name it as their parent."""
    return blake2b(fetch_id.encode(), digest_size=8, person=b"span").hexdigest()


def trace_id_of(fetch_id: str) -> str:
    """Return the ID of the trace of a fetch without a traceparent."""
    return blake2b(fetch_id.encode(), digest_size=16, person=b"trace").hexdigest()
