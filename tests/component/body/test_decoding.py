"""Compressed bodies: asked for, decoded as they stream, and stored whole and plain or not at all."""

import asyncio
import base64
import gzip
import hashlib
import os
import threading
import zlib
from typing import Any

import brotli
import pytest

from fetchfleet import Fetch, Outcome, Reason
from fetchfleet.worker.body.pipeline import STEP_PIECES
from fetchfleet.worker.util import zstd
from tests.component.conftest import Start, tuned
from tests.support.waiting import wait_until
from tools.one_worker import OneWorker, results_of
from tools.origin import behaviours as o
from tools.origin.server import Behaviour, Exchange, Headers, Origin

BODY = os.urandom(100_000) + bytes(900_000)
HALF = BODY[: len(BODY) // 2]

ENCODED = {
    "gzip": ("gzip", gzip.compress(BODY)),
    "two members": ("gzip", gzip.compress(HALF) + gzip.compress(BODY[len(HALF) :])),
    "deflate": ("deflate", zlib.compress(BODY)),
    "br": ("br", brotli.compress(BODY, quality=4)),
    "zstd": ("zstd", zstd.compress(BODY)),
    "two over one another": ("gzip, br", brotli.compress(gzip.compress(BODY), quality=4)),
}


def encoded(coding: str, body: bytes) -> Behaviour:
    """Answers with the body, and names its coding."""
    return o.ok(body, [("Content-Encoding", coding)])


def chunked(coding: str, body: bytes, size_bytes: int = 1000) -> Behaviour:
    """Answers with the body in many small pieces."""

    async def answer(x: Exchange) -> None:
        headers: Headers = [("Content-Encoding", coding), ("Transfer-Encoding", "chunked")]
        await x.send_head(200, headers)
        for at in range(0, len(body), size_bytes):
            piece = body[at : at + size_bytes]
            await x.send(b"%x\r\n%b\r\n" % (len(piece), piece))
        await x.send(b"0\r\n\r\n")

    return answer


@pytest.mark.parametrize("answer", [encoded, chunked])
@pytest.mark.parametrize("name", ENCODED)
async def test_a_compressed_body_is_stored_decoded(
    origin: Origin, worker: OneWorker, name: str, answer: Any
) -> None:
    """Size and digest are of what is on disk, the caller's digest too, and its cap holds to the byte."""
    origin.behaviour = answer(*ENCODED[name])
    sha256 = hashlib.sha256(BODY).hexdigest()

    result = await worker.one(origin.url(), decode=True, sha256=sha256, max_bytes=len(BODY))

    assert (result.outcome, result.reason, result.attempts) == (Outcome.STORED, None, 1)
    assert (result.bytes, result.sha256, result.content_encoding) == (len(BODY), sha256, None)
    assert worker.body(result) == BODY
    assert not worker.parts()


async def test_what_can_be_decoded_is_asked_for(origin: Origin, worker: OneWorker) -> None:
    """Only where the fetch wants it, and not over the caller's own word; redirects change nothing."""
    origin.behaviour = o.by_path({"/from": o.redirect("/to")}, otherwise=o.OK)

    await worker.one(origin.url("/from"), decode=True)
    await worker.one(origin.url("/"), decode=True, headers={"accept-encoding": "br"})
    await worker.one(origin.url("/"))

    asked = [Origin.header(seen, "Accept-Encoding") for seen in origin.requests]
    assert asked == ["gzip, deflate, br, zstd"] * 2 + ["br", "identity"]
    assert all([name for name, _ in seen.headers].count("accept-encoding") == 1 for seen in origin.requests)


@pytest.mark.parametrize("second", ["honest", "heedless"])
async def test_large_windows_are_few(origin: Origin, start: Start, second: str) -> None:
    """While a body has one the next is asked for in what needs none; one that needs it all the same waits."""
    worker = await start(timings=tuned(decoder_pause_s=0.02))
    may_end = asyncio.Event()
    (_, br), (_, gzipped) = ENCODED["br"], ENCODED["gzip"]

    async def first(x: Exchange) -> None:
        await x.send_head(200, [("Content-Encoding", "br"), ("Content-Length", str(len(br)))])
        await x.send(br[:1000])
        await may_end.wait()
        await x.send(br[1000:])

    then = encoded("gzip", gzipped) if second == "honest" else encoded("br", br)
    origin.behaviour = o.by_path({"/first": first, "/second": then})
    batch = await worker.submit([Fetch(url=origin.url("/first"), decode=True)])
    await wait_until(lambda: origin.requests, "the first body")
    later = await worker.submit([Fetch(url=origin.url("/second"), decode=True)])
    await wait_until(
        lambda: len(origin.requests) > (1 if second == "honest" else 2), "the second, once or twice"
    )
    may_end.set()

    [one, other] = [*await results_of(batch), *await results_of(later)]

    assert [worker.body(one), worker.body(other)] == [BODY, BODY]
    asked = [Origin.header(seen, "Accept-Encoding") for seen in origin.requests]
    assert asked[:2] == ["gzip, deflate, br, zstd", "gzip, deflate"]
    assert (other.attempts, other.interruptions > 0) == (1, second == "heedless")
    await worker.one(origin.url("/second"), decode=True)
    assert Origin.header(origin.requests[-1], "Accept-Encoding") == "gzip, deflate, br, zstd"


async def test_a_body_that_is_not_compressed_is_stored_as_it_is(origin: Origin, worker: OneWorker) -> None:
    """Hosts are free not to compress."""
    result = await worker.one(origin.url(), decode=True)

    assert (worker.body(result), result.content_encoding) == (b"ok", None)


async def test_a_body_that_nobody_asked_to_be_compressed_is_stored_as_sent(
    origin: Origin, worker: OneWorker
) -> None:
    """And the result says how to read it."""
    origin.behaviour = encoded("GZip", gzip.compress(b"body"))

    result = await worker.one(origin.url())

    assert (result.outcome, result.content_encoding) == (Outcome.STORED, "gzip")
    assert gzip.decompress(worker.body(result)) == b"body"


@pytest.mark.parametrize("length", [("Content-Length", "0"), ("X-No", "length")], ids=["200", "204"])
async def test_nothing_needs_no_decoding(origin: Origin, worker: OneWorker, length: tuple[str, str]) -> None:
    """An answer that says it has no body may name a coding all the same."""

    async def nothing(x: Exchange) -> None:
        await x.send_head(200 if length[1] == "0" else 204, [("Content-Encoding", "gzip"), length])

    origin.behaviour = nothing

    result = await worker.one(origin.url(), decode=True)

    assert (result.outcome, result.bytes) == (Outcome.STORED, 0)


async def until_closed(x: Exchange) -> None:
    """Answers with an empty body that only the end of the connection ends."""
    await x.send_head(200, [("Content-Encoding", "gzip")])
    x.close()


async def test_an_empty_body_is_whole_in_every_coding(origin: Origin, worker: OneWorker) -> None:
    """However its end is marked; only the end of the connection leaves it unverified."""
    codings = ["gzip", "x-gzip", "deflate", "br", "zstd", "gzip, br", "deflate, zstd"]
    origin.behaviour = o.by_path(
        {
            "/close": until_closed,
            "/inside": encoded("zstd, gzip", gzip.compress(b"")),
            **{f"/{at}c": chunked(coding, b"") for at, coding in enumerate(codings)},
            **{f"/{at}l": encoded(coding, b"") for at, coding in enumerate(codings)},
        }
    )
    paths = ["/close", "/inside", *(f"/{at}{way}" for at in range(len(codings)) for way in "cl")]

    results = [await worker.one(origin.url(path), decode=True) for path in paths]

    assert {(result.outcome, result.bytes, result.attempts) for result in results} == {(Outcome.STORED, 0, 1)}
    assert [path for path, result in zip(paths, results, strict=True) if result.unverified] == ["/close"]
    assert {worker.body(result) for result in results} == {b""}


async def test_a_name_that_is_no_coding_is_told_and_not_decoded(origin: Origin, worker: OneWorker) -> None:
    """The body is stored as it came, but for what is a coding."""
    said = {
        "/charset": ("UTF-8", "utf-8"),
        "/none": ("none", "none"),
        "/identity": ("identity", None),
        "/empty": ("", None),
        "/type": ("text/html", "text/html"),
        "/control": ("a\tb", "a?b"),
        "/long": ("x" * 200, "x" * 100),
    }
    plain = {path: encoded(header, b"body") for path, (header, _) in said.items()}
    mixed = encoded("gzip, utf-8", gzip.compress(b"body"))
    origin.behaviour = o.by_path({**plain, "/mixed": mixed})

    results = await worker.results(Fetch(url=origin.url(path), decode=True) for path in (*said, "/mixed"))
    as_sent = await worker.one(origin.url("/mixed"))

    assert {worker.body(result) for result in results} == {b"body"}
    assert [result.content_encoding for result in results] == [*(told for _, told in said.values()), "utf-8"]
    assert as_sent.content_encoding == "gzip, utf-8"


PACKED = gzip.compress(BODY)


@pytest.mark.parametrize(
    ("behaviour", "reason", "attempts"),
    [
        (encoded("gzip", PACKED[:-9]), Reason.TRUNCATED, 2),
        (encoded("gzip", PACKED[:-8]), Reason.TRUNCATED, 2),
        (o.truncated(b"", 20, [("Content-Encoding", "gzip")]), Reason.TRUNCATED, 2),
        (encoded("zstd", zstd.compress(BODY)[:-1]), Reason.TRUNCATED, 2),
        (encoded("gzip", PACKED[:-8] + b"\0" * 8), Reason.BAD_ENCODING, 2),
        (encoded("gzip", PACKED + b"junk"), Reason.BAD_ENCODING, 2),
        (encoded("gzip", b"<html>"), Reason.BAD_ENCODING, 2),
        (encoded("compress", b"\x1f\x9d"), Reason.BAD_ENCODING, 1),
        (encoded("gzip, gzip, gzip", PACKED), Reason.BAD_ENCODING, 1),
        (encoded("gzip", gzip.compress(bytes(30_000_000))), Reason.TOO_LARGE, 1),
    ],
    ids=["cut", "no trailer", "no byte", "cut zstd", "crc", "more", "plain", "unknown", "three", "bomb"],
)
async def test_what_cannot_be_decoded_is_never_stored(
    origin: Origin, start: Start, behaviour: Behaviour, reason: Reason, attempts: int
) -> None:
    """What may have gone wrong on the way is tried again, what would be the same next time is not."""
    worker = await start(policy={"attempts": 2})
    origin.behaviour = behaviour

    result = await worker.one(origin.url(), decode=True)

    assert (result.outcome, result.reason, result.path) == (Outcome.FAILED, reason, None)
    assert (result.attempts, len(origin.requests)) == (attempts, attempts)
    assert not worker.files() | worker.parts()


async def test_a_body_is_capped_as_it_is_decoded(origin: Origin, worker: OneWorker) -> None:
    """max_bytes is of what would be on disk; the rest is neither read nor decoded."""
    origin.behaviour = encoded("gzip", PACKED)

    result = await worker.one(origin.url(), decode=True, max_bytes=len(BODY) - 1)

    assert (result.reason, result.attempts) == (Reason.TOO_LARGE, 1)
    assert not worker.files() | worker.parts()


async def test_what_decodes_to_nothing_is_capped_too(origin: Origin, worker: OneWorker) -> None:
    """Blocks without content could come for ever."""
    nothing = zlib.compress(b"")[:2] + b"\0\0\0\xff\xff" * 40_000
    origin.behaviour = chunked("deflate", nothing, 20_000)

    result = await worker.one(origin.url(), decode=True, max_bytes=1000)

    assert result.reason is Reason.TOO_LARGE


async def test_a_body_of_tiny_members_is_decoded_in_small_steps(
    origin: Origin, worker: OneWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each member costs more than its bytes say: of a chunk, however small, few are decoded on the loop."""
    record = os.urandom(15)
    member = gzip.compress(record)
    times = 16_384 // len(member)
    chunk = member * times
    made: list[int] = []
    make = zlib.decompressobj

    def counted(*how: Any) -> Any:
        if threading.current_thread() is threading.main_thread():
            made.append(1)
        return make(*how)

    monkeypatch.setattr(zlib, "decompressobj", counted)
    origin.behaviour = chunked("gzip", chunk, len(chunk))

    result = await worker.one(origin.url(), decode=True)

    assert worker.body(result) == record * times
    assert len(made) <= STEP_PIECES + 1 < times


async def test_a_body_of_members_that_hold_nothing_is_given_up(origin: Origin, worker: OneWorker) -> None:
    """They could come for ever, too, and cost a decoder each."""
    origin.behaviour = chunked("gzip", gzip.compress(b"") * 10_000, 20_000)

    result = await worker.one(origin.url(), decode=True)

    assert result.reason is Reason.BAD_ENCODING
    assert not worker.files() | worker.parts()


DIGESTS = {
    "content": ("Content-Digest", True, Outcome.STORED),
    "another content": ("Content-Digest", False, Outcome.FAILED),
    "representation": ("Repr-Digest", True, Outcome.STORED),
    "another representation": ("Repr-Digest", False, Outcome.FAILED),
}


@pytest.mark.parametrize("chunk_bytes", [1000, 200_000], ids=["small", "large"])
@pytest.mark.parametrize("name", DIGESTS)
async def test_a_hosts_digest_is_of_what_was_coded(
    origin: Origin, start: Start, name: str, chunk_bytes: int
) -> None:
    """As RFC 9530 has it; a body that is decoded is held against it as any other."""
    header, right, outcome = DIGESTS[name]
    coded = gzip.compress(BODY)
    digest = hashlib.sha256(coded if right else BODY).digest()
    said = f"sha-256=:{base64.b64encode(digest).decode()}:"
    worker = await start(policy={"attempts": 1})

    async def answer(x: Exchange) -> None:
        told = [("Content-Encoding", "gzip"), (header, said), ("Content-Length", str(len(coded)))]
        await x.send_head(200, told)
        for at in range(0, len(coded), chunk_bytes):
            await x.send(coded[at : at + chunk_bytes])

    origin.behaviour = answer
    result = await worker.one(origin.url(), decode=True, sha256=hashlib.sha256(BODY).hexdigest())

    assert result.outcome is outcome
    assert result.reason is (None if right else Reason.DIGEST_MISMATCH)
    assert not worker.parts()


async def test_the_policy_says_how_much_a_body_may_grow(origin: Origin, start: Start) -> None:
    """A host of very dull bodies can be given more."""
    worker = await start(policy={"max_decode_ratio": 2000})
    origin.behaviour = encoded("gzip", gzip.compress(bytes(3_000_000)))

    result = await worker.one(origin.url(), decode=True)

    assert (result.outcome, result.bytes) == (Outcome.STORED, 3_000_000)


async def test_a_connection_that_breaks_in_a_compressed_body_is_tried_again(
    origin: Origin, worker: OneWorker
) -> None:
    """Content-Length counts the bytes on the wire."""

    async def broken(x: Exchange) -> None:
        await x.send_head(200, [("Content-Encoding", "gzip"), ("Content-Length", str(len(PACKED)))])
        await x.send(PACKED[:-100])
        x.close()

    origin.behaviour = o.sequence(broken, encoded("gzip", PACKED))

    result = await worker.one(origin.url(), decode=True)

    assert (result.outcome, result.attempts, worker.body(result)) == (Outcome.STORED, 2, BODY)


async def test_a_worker_that_stops_in_a_compressed_body_leaves_nothing(origin: Origin, start: Start) -> None:
    """What was decoded so far goes, and the fetch waits for another worker."""
    worker = await start(grace_s=0.05)

    async def stuck(x: Exchange) -> None:
        await x.send_head(200, [("Content-Encoding", "gzip"), ("Content-Length", str(len(PACKED)))])
        await x.send(PACKED[:-1])
        await asyncio.Event().wait()

    origin.behaviour = stuck
    batch = await worker.submit([Fetch(url=origin.url(), decode=True)])
    await wait_until(worker.parts, "some of it on disk")
    await worker.stop()

    assert (await batch.counts()).done == 0
    assert not worker.files() | worker.parts()
