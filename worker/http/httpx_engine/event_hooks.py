"""Event hooks of the shared client that log each exchange at debug level."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import httpx
from structlog.typing import FilteringBoundLogger

from fetchfleet.worker.http.httpx_engine.transport import LANE
from fetchfleet.worker.observability import events, redact
from fetchfleet.worker.util.clock import mono_s

_BEGAN_S = "fetchfleet.began_s"

Hooks = Mapping[str, list[Callable[[Any], Awaitable[None]]]]


def hooks(log: FilteringBoundLogger) -> Hooks:
    """Return hooks that read the lane and the trace from the request's extensions."""

    async def start_timer(request: httpx.Request) -> None:
        request.extensions[_BEGAN_S] = mono_s()

    async def log_exchange(response: httpx.Response) -> None:
        request = response.request
        trace, lane = request.extensions["trace"].timings, request.extensions[LANE].rpartition("#")[0]
        events.exchange(
            trace.entry,
            log,
            lane=lane,
            method=request.method,
            url=redact.url(str(request.url)),
            status=response.status_code,
            version=response.http_version,
            reused=not trace.opened,
            ms=round((mono_s() - request.extensions[_BEGAN_S]) * 1000, 1),
        )

    return {"request": [start_timer], "response": [log_exchange]}
