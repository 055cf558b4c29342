"""Compressed bodies: requested, decoded as they stream, and stored whole or not at all."""

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
from fetchfleet.worker.body import zstd
from fetchfleet.worker.body.pipeline import STEP_PIECES
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
    "two codings": ("gzip, br", brotli.compress(gzip.compress(BODY), quality=4)),
}


def encoded(coding: str, body: bytes) -> Behaviour:
    """Respond with the body under the coding."""
    return o.ok(body, [("Content-Encoding", coding)])


def chunked(coding: str, body: bytes, size_bytes: int = 1000) -> Behaviour:
    """Respond with the body under the coding, in many small pieces."""

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
    """Size, `sha256` and `max_bytes` apply to the decoded bytes."""
    origin.behaviour = answer(*ENCODED[name])
    sha256 = hashlib.sha256(BODY).hexdigest()

    result = await worker.one(origin.url(), decode=True, sha256=sha256, max_bytes=len(BODY))

    assert (result.outcome, result.reason, result.attempts) == (Outcome.STORED, None, 1)
    assert (result.bytes, result.sha256, result.content_encoding) == (len(BODY), sha256, None)
    assert worker.body(result) == BODY
    assert not worker.parts()


async def test_accept_encoding_lists_the_supported_codings(origin: Origin, worker: OneWorker) -> None:
    """Requests list them only with `decode`, also after a redirect, unless the caller sets the field."""
    origin.behaviour = o.by_path({"/from": o.redirect("/to")}, otherwise=o.OK)

    await worker.one(origin.url("/from"), decode=True)
    await worker.one(origin.url("/"), decode=True, headers={"accept-encoding": "br"})
    await worker.one(origin.url("/"))

    accepted = [Origin.header(seen, "Accept-Encoding") for seen in origin.requests]
    assert accepted == ["gzip, deflate, br, zstd"] * 2 + ["br", "identity"]
    assert all([name for name, _ in seen.headers].count("accept-encoding") == 1 for seen in origin.requests)


@pytest.mark.parametrize("second", ["gzip", "br"])
async def test_a_second_large_decoder_window_waits_for_the_first(
    origin: Origin, start: Start, second: str
) -> None:
    """Meanwhile only gzip and deflate are accepted. A response that uses br anyway is interrupted."""
    worker = await start(timings=tuned(decoder_pause_s=0.02))
    may_end = asyncio.Event()
    (_, br), (_, gzipped) = ENCODED["br"], ENCODED["gzip"]

    async def first(x: Exchange) -> None:
        await x.send_head(200, [("Content-Encoding", "br"), ("Content-Length", str(len(br)))])
        await x.send(br[:1000])
        await may_end.wait()
        await x.send(br[1000:])

    then = encoded("gzip", gzipped) if second == "gzip" else encoded("br", br)
    origin.behaviour = o.by_path({"/first": first, "/second": then})
    batch = await worker.submit([Fetch(url=origin.url("/first"), decode=True)])
    await wait_until(lambda: origin.requests, "the first body")
    later = await worker.submit([Fetch(url=origin.url("/second"), decode=True)])
    await wait_until(
        lambda: len(origin.requests) > (1 if second == "gzip" else 2), "the second request, or its retry"
    )
    may_end.set()

    [one, other] = [*await results_of(batch), *await results_of(later)]

    assert [worker.body(one), worker.body(other)] == [BODY, BODY]
    accepted = [Origin.header(seen, "Accept-Encoding") for seen in origin.requests]
    assert accepted[:2] == ["gzip, deflate, br, zstd", "gzip, deflate"]
    assert (other.attempts, other.interruptions > 0) == (1, second == "br")
    await worker.one(origin.url("/second"), decode=True)
    assert Origin.header(origin.requests[-1], "Accept-Encoding") == "gzip, deflate, br, zstd"


async def test_a_body_that_is_not_compressed_is_stored_as_it_is(origin: Origin, worker: OneWorker) -> None:
    """A host need not compress a response."""
    result = await worker.one(origin.url(), decode=True)

    assert (worker.body(result), result.content_encoding) == (b"ok", None)


async def test_a_compressed_body_without_decode_is_stored_as_sent(origin: Origin, worker: OneWorker) -> None:
    """The result's `content_encoding` names the coding."""
    origin.behaviour = encoded("GZip", gzip.compress(b"body"))

    result = await worker.one(origin.url())

    assert (result.outcome, result.content_encoding) == (Outcome.STORED, "gzip")
    assert gzip.decompress(worker.body(result)) == b"body"


@pytest.mark.parametrize("length", [("Content-Length", "0"), ("X-No", "length")], ids=["200", "204"])
async def test_a_response_without_a_body_may_name_a_coding(
    origin: Origin, worker: OneWorker, length: tuple[str, str]
) -> None:
    """Its empty body is stored without decoding."""

    async def nothing(x: Exchange) -> None:
        await x.send_head(200 if length[1] == "0" else 204, [("Content-Encoding", "gzip"), length])

    origin.behaviour = nothing

    result = await worker.one(origin.url(), decode=True)

    assert (result.outcome, result.bytes) == (Outcome.STORED, 0)


async def until_closed(x: Exchange) -> None:
    """Respond with an empty body that the end of the connection ends."""
    await x.send_head(200, [("Content-Encoding", "gzip")])
    x.close()


async def test_an_empty_body_is_whole_in_every_coding(origin: Origin, worker: OneWorker) -> None:
    """Only the body that the end of the connection ends is unverified."""
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


async def test_an_unknown_coding_name_is_reported_and_not_decoded(origin: Origin, worker: OneWorker) -> None:
    """Known codings beside it are decoded, and the result's `content_encoding` has the rest."""
    codings = {
        "/charset": ("UTF-8", "utf-8"),
        "/none": ("none", "none"),
        "/identity": ("identity", None),
        "/empty": ("", None),
        "/type": ("text/html", "text/html"),
        "/control": ("a\tb", "a?b"),
        "/long": ("x" * 200, "x" * 100),
    }
    plain = {path: encoded(header, b"body") for path, (header, _) in codings.items()}
    mixed = encoded("gzip, utf-8", gzip.compress(b"body"))
    origin.behaviour = o.by_path({**plain, "/mixed": mixed})

    results = await worker.results(Fetch(url=origin.url(path), decode=True) for path in (*codings, "/mixed"))
    as_sent = await worker.one(origin.url("/mixed"))

    assert {worker.body(result) for result in results} == {b"body"}
    assert [result.content_encoding for result in results] == [
        *(shown for _, shown in codings.values()),
        "utf-8",
    ]
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
    ids=[
        "cut",
        "no trailer",
        "no bytes",
        "cut zstd",
        "wrong crc",
        "junk after",
        "not gzip",
        "unsupported",
        "three codings",
        "bomb",
    ],
)
async def test_a_body_that_cannot_be_decoded_is_never_stored(
    origin: Origin, start: Start, behaviour: Behaviour, reason: Reason, attempts: int
) -> None:
    """Errors that may come from transit are retried. Unsupported codings and bombs are not."""
    worker = await start(policy={"attempts": 2})
    origin.behaviour = behaviour

    result = await worker.one(origin.url(), decode=True)

    assert (result.outcome, result.reason, result.path) == (Outcome.FAILED, reason, None)
    assert (result.attempts, len(origin.requests)) == (attempts, attempts)
    assert not worker.files() | worker.parts()


async def test_max_bytes_applies_to_the_decoded_body(origin: Origin, worker: OneWorker) -> None:
    """Bytes beyond it are neither read nor decoded."""
    origin.behaviour = encoded("gzip", PACKED)

    result = await worker.one(origin.url(), decode=True, max_bytes=len(BODY) - 1)

    assert (result.reason, result.attempts) == (Reason.TOO_LARGE, 1)
    assert not worker.files() | worker.parts()


async def test_a_body_that_decodes_to_no_bytes_is_capped(origin: Origin, worker: OneWorker) -> None:
    """A host can send empty deflate blocks without end."""
    nothing = zlib.compress(b"")[:2] + b"\0\0\0\xff\xff" * 40_000
    origin.behaviour = chunked("deflate", nothing, 20_000)

    result = await worker.one(origin.url(), decode=True, max_bytes=1000)

    assert result.reason is Reason.TOO_LARGE


async def test_a_body_of_tiny_members_is_decoded_in_small_steps(
    origin: Origin, worker: OneWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each gzip member costs a decoder, so the event loop decodes only a few of a small chunk."""
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


async def test_a_body_of_empty_gzip_members_is_given_up(origin: Origin, worker: OneWorker) -> None:
    """A host can send them without end, and each costs a decoder."""
    origin.behaviour = chunked("gzip", gzip.compress(b"") * 10_000, 20_000)

    result = await worker.one(origin.url(), decode=True)

    assert result.reason is Reason.BAD_ENCODING
    assert not worker.files() | worker.parts()


DIGESTS = {
    "content": ("Content-Digest", True, Outcome.STORED),
    "wrong content": ("Content-Digest", False, Outcome.FAILED),
    "representation": ("Repr-Digest", True, Outcome.STORED),
    "wrong representation": ("Repr-Digest", False, Outcome.FAILED),
}


@pytest.mark.parametrize("chunk_bytes", [1000, 200_000], ids=["small", "large"])
@pytest.mark.parametrize("name", DIGESTS)
async def test_a_hosts_digest_covers_the_compressed_bytes(
    origin: Origin, start: Start, name: str, chunk_bytes: int
) -> None:
    """RFC 9530 defines both fields so. A decoded body is checked too."""
    header, right, outcome = DIGESTS[name]
    coded = gzip.compress(BODY)
    digest = hashlib.sha256(coded if right else BODY).digest()
    value = f"sha-256=:{base64.b64encode(digest).decode()}:"
    worker = await start(policy={"attempts": 1})

    async def answer(x: Exchange) -> None:
        headers = [("Content-Encoding", "gzip"), (header, value), ("Content-Length", str(len(coded)))]
        await x.send_head(200, headers)
        for at in range(0, len(coded), chunk_bytes):
            await x.send(coded[at : at + chunk_bytes])

    origin.behaviour = answer
    result = await worker.one(origin.url(), decode=True, sha256=hashlib.sha256(BODY).hexdigest())

    assert result.outcome is outcome
    assert result.reason is (None if right else Reason.DIGEST_MISMATCH)
    assert not worker.parts()


async def test_the_policy_sets_the_decode_ratio(origin: Origin, start: Start) -> None:
    """The default is too low for very repetitive bodies."""
    worker = await start(policy={"max_decode_ratio": 2000})
    origin.behaviour = encoded("gzip", gzip.compress(bytes(3_000_000)))

    result = await worker.one(origin.url(), decode=True)

    assert (result.outcome, result.bytes) == (Outcome.STORED, 3_000_000)


async def test_a_truncated_compressed_body_is_retried(origin: Origin, worker: OneWorker) -> None:
    """Content-Length counts the bytes on the wire."""

    async def broken(x: Exchange) -> None:
        await x.send_head(200, [("Content-Encoding", "gzip"), ("Content-Length", str(len(PACKED)))])
        await x.send(PACKED[:-100])
        x.close()

    origin.behaviour = o.sequence(broken, encoded("gzip", PACKED))

    result = await worker.one(origin.url(), decode=True)

    assert (result.outcome, result.attempts, worker.body(result)) == (Outcome.STORED, 2, BODY)


async def test_a_worker_that_stops_in_a_compressed_body_leaves_no_file(origin: Origin, start: Start) -> None:
    """The decoded bytes are dropped, and the fetch waits for another worker."""
    worker = await start(grace_s=0.05)

    async def stuck(x: Exchange) -> None:
        await x.send_head(200, [("Content-Encoding", "gzip"), ("Content-Length", str(len(PACKED)))])
        await x.send(PACKED[:-1])
        await asyncio.Event().wait()

    origin.behaviour = stuck
    batch = await worker.submit([Fetch(url=origin.url(), decode=True)])
    await wait_until(worker.parts, "a part of the body on disk")
    await worker.stop()

    assert (await batch.counts()).done == 0
    assert not worker.files() | worker.parts()
