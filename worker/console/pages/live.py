"""Live pages: a page, and the server-sent events that keep it up to date.

The fragments of a page are the blocks of its template whose name begins with `live_`. Each is the content of
the element with the ID `live-…`. A browser opens the stream at the address of the page itself.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any

import msgspec
from redis.exceptions import RedisError
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from fetchfleet.jobs.errors import JobsError
from fetchfleet.worker.console.html import fragments, page
from fetchfleet.worker.console.pages.state import MAX_STREAMS
from fetchfleet.worker.console.problems import ProblemError
from fetchfleet.worker.console.services import services_of
from fetchfleet.worker.util.clock import mono_s

EVERY_S = 2.0
"""The time between two updates."""
READ_TIMEOUT_S = 5.0
"""The time after which a page reports that Redis does not answer."""
STREAM_S = 300.0
"""The time after which a stream ends. The browser opens it again, which checks its session."""
REOPEN_MS = 500

EVENT_STREAM = "text/event-stream"
NO_ANSWER = "Redis does not answer"

Context = dict[str, Any]
ReadContext = Callable[[Request], Awaitable[Context]]


def live_route(path: str, template: str, read: ReadContext) -> Route:
    """Return the route of a live page. read: returns the values of its template."""

    async def show(request: Request) -> Response:
        return await live_page(request, template, read)

    return Route(path, show, methods=["GET"], name=template)


async def live_page(request: Request, template: str, read: ReadContext) -> Response:
    """Return a page, or the stream of its updates, as the request accepts."""
    first = await bounded(read(request))  # a page that does not exist has no stream
    if EVENT_STREAM in request.headers.get("accept", ""):
        return event_stream(request, updates(request, template, read, first))
    return page(request, template, is_live=True, **first)


def page_route(path: str, template: str, read: ReadContext) -> Route:
    """Return the route of a page that is not live."""

    async def show(request: Request) -> Response:
        return page(request, template, **await bounded(read(request)))

    return Route(path, show, methods=["GET"], name=template)


async def bounded(reading: Awaitable[Context]) -> Context:
    """Return the values of a page. Raises ProblemError if Redis does not answer in time."""
    try:
        async with asyncio.timeout(READ_TIMEOUT_S):
            return await reading
    except TimeoutError:
        raise ProblemError(503, NO_ANSWER, "redis_unreachable") from None


def event_stream(request: Request, events: AsyncIterator[bytes]) -> Response:
    """Return the response with a stream of events. Raises ProblemError if too many are open."""
    state = services_of(request).pages
    if state.streams >= MAX_STREAMS:
        raise ProblemError(
            503, f"{MAX_STREAMS} pages are live already; this one does not update itself", "full"
        )

    async def counted() -> AsyncIterator[bytes]:
        state.streams += 1
        try:
            yield b"retry: %d\n" % REOPEN_MS + event("ready")
            async for one in events:
                yield one
        finally:
            state.streams -= 1

    return StreamingResponse(counted(), media_type=EVENT_STREAM)


async def updates(
    request: Request, template: str, read: ReadContext, context: Context
) -> AsyncIterator[bytes]:
    """Yield the fragments of a page that change. context: the values of its template at first."""
    stopping = services_of(request).stopping
    ends_s = mono_s() + STREAM_S
    sent: dict[str, str] = {}
    trouble = ""
    while not stopping.is_set() and mono_s() < ends_s:
        for element, html in fragments(request, template, context).items():
            if sent.get(element) != html:
                sent[element] = html
                yield event("fragment", {"id": element, "html": html})
        with suppress(TimeoutError):
            await asyncio.wait_for(stopping.wait(), EVERY_S)
        try:
            context = await bounded(read(request))
        except (ProblemError, JobsError, RedisError, OSError) as error:
            now = str(error) if isinstance(error, ProblemError) else NO_ANSWER
            if now != trouble:
                trouble = now
                yield event("trouble", {"text": trouble})
        else:
            if trouble:
                trouble = ""
                yield event("ready")


def event(name: str, data: object = None) -> bytes:
    """Return a server-sent event. JSON has no line breaks."""
    return b"event: %b\ndata: %b\n\n" % (name.encode(), msgspec.json.encode(data))
