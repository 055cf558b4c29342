"""No log, result, note or other origin shows a secret. Each secret is a canary with its own word."""

import asyncio
import io
import re
from typing import Any

import msgspec
import pytest
from rich.console import Console

from fetchfleet import Fetch, InvalidFetchError, Outcome, Reason, Result
from fetchfleet.jobs.contract.entry import Entry, Hop
from fetchfleet.jobs.contract.fetch import encode
from fetchfleet.worker.cli import render
from fetchfleet.worker.http.httpx_engine import HttpxEngine
from fetchfleet.worker.inspect.explain import explain_fetch, explain_lane
from fetchfleet.worker.inspect.fleet_status import fleet_status
from fetchfleet.worker.observability import log
from fetchfleet.worker.policy.file import Policy
from tests.component.conftest import HOST, Start
from tools.one_worker import OneWorker
from tools.origin import behaviours
from tools.origin import server as o
from tools.origin.server import Origin

CANARY = re.compile(r"k4n4ry[a-z]+")
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "c4a4c4a4c4a4c4a4"
SECRETS: dict[str, Any] = {
    "headers": {
        "Authorization": "Bearer k4n4ryauthorization",
        "Cookie": "session=k4n4rycookie",
        "X-Api-Key": "k4n4ryheader",
    },
    "traceparent": f"00-{TRACE}-{PARENT}-01",
    "tracestate": "vendor=k4n4rytracestate",
}
OWN_QUERY = "/a?token=k4n4ryquery&k4n4rybare"
SECRET_PATH = "/b?access_token=k4n4rylocation&X-Amz-Signature=k4n4rylocation"
SECRET_FIELDS = [("Set-Cookie", "session=k4n4rysetcookie"), ("X-Secret", "k4n4ryanswer")]
BODY = b"k4n4rybody"


def canaries(text: str) -> set[str]:
    """Return the canaries in the text."""
    return set(CANARY.findall(text.lower())) | ({PARENT} if PARENT in text else set())


def closed_url() -> str:
    """Return a URL whose port is closed."""
    return f"http://127.0.62.13:1{SECRET_PATH}"


ENDS: dict[str, tuple[o.Behaviour, Outcome, Reason | None]] = {
    "ok": (behaviours.ok(BODY, SECRET_FIELDS), Outcome.STORED, None),
    "404": (behaviours.status(404, SECRET_FIELDS, BODY), Outcome.FAILED, Reason.HTTP_STATUS),
    "500": (behaviours.status(500, SECRET_FIELDS, BODY), Outcome.FAILED, Reason.HTTP_STATUS),
    "reset": (behaviours.reset, Outcome.FAILED, Reason.READ),
    "truncated": (behaviours.truncated(BODY, 100), Outcome.FAILED, Reason.TRUNCATED),
    "garbage": (
        behaviours.garbage(
            b"HTTP/1.1 200 OK\r\nSet-Cookie: k4n4rysetcookie\r\nContent-Length: k4n4rybody\r\n\r\n"
        ),
        Outcome.FAILED,
        Reason.PROTOCOL,
    ),
    "within": (
        behaviours.by_path(
            {"/a": behaviours.redirect(SECRET_PATH), "/b": behaviours.ok(BODY, SECRET_FIELDS)}
        ),
        Outcome.STORED,
        None,
    ),
    "userinfo": (
        behaviours.redirect("http://k4n4ryuser:k4n4rypassword@127.0.62.13/"),
        Outcome.FAILED,
        Reason.REDIRECT_REFUSED,
    ),
    "scheme": (
        behaviours.redirect("ftp://u:k4n4rypassword@x/?k4n4ryx"),
        Outcome.FAILED,
        Reason.REDIRECT_REFUSED,
    ),
    "closed": (behaviours.redirect(closed_url()), Outcome.FAILED, Reason.CONNECT),
    "forbidden": (
        behaviours.redirect(f"http://10.0.0.1{SECRET_PATH}"),
        Outcome.FAILED,
        Reason.EGRESS_REFUSED,
    ),
}


async def start_at_debug_level(start: Start, stream: io.StringIO) -> OneWorker:
    """Start a worker at debug level that sends the trace context to the first host only."""
    log.configure(stream, level="debug")
    return await start(log_level="debug", policy={"attempts": 2}, hosts={HOST: {"context": True}})


async def shown_of(worker: OneWorker, result: Result, stream: io.StringIO) -> str:
    """Return all output about the fetch, except the caller's own URL in its result."""
    redis = worker.runtime.redis
    screen = io.StringIO()
    console = Console(file=screen, width=500)
    led = None if result.final_url == result.url else result.final_url
    own = msgspec.structs.replace(result, url="", final_url=led)
    lane = await explain_lane(redis, Policy(), HOST)
    explained = await explain_fetch(redis, Policy(), result.id)
    assert explained.result == result
    letters = [letter async for letter in worker.fleet.dead.iter()]
    console.print(render.status_of(status := await fleet_status(redis)), render.dead_of(letters))
    notes = [letter.note for letter in letters]
    shown = [encode(own), msgspec.structs.replace(explained, result=own), lane, status, notes]
    await worker.stop()
    return "".join([screen.getvalue(), render.result_line(result), *map(str, shown), stream.getvalue()])


@pytest.mark.parametrize("how", ENDS)
async def test_no_secret_is_shown_however_a_fetch_ends(
    how: str, origin: Origin, start: Start, stream: io.StringIO
) -> None:
    """The output is debug logs, results, notes of dead letters, explain and status."""
    worker = await start_at_debug_level(start, stream)
    origin.behaviour, outcome, reason = ENDS[how]

    result = await worker.one(origin.url(OWN_QUERY), deadline_s=20, **SECRETS)
    shown = await shown_of(worker, result, stream)

    assert (result.outcome, result.reason) == (outcome, reason)
    assert canaries(shown) == set()
    assert "fetch.finished" in shown
    assert TRACE in shown
    assert ("fetch.exchange" in shown) == (how not in {"reset", "garbage"})
    assert "k4n4ryauthorization" in str(origin.requests[0].headers)


@pytest.mark.parametrize(
    "answer",
    [
        behaviours.ok(BODY, SECRET_FIELDS),
        behaviours.NOT_FOUND,
        behaviours.reset,
        behaviours.redirect(SECRET_PATH),
    ],
    ids=["ok", "404", "reset", "loop"],
)
async def test_i25_another_origin_receives_no_secret_of_the_first(
    answer: o.Behaviour, origin: Origin, other: Origin, start: Start, stream: io.StringIO
) -> None:
    """It receives only the Location of the first, whose secrets the output does not show either."""
    worker = await start_at_debug_level(start, stream)
    origin.behaviour = behaviours.redirect(other.url(SECRET_PATH))
    other.behaviour = answer

    result = await worker.one(origin.url(OWN_QUERY), **SECRETS)
    shown = await shown_of(worker, result, stream)

    assert other.requests
    assert {canary for seen in other.requests for canary in canaries(str(seen))} == {"k4n4rylocation"}
    assert all(TRACE not in str(seen) for seen in other.requests)
    assert canaries(shown) == set()
    assert result.final_url == other.url("/b?access_token=***&X-Amz-Signature=***")


async def test_a_failed_handshake_shows_no_secret(origin: Origin, start: Start, stream: io.StringIO) -> None:
    """The other end does not use TLS."""
    worker = await start_at_debug_level(start, stream)

    def send_plain(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(BODY * 100)
        writer.close()

    async with await asyncio.start_server(send_plain, "127.0.62.14", 0) as server:
        port = server.sockets[0].getsockname()[1]
        origin.behaviour = behaviours.redirect(f"https://127.0.62.14:{port}{SECRET_PATH}")
        result = await worker.one(origin.url(OWN_QUERY), **SECRETS)

    assert result.reason is Reason.TLS
    assert canaries(await shown_of(worker, result, stream)) == set()


async def test_an_internal_error_shows_no_secret(
    origin: Origin, start: Start, stream: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message of the error quotes the request."""

    def broken(_: HttpxEngine, request: Hop, *__: Any) -> None:
        raise RuntimeError(f"cannot send {request} to {request.url}")

    monkeypatch.setattr(HttpxEngine, "open", broken)
    worker = await start_at_debug_level(start, stream)

    result = await worker.one(origin.url(OWN_QUERY), **SECRETS)
    shown = await shown_of(worker, result, stream)

    assert result.reason is Reason.INTERNAL
    assert "cannot send <Hop GET" in shown
    assert canaries(shown) == set()


async def test_request_and_response_bodies_are_not_shown(
    origin: Origin, start: Start, stream: io.StringIO
) -> None:
    """The request is a PUT with a secret body, and the response a 500 with one."""
    worker = await start_at_debug_level(start, stream)
    origin.behaviour = behaviours.status(500, SECRET_FIELDS, BODY)

    result = await worker.one(origin.url(OWN_QUERY), method="PUT", body=BODY.decode(), **SECRETS)

    assert origin.requests[0].body == BODY
    assert canaries(await shown_of(worker, result, stream)) == set()


def test_no_rendering_of_a_request_shows_its_secrets() -> None:
    """Neither repr, str nor rich shows them, so debuggers and tracebacks do not either."""
    fetch = Fetch(url=f"http://a.example{OWN_QUERY}", method="PUT", body=BODY.decode(), **SECRETS)
    entry = Entry(id="0123456789abcdef-00000001", deadline_ms=0, fetch=fetch)
    moved = msgspec.structs.replace(
        entry, hop=Hop("GET", f"http://b.example{SECRET_PATH}", (("a", "k4n4ryhop"),))
    )
    garbled = Hop("GET", "http://u:k4n4ry@b.example:x/")
    things = [fetch, entry, entry.request, moved, moved.request, garbled]

    screen = io.StringIO()
    for thing in things:
        Console(file=screen, width=500).print(thing)

    assert canaries(screen.getvalue() + repr(things) + str(things)) == set()
    assert "http://a.example:80" in repr(fetch)
    assert "http://b.example:80" in repr(moved)


@pytest.mark.parametrize(
    "fields",
    [
        {"url": "http://k4n4ryuser:k4n4rypassword@a.example/"},
        {"url": "http://a.example:x/?token=k4n4ryquery"},
        {"url": "http://a.example/k4n4ry path"},
        {"headers": {"Authorization: Bearer k4n4ryauthorization": ""}},
        {"headers": {"Authorization": "k4n4ryauthorization\n"}},
        {"headers": {"Cookie": "k4n4rycookié"}},
        {"body": "k4n4rybody"},
        {"method": "POST", "body_base64": "k4n4rybody!"},
        {"etag": "k4n4ryetag"},
        {"sha256": "k4n4rydigest"},
        {"traceparent": f"00-{TRACE}-{PARENT}-k4n4rytrace"},
        {"traceparent": SECRETS["traceparent"], "tracestate": "k4n4rytracestate"},
    ],
    ids=lambda fields: next(reversed(fields)),
)
def test_the_error_of_an_invalid_fetch_quotes_no_secret(fields: dict[str, Any]) -> None:
    """The error goes to logs, dead letters and receipts."""
    with pytest.raises(InvalidFetchError) as caught:
        Fetch(**{"url": "http://a.example/", **fields})

    assert canaries(str(caught.value)) == set()
