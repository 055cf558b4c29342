"""What one fetch brings: the request as given, the body byte for byte, a result true to both."""

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
async def test_a_body_is_kept_byte_for_byte(
    origin: Origin, worker: OneWorker, behaviour: Behaviour, body: bytes
) -> None:
    """What the host sent is at the result's path, with its size and digest; nothing else is there."""
    origin.behaviour = behaviour

    result = await worker.one(origin.url("/a"))

    assert (result.outcome, result.reason, result.attempts) == (Outcome.STORED, None, 1)
    assert worker.body(result) == body
    assert (result.bytes, result.sha256) == (len(body), hashlib.sha256(body).hexdigest())
    assert worker.files() == {result.path}
    assert not worker.parts()


async def test_a_large_body_is_kept_byte_for_byte(origin: Origin, worker: OneWorker) -> None:
    """A body of many blocks arrives as one."""
    behaviour = o.big(5_000_001)
    origin.behaviour = behaviour

    result = await worker.one(origin.url())

    assert (result.bytes, result.sha256) == (5_000_001, behaviour.sha256)
    assert hashlib.sha256(worker.body(result)).hexdigest() == behaviour.sha256


async def test_a_part_that_was_asked_for_is_kept(origin: Origin, worker: OneWorker) -> None:
    """A 206 answers a Range, and only a Range."""
    origin.behaviour = o.status(206, body=b"part")

    result = await worker.one(origin.url(), headers={"Range": "bytes=0-3"})

    assert (result.outcome, result.status, worker.body(result)) == (Outcome.STORED, 206, b"part")


async def test_a_part_that_nobody_asked_for_is_not_a_body(origin: Origin, worker: OneWorker) -> None:
    """A 206 without a Range would pass off a piece as the whole."""
    origin.behaviour = o.status(206, body=b"part")

    result = await worker.one(origin.url())

    assert (result.outcome, result.reason, result.path) == (Outcome.FAILED, Reason.PROTOCOL, None)
    assert not worker.files() | worker.parts()


async def test_a_head_has_no_body(origin: Origin, worker: OneWorker) -> None:
    """HEAD ends well, with a status and no file."""
    result = await worker.one(origin.url(), method="HEAD")

    assert [seen.method for seen in origin.requests] == ["HEAD"]
    assert (result.outcome, result.status, result.path) == (Outcome.STORED, 200, None)
    assert not worker.files()


async def test_a_request_arrives_as_given(origin: Origin, worker: OneWorker) -> None:
    """Method, target, headers and body are the producer's, to the byte."""
    body = '{"name": "Zoë"}'
    headers = {"X-Api-Key": "k", "Content-Type": "application/json"}

    await worker.one(origin.url("/a%20b?q=1&q=2"), method="POST", headers=headers, body=body)

    [seen] = origin.requests
    assert (seen.method, seen.target, seen.body) == ("POST", "/a%20b?q=1&q=2", body.encode())
    assert Origin.header(seen, "X-Api-Key") == "k"
    assert Origin.header(seen, "Content-Type") == "application/json"


async def test_the_worker_says_who_it_is_and_takes_bodies_as_they_are(
    origin: Origin, worker: OneWorker
) -> None:
    """A User-Agent goes with every request, and no compression is asked for."""
    await worker.one(origin.url())

    [seen] = origin.requests
    assert Origin.header(seen, "User-Agent") == worker.settings.user_agent
    assert Origin.header(seen, "Accept-Encoding") == "identity"
    assert [name for name, _ in seen.headers].count("user-agent") == 1


async def test_a_fetch_may_say_who_it_is_itself(origin: Origin, worker: OneWorker) -> None:
    """The producer's header takes the place of ours."""
    await worker.one(origin.url(), headers={"user-agent": "theirs"})

    [seen] = origin.requests
    assert [value for name, value in seen.headers if name == "user-agent"] == ["theirs"]


async def test_a_dest_is_honoured(origin: Origin, worker: OneWorker) -> None:
    """The body goes where the producer wants it, folders made on the way."""
    result = await worker.one(origin.url(), dest="a/b/c.bin")

    assert result.path == "a/b/c.bin"
    assert worker.files() == {"a/b/c.bin"}


async def test_a_dest_is_replaced_whole(origin: Origin, worker: OneWorker) -> None:
    """Whoever has the old file open keeps the old bytes: a new file takes its name."""
    origin.behaviour = o.sequence(o.ok(b"old"), o.ok(b"new"))
    await worker.one(origin.url(), dest="a.bin")

    with (worker.out / "a.bin").open("rb") as old:
        await worker.one(origin.url(), dest="a.bin")
        assert (old.read(), (worker.out / "a.bin").read_bytes()) == (b"old", b"new")


async def test_a_failed_fetch_leaves_the_old_dest_alone(origin: Origin, worker: OneWorker) -> None:
    """What stood at the dest stays there when no new body comes whole."""
    origin.behaviour = o.sequence(o.ok(b"old"), o.truncated(b"ne", 3))
    await worker.one(origin.url(), dest="a.bin")

    result = await worker.one(origin.url(), dest="a.bin")

    assert result.reason is Reason.TRUNCATED
    assert (worker.out / "a.bin").read_bytes() == b"old"


async def test_a_body_with_the_right_digest_is_kept(origin: Origin, worker: OneWorker) -> None:
    """The producer's sha256 is held against the body, in either case of its digits."""
    result = await worker.one(origin.url(), sha256=hashlib.sha256(b"ok").hexdigest().upper())

    assert result.outcome is Outcome.STORED


async def test_a_body_with_the_wrong_digest_is_not_kept(origin: Origin, worker: OneWorker) -> None:
    """A body that is not the one the producer named never gets a name."""
    result = await worker.one(origin.url(), sha256=ZERO_BYTES_SHA256)

    assert (result.outcome, result.reason) == (Outcome.FAILED, Reason.DIGEST_MISMATCH)
    assert not worker.files() | worker.parts()


async def test_a_body_that_says_it_is_too_large_is_not_read(origin: Origin, worker: OneWorker) -> None:
    """Content-Length above max_bytes ends the fetch at once, after one request."""
    origin.behaviour = o.big(1 << 30)

    result = await worker.one(origin.url(), max_bytes=1000)

    assert (result.reason, result.attempts, len(origin.requests)) == (Reason.TOO_LARGE, 1, 1)
    assert not worker.files() | worker.parts()


async def test_a_body_that_turns_out_too_large_is_cut_off(origin: Origin, worker: OneWorker) -> None:
    """Without a Content-Length the bytes are counted as they come."""
    origin.behaviour = o.chunked([b"x" * 600] * 2000)

    result = await worker.one(origin.url(), max_bytes=700_000)

    assert (result.reason, result.attempts, len(origin.requests)) == (Reason.TOO_LARGE, 1, 1)
    assert not worker.files() | worker.parts()


async def test_a_body_of_exactly_max_bytes_is_kept(origin: Origin, worker: OneWorker) -> None:
    """The bound itself is allowed."""
    result = await worker.one(origin.url(), max_bytes=2)

    assert (result.outcome, result.bytes) == (Outcome.STORED, 2)


async def test_the_policy_bounds_bodies_too(origin: Origin, start: Any) -> None:
    """Without max_bytes of its own a fetch is held to the policy's."""
    worker = await start(policy={"max_bytes": 1})

    assert (await worker.one(origin.url())).reason is Reason.TOO_LARGE


async def test_meta_comes_back_and_is_never_sent(origin: Origin, worker: OneWorker) -> None:
    """Any JSON travels from the fetch to its result."""
    meta = {"row": 7, "tags": ["a", None]}

    result = await worker.one(origin.url(), meta=meta)

    assert result.meta == meta
    assert "row" not in repr(origin.requests)


async def test_a_result_says_where_the_time_went(origin: Origin, worker: OneWorker) -> None:
    """Every timing is there, and they add up."""
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
    """A batch's results carry the ids and URLs of its fetches, each once."""
    urls = [origin.url(f"/{n}") for n in range(3)]

    results = await worker.results(urls)

    assert [result.url for result in results] == urls
    assert [result.final_url for result in results] == urls
    assert len({result.id for result in results}) == 3
    assert {result.worker for result in results} == {"one"}


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 418, 501])
async def test_a_refusal_ends_the_fetch(origin: Origin, worker: OneWorker, status: int) -> None:
    """A status that would be the same next time is not asked for twice."""
    origin.behaviour = o.status(status, body=b"go away")

    result = await worker.one(origin.url())

    assert (result.outcome, result.reason) == (Outcome.FAILED, Reason.HTTP_STATUS)
    assert (result.status, result.attempts, len(origin.requests)) == (status, 1, 1)
    assert not worker.files() | worker.parts()


@pytest.mark.parametrize("header", ["If-None-Match", "if-modified-since"])
async def test_not_modified_is_unchanged(origin: Origin, worker: OneWorker, header: str) -> None:
    """A 304 to a conditional request is an outcome of its own."""
    origin.behaviour = o.status(304)

    result = await worker.one(origin.url(), headers={header: '"etag"'})

    assert (result.outcome, result.reason, result.status) == (Outcome.UNCHANGED, None, 304)
    assert result.path is None


async def test_not_modified_without_a_condition_is_nonsense(origin: Origin, worker: OneWorker) -> None:
    """A 304 that nobody asked for brings no body, and is no success."""
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
async def test_what_is_not_http_is_no_body(origin: Origin, worker: OneWorker, raw: bytes) -> None:
    """An answer that breaks the protocol is never kept."""
    origin.behaviour = o.garbage(raw)

    result = await worker.one(origin.url())

    assert (result.outcome, result.reason) == (Outcome.FAILED, Reason.PROTOCOL)
    assert not worker.files() | worker.parts()
