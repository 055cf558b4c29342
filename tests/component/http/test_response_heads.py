"""Response heads as hosts send them: bytes of any encoding, fields sent twice, odd field lines."""

from fetchfleet import Outcome
from tests.component.conftest import Start
from tools.one_worker import OneWorker
from tools.origin import behaviours as o
from tools.origin.server import Headers, Origin

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


async def test_a_redirect_leads_where_a_browser_would_go(origin: Origin, worker: OneWorker) -> None:
    """By the bytes of its own Location, whatever the other fields are."""
    routes = {path: o.status(302, fields) for path, (fields, _) in LOCATIONS.items()}
    origin.behaviour = o.by_path({**routes, "/ok/": o.ok(str.encode)})

    results = await worker.results(origin.url(path) for path in LOCATIONS)

    assert {(result.outcome, result.attempts) for result in results} == {(Outcome.STORED, 1)}
    asked = {path: worker.body(result).decode() for path, result in zip(LOCATIONS, results, strict=True)}
    assert asked == {path: target for path, (_, target) in LOCATIONS.items()}


async def test_validators_that_differ_are_not_used(origin: Origin, start: Start) -> None:
    """Two ETags name no version; one that was sent twice does, and so does the first of two dates."""
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
