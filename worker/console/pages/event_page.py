"""The live tail of the workers' log lines."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing, suppress
from datetime import datetime
from typing import Any, NamedTuple

import msgspec
from redis.exceptions import RedisError
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from fetchfleet.jobs.errors import JobsError
from fetchfleet.worker.console.html import page, render
from fetchfleet.worker.console.pages.live import EVENT_STREAM, NO_ANSWER, STREAM_S, event, event_stream
from fetchfleet.worker.console.services import services_of
from fetchfleet.worker.inspect.event_tail import LEVELS, EventFilter, events
from fetchfleet.worker.util.clock import mono_s

MAX_TEXT_CHARS = 300
MAX_WAIT_S = 10
MAX_VALUE_CHARS = 200
MAX_LINES = 500
LINES_AT_ONCE = 100
GATHER_S = 0.2
"""The time in which lines are gathered into one update."""
HEADS = frozenset({"event", "level", "timestamp", "worker"})
"""The fields with a column of their own."""


class TailLine(NamedTuple):
    """A log line as a row."""

    at_ms: int
    level: str
    event: str
    worker: str
    fields: list[tuple[str, str]]


def event_filter(parameters: Mapping[str, str]) -> EventFilter:
    """Return the selection of a request."""
    given = {name: parameters.get(name, "").strip()[:MAX_TEXT_CHARS] for name in ("event", "host", "level")}
    level = given["level"] if given["level"] in LEVELS else None
    return EventFilter(event=given["event"] or None, host=given["host"].lower() or None, level=level)


def tail_line(fields: Mapping[str, Any]) -> TailLine:
    """Return the row of a log line."""
    try:
        at_ms = int(datetime.fromisoformat(fields["timestamp"]).timestamp() * 1000)
    except (ValueError, OverflowError):
        at_ms = 0
    rest = [
        (name[:MAX_VALUE_CHARS], _text(value))
        for name, value in fields.items()
        if name not in HEADS
        and value not in (None, False, 0, "")
        and not (name == "batch" and "id" in fields)
    ]
    return TailLine(at_ms, fields["level"], fields["event"], fields.get("worker", ""), rest)


def _text(value: object) -> str:
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    return text if len(text) <= MAX_VALUE_CHARS else f"{text[:MAX_VALUE_CHARS]}…"


async def show_events(request: Request) -> Response:
    """Show the tail, or stream its lines."""
    which = event_filter(request.query_params)
    if EVENT_STREAM in request.headers.get("accept", ""):
        return event_stream(request, _line_events(request, which))
    wait = request.query_params.get("wait", "")
    wait_s = min(MAX_WAIT_S, int(wait)) if wait.isascii() and wait.isdigit() and len(wait) < 4 else 0
    lines: list[TailLine] = []
    if wait_s:
        with suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                async for line in _lines(request, which):
                    lines.append(line)
                    if len(lines) == MAX_LINES:
                        break
    return page(
        request,
        "events.html",
        section="events",
        is_live=True,
        which=which,
        lines=lines,
        wait_s=wait_s,
        levels=LEVELS[1:],
    )


async def _lines(request: Request, which: EventFilter) -> AsyncIterator[TailLine]:
    """Yield the selected lines."""
    services = services_of(request)
    async with aclosing(events(services.redis, services.fleet.call)) as tail:
        async for text in tail:
            fields = msgspec.json.decode(text)
            if which.admits(fields):
                yield tail_line(fields)


async def _line_events(request: Request, which: EventFilter) -> AsyncIterator[bytes]:
    """Yield events with the selected lines, as rows of the table."""
    queue: asyncio.Queue[TailLine] = asyncio.Queue(MAX_LINES)

    async def read() -> None:
        async for line in _lines(request, which):
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(line)

    stopping, ends_s = services_of(request).stopping, mono_s() + STREAM_S
    reading = asyncio.create_task(read(), name="event tail")
    try:
        while not stopping.is_set() and mono_s() < ends_s:
            with suppress(TimeoutError):
                await asyncio.wait_for(stopping.wait(), GATHER_S)
            rows = [queue.get_nowait() for _ in range(min(LINES_AT_ONCE, queue.qsize()))]
            if rows:
                html = "".join(render("event_line.html", line=row) for row in rows)
                yield event("lines", {"id": "tail-lines", "html": html})
            if reading.done():
                with suppress(JobsError, RedisError, OSError):
                    reading.result()
                yield event("trouble", {"text": NO_ANSWER})
                return
    finally:
        reading.cancel()
        with suppress(asyncio.CancelledError, JobsError, RedisError, OSError):
            await reading


ROUTES = [Route("/events", show_events, methods=["GET"])]
