"""One fetch: the request as given, the body byte for byte, and a result that matches both."""

import gzip
import hashlib
from typing import Any

import pytest

from fetchfleet import Outcome, Reason
from tools.one_worker import OneWorker
from tools.origin import behaviours as o
from tools.origin.server import Behaviour, Origin

ZERO_BYTES_SHA256 = hashlib.sha256(b"").hexdigest()


@pytest.mark.parametrize(
    ("behaviour", "body"),
    [
        (o.ok(bytes(range(256))), bytes(range(256))),
        (o.ok(b""), b""),
        (o.status(204), b""),
        (o.chunked([b"one ", b"two ", b"x" * 100]), b"one two " + b"x" * 100),
        (o.ok(gzip.compress(b"as sent"), [("Content-Encoding", "gzip")]), gzip.compress(b"as sent")),
        (o.unframed, b"until the end"),
    ],
    ids=["plain", "empty", "204", "chunked", "gzip", "no-length"],
)
async def test_a_body_is_stored_byte_for_byte(
    origin: Origin, worker: OneWorker, behaviour: Behaviour, body: bytes
) -> None:
    """The result has its path, size and digest. A content coding is not decoded."""
    origin.behaviour = behaviour

    result = await worker.one(origin.url("/a"))

    assert (result.outcome, result.reason, result.attempts) == (Outcome.STORED, None, 1)
    assert worker.body(result) == body
    assert (result.bytes, result.sha256) == (len(body), hashlib.sha256(body).hexdigest())
    assert worker.files() == {result.path}
    assert not worker.parts()


async def test_a_large_body_is_stored_byte_for_byte(origin: Origin, worker: OneWorker) -> None:
    """It arrives in many blocks."""
    behaviour = o.big(5_000_001)
    origin.behaviour = behaviour

    result = await worker.one(origin.url())

    assert (result.bytes, result.sha256) == (5_000_001, behaviour.sha256)
    assert hashlib.sha256(worker.body(result)).hexdigest() == behaviour.sha256


async def test_a_206_to_a_range_request_is_stored(origin: Origin, worker: OneWorker) -> None:
    """The caller sent the Range header."""
    origin.behaviour = o.status(206, body=b"part")

    result = await worker.one(origin.url(), headers={"Range": "bytes=0-3"})

    assert (result.outcome, result.status, worker.body(result)) == (Outcome.STORED, 206, b"part")


async def test_a_206_without_a_range_request_is_a_protocol_error(origin: Origin, worker: OneWorker) -> None:
    """A part of the body must not be stored as the whole."""
    origin.behaviour = o.status(206, body=b"part")

    result = await worker.one(origin.url())

    assert (result.outcome, result.reason, result.path) == (Outcome.FAILED, Reason.PROTOCOL, None)
    assert not worker.files() | worker.parts()


async def test_a_head_request_stores_no_file(origin: Origin, worker: OneWorker) -> None:
    """The outcome is `stored`, with a status and without a path."""
    result = await worker.one(origin.url(), method="HEAD")

    assert [seen.method for seen in origin.requests] == ["HEAD"]
    assert (result.outcome, result.status, result.path) == (Outcome.STORED, 200, None)
    assert not worker.files()


async def test_a_request_arrives_as_given(origin: Origin, worker: OneWorker) -> None:
    """Method, target, headers and body are those of the caller, to the byte."""
    body = '{"name": "Zoë"}'
    headers = {"X-Api-Key": "k", "Content-Type": "application/json"}

    await worker.one(origin.url("/a%20b?q=1&q=2"), method="POST", headers=headers, body=body)

    [seen] = origin.requests
    assert (seen.method, seen.target, seen.body) == ("POST", "/a%20b?q=1&q=2", body.encode())
    assert Origin.header(seen, "X-Api-Key") == "k"
    assert Origin.header(seen, "Content-Type") == "application/json"


async def test_a_request_has_a_user_agent_and_accepts_no_content_coding(
    origin: Origin, worker: OneWorker
) -> None:
    """Accept-Encoding is `identity`, so the stored bytes are those of the resource."""
    await worker.one(origin.url())

    [seen] = origin.requests
    assert Origin.header(seen, "User-Agent") == worker.settings.user_agent
    assert Origin.header(seen, "Accept-Encoding") == "identity"
    assert [name for name, _ in seen.headers].count("user-agent") == 1


async def test_a_fetch_may_set_its_own_user_agent(origin: Origin, worker: OneWorker) -> None:
    """The header is sent once, with the value of the caller."""
    await worker.one(origin.url(), headers={"user-agent": "theirs"})

    [seen] = origin.requests
    assert [value for name, value in seen.headers if name == "user-agent"] == ["theirs"]


async def test_a_body_is_stored_at_its_dest(origin: Origin, worker: OneWorker) -> None:
    """Missing directories are created."""
    result = await worker.one(origin.url(), dest="a/b/c.bin")

    assert result.path == "a/b/c.bin"
    assert worker.files() == {"a/b/c.bin"}


async def test_a_new_body_replaces_the_file_at_its_dest(origin: Origin, worker: OneWorker) -> None:
    """A process that has the old file open still reads the old bytes."""
    origin.behaviour = o.sequence(o.ok(b"old"), o.ok(b"new"))
    await worker.one(origin.url(), dest="a.bin")

    with (worker.out / "a.bin").open("rb") as old:
        await worker.one(origin.url(), dest="a.bin")
        assert (old.read(), (worker.out / "a.bin").read_bytes()) == (b"old", b"new")


async def test_a_failed_fetch_keeps_the_old_file_at_its_dest(origin: Origin, worker: OneWorker) -> None:
    """The new body is truncated."""
    origin.behaviour = o.sequence(o.ok(b"old"), o.truncated(b"ne", 3))
    await worker.one(origin.url(), dest="a.bin")

    result = await worker.one(origin.url(), dest="a.bin")

    assert result.reason is Reason.TRUNCATED
    assert (worker.out / "a.bin").read_bytes() == b"old"


async def test_a_body_with_the_right_digest_is_stored(origin: Origin, worker: OneWorker) -> None:
    """The hexadecimal digits may be in upper case."""
    result = await worker.one(origin.url(), sha256=hashlib.sha256(b"ok").hexdigest().upper())

    assert result.outcome is Outcome.STORED


async def test_a_body_with_the_wrong_digest_is_not_stored(origin: Origin, worker: OneWorker) -> None:
    """No file and no partial file remain."""
    result = await worker.one(origin.url(), sha256=ZERO_BYTES_SHA256)

    assert (result.outcome, result.reason) == (Outcome.FAILED, Reason.DIGEST_MISMATCH)
    assert not worker.files() | worker.parts()


async def test_a_body_whose_content_length_exceeds_max_bytes_is_not_read(
    origin: Origin, worker: OneWorker
) -> None:
    """The fetch ends at once, after one request."""
    origin.behaviour = o.big(1 << 30)

    result = await worker.one(origin.url(), max_bytes=1000)

    assert (result.reason, result.attempts, len(origin.requests)) == (Reason.TOO_LARGE, 1, 1)
    assert not worker.files() | worker.parts()


async def test_a_body_without_a_length_is_cut_off_at_max_bytes(origin: Origin, worker: OneWorker) -> None:
    """Its bytes are counted as they arrive."""
    origin.behaviour = o.chunked([b"x" * 600] * 2000)

    result = await worker.one(origin.url(), max_bytes=700_000)

    assert (result.reason, result.attempts, len(origin.requests)) == (Reason.TOO_LARGE, 1, 1)
    assert not worker.files() | worker.parts()


async def test_a_body_of_exactly_max_bytes_is_stored(origin: Origin, worker: OneWorker) -> None:
    """The limit is inclusive."""
    result = await worker.one(origin.url(), max_bytes=2)

    assert (result.outcome, result.bytes) == (Outcome.STORED, 2)


async def test_the_policy_limits_bodies_too(origin: Origin, start: Any) -> None:
    """Its `max_bytes` applies to fetches without their own."""
    worker = await start(policy={"max_bytes": 1})

    assert (await worker.one(origin.url())).reason is Reason.TOO_LARGE


async def test_meta_is_in_the_result_and_not_in_the_request(origin: Origin, worker: OneWorker) -> None:
    """It may be any JSON value."""
    meta = {"row": 7, "tags": ["a", None]}

    result = await worker.one(origin.url(), meta=meta)

    assert result.meta == meta
    assert "row" not in repr(origin.requests)


async def test_a_result_has_consistent_timings(origin: Origin, worker: OneWorker) -> None:
    """Connecting ends before the first byte arrives, and the total includes all phases."""
    origin.behaviour = o.latency(0.05)

    timings = (await worker.one(origin.url())).timings

    assert timings.queue_ms is not None
    assert timings.total_ms is not None
    assert timings.connect_ms is not None
    assert timings.ttfb_ms is not None
    assert 0 < timings.connect_ms < timings.ttfb_ms
    assert 50 <= timings.ttfb_ms <= timings.total_ms
    assert timings.queue_ms + timings.ttfb_ms <= timings.total_ms + 2  # whole ms


async def test_a_result_names_its_fetch_and_its_worker(origin: Origin, worker: OneWorker) -> None:
    """Each result has its own ID, the URL of its fetch and the name of the worker."""
    urls = [origin.url(f"/{n}") for n in range(3)]

    results = await worker.results(urls)

    assert [result.url for result in results] == urls
    assert [result.final_url for result in results] == urls
    assert len({result.id for result in results}) == 3
    assert {result.worker for result in results} == {"one"}


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 418, 501])
async def test_a_4xx_or_501_ends_the_fetch(origin: Origin, worker: OneWorker, status: int) -> None:
    """These statuses are permanent, so the request is not repeated."""
    origin.behaviour = o.status(status, body=b"go away")

    result = await worker.one(origin.url())

    assert (result.outcome, result.reason) == (Outcome.FAILED, Reason.HTTP_STATUS)
    assert (result.status, result.attempts, len(origin.requests)) == (status, 1, 1)
    assert not worker.files() | worker.parts()


@pytest.mark.parametrize("header", ["If-None-Match", "if-modified-since"])
async def test_a_304_to_a_conditional_request_is_unchanged(
    origin: Origin, worker: OneWorker, header: str
) -> None:
    """The caller set the condition in a header."""
    origin.behaviour = o.status(304)

    result = await worker.one(origin.url(), headers={header: '"etag"'})

    assert (result.outcome, result.reason, result.status) == (Outcome.UNCHANGED, None, 304)
    assert result.path is None


async def test_a_304_to_an_unconditional_request_is_a_protocol_error(
    origin: Origin, worker: OneWorker
) -> None:
    """It has no body to store."""
    origin.behaviour = o.status(304)

    result = await worker.one(origin.url())

    assert (result.outcome, result.reason) == (Outcome.FAILED, Reason.PROTOCOL)


@pytest.mark.parametrize(
    "raw",
    [
        b"\x00\x01 not HTTP\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok!",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
    ],
    ids=["garbage", "two-framings", "two-lengths", "negative-length"],
)
async def test_a_malformed_response_is_not_stored(origin: Origin, worker: OneWorker, raw: bytes) -> None:
    """Ambiguous framing counts as malformed (RFC 9112 §6.3)."""
    origin.behaviour = o.garbage(raw)

    result = await worker.one(origin.url())

    assert (result.outcome, result.reason) == (Outcome.FAILED, Reason.PROTOCOL)
    assert not worker.files() | worker.parts()
