"""Event hooks of the shared client that log each exchange at debug level."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import httpx
from structlog.typing import FilteringBoundLogger

from fetchfleet.worker.http.httpx_engine.transport import CONTEXT, ExchangeContext
from fetchfleet.worker.observability import events, redact
from fetchfleet.worker.util.clock import mono_s

Hooks = Mapping[str, list[Callable[[Any], Awaitable[None]]]]


def hooks(log: FilteringBoundLogger) -> Hooks:
    """Return hooks that read the lane and the timings from the request's context."""

    async def log_exchange(response: httpx.Response) -> None:
        request = response.request
        context: ExchangeContext = request.extensions[CONTEXT]
        events.exchange(
            context.trace.entry,
            log,
            lane=context.lane.rpartition("#")[0],
            method=request.method,
            url=redact.url(str(request.url)),
            status=response.status_code,
            version=response.http_version,
            reused=not context.trace.opened,
            ms=round((mono_s() - context.began_s) * 1000, 1),
        )

    return {"response": [log_exchange]}
