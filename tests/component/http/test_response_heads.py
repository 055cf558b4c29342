"""Response heads as hosts send them: bytes of any encoding, repeated fields, odd field lines."""

import asyncio

from fetchfleet import Outcome, Reason
from tests.component.conftest import Lines, Start, on_both_engines
from tests.component.http.test_hostile_responses import head, raw
from tools.one_worker import OneWorker
from tools.origin import behaviours as o
from tools.origin.server import Exchange, Headers, Origin

pytestmark = on_both_engines

LOCATIONS: dict[str, tuple[Headers, str]] = {
    "/latin": ([("Location", "/ok/caf\xe9")], "/ok/caf%E9"),
    "/utf-8": ([("Location", "/ok/\xd8\xa7"), ("X-Note", "caf\xe9")], "/ok/%D8%A7"),
    "/twice": ([("Location", "/ok/two"), ("Location", "/ok/two")], "/ok/two"),
    "/others": ([("Location", "/ok/first"), ("Location", "/ok/second")], "/ok/first"),
    "/tab": ([("Location", "/ok/a\tb")], "/ok/ab"),
    "/space": ([("Location", "/ok/a b")], "/ok/a%20b"),
    "/backslash": ([("Location", "\\ok\\back")], "/ok/back"),
    "/scheme": ([("Location", "http:/ok/scheme")], "/ok/scheme"),
    "/bracket": ([("Location", "/ok/[")], "/ok/["),
    "/fragment": ([("Location", "/ok/x#part")], "/ok/x"),
}
"""By path: the fields of a redirect, and the target that a browser would request."""


async def test_a_redirect_leads_to_the_target_that_a_browser_would_request(
    origin: Origin, worker: OneWorker
) -> None:
    """Only the bytes of its Location decide, not those of other fields."""
    routes = {path: o.status(302, fields) for path, (fields, _) in LOCATIONS.items()}
    origin.behaviour = o.by_path({**routes, "/ok/": o.ok(str.encode)})

    results = await worker.results(origin.url(path) for path in LOCATIONS)

    assert {(result.outcome, result.attempts) for result in results} == {(Outcome.STORED, 1)}
    asked = {path: worker.body(result).decode() for path, result in zip(LOCATIONS, results, strict=True)}
    assert asked == {path: target for path, (_, target) in LOCATIONS.items()}


async def test_etags_that_differ_are_not_used(origin: Origin, start: Start) -> None:
    """Equal ETags count as one, and the first of two dates counts. An ETag beyond ASCII is not used."""
    worker = await start(policy={"concurrency": 1})
    dates = [("Last-Modified", f"Tue, 0{day} Jan 2024 00:00:00 GMT") for day in (2, 9)]
    origin.behaviour = o.by_path(
        {
            "/differ": o.ok(b"a", [("ETag", '"1"'), ("ETag", '"2"'), *dates]),
            "/same": o.ok(b"b", [("ETag", '"1"'), ("ETag", '"1"')]),
            "/opaque": o.ok(b"c", [("ETag", '"caf\xe9"'), ("X-Note", "\xd8\xa7")]),
        }
    )

    differ, same, opaque = await worker.results(map(origin.url, ("/differ", "/same", "/opaque")))

    assert (differ.etag, differ.last_modified) == (None, dates[0][1])
    assert same.etag == '"1"'
    assert opaque.etag is None


CHUNKS = b"2\r\nok\r\n0\r\n\r\n"
TWICE = {
    "chunked twice": head("200 OK", "Transfer-Encoding: chunked", "Transfer-Encoding: chunked") + CHUNKS,
    "chunked twice in a list": head("200 OK", "Transfer-Encoding: chunked, chunked") + CHUNKS,
}
ODD = {
    "a space before a colon": head("200 OK", "X-A : b", "Content-Length: 2") + b"ok",
    "a space in a name": head("200 OK", "X A: b", "Content-Length: 2") + b"ok",
    "a line without a colon": head("200 OK", "Content-Length: 2", "odd") + b"ok",
    "a name beyond ASCII": head("200 OK", "X-\xe9: b", "Content-Length: 2") + b"ok",
    "a fold": head("200 OK", "X-A: b", "  c", "Content-Length: 2") + b"ok",
    "a control": head("200 OK", "X-A: b\vc", "Content-Length: 2") + b"ok",
    "empty lines before the head": b"\r\n\n\r\n" + head("200 OK", "Content-Length: 2") + b"ok",
    "an interim head": head("103 Early Hints", "Li nk: x") + head("200 OK", "Content-Length: 2") + b"ok",
}


async def test_an_odd_head_costs_the_connection_but_not_the_body(
    origin: Origin, start: Start, lines: Lines
) -> None:
    """The body is stored, the next request uses another connection, and the log line has `lenient`."""
    worker = await start(policy={"concurrency": 1, "attempts": 1})
    odd = TWICE | ODD
    origin.behaviour = o.sequence(*map(raw, odd.values()), o.OK)

    results = await worker.results(origin.url(f"/{n}") for n in range(len(odd) + 2))

    assert [result.reason for result in results] == [None] * len(results)
    assert {worker.body(result) for result in results} == {b"ok"}
    assert [seen.connection for seen in origin.requests] == [*range(1, len(odd) + 2), len(odd) + 1]
    told = {line["id"]: line.get("lenient") for line in lines if line["event"] == "fetch.finished"}
    assert [told[result.id] for result in results] == [True] * len(odd) + [None] * 2


async def test_odd_fields_keep_their_meaning(origin: Origin, start: Start) -> None:
    """A space before a colon hides no field, and a fold becomes a space. The head arrives byte by byte."""
    worker = await start(policy={"concurrency": 1})
    pieces = [head("302 Found", "Location : /ok", "X: a", " b", "Content-Length: 0")]
    pieces = [bytes([byte]) for byte in pieces[0]]

    async def slowly(x: Exchange) -> None:
        for piece in pieces:
            await x.raw(piece)
            await asyncio.sleep(0)

    origin.behaviour = o.by_path(
        {"/ok": raw(head("200 OK", 'ETag: "a', '  b"', "Content-Length: 0"))}, slowly
    )

    result = await worker.one(origin.url("/"))

    assert (result.outcome, result.final_url) == (Outcome.STORED, origin.url("/ok"))
    assert result.etag is None  # an entity tag has no space


async def test_an_odd_trailer_does_not_cost_the_body(origin: Origin, start: Start) -> None:
    """The body is complete before its trailers arrive."""
    worker = await start(policy={"concurrency": 1, "attempts": 1})
    origin.behaviour = raw(head("200 OK", "Transfer-Encoding: chunked") + b"2\r\nok\r\n0\r\nX A: b\r\n\r\n")

    result = await worker.one(origin.url())

    assert (result.outcome, result.reason) == (Outcome.STORED, None)


async def test_an_odd_line_that_frames_the_body_is_refused(origin: Origin, start: Start) -> None:
    """The fetch fails with `protocol`, and no body is stored."""
    worker = await start(policy={"attempts": 1})
    framed = [
        "Content-Length : 2",
        "Content -Length: 2",
        "Content-Length: 2\0",
        "Transfer-Encoding\t: chunked",
    ]
    origin.behaviour = o.sequence(*(raw(head("200 OK", line) + b"ok") for line in framed))

    results = await worker.results(origin.url(f"/{n}") for n in range(len(framed)))

    assert [result.reason for result in results] == [Reason.PROTOCOL] * len(framed)
    assert not worker.files()
