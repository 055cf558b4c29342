"""Integrity: a stored body matches its length and the digests of its host."""

import base64
import hashlib
from typing import Any

import pytest

from fetchfleet import Outcome, Reason, Result
from fetchfleet.worker.errors import BadAnswerError
from tests.component.conftest import Start
from tests.support.canned_responses import answer_of
from tests.support.range_server import RangedBody, body_of, range_of
from tools.one_worker import OneWorker
from tools.origin import behaviours as o
from tools.origin.server import Exchange, Header, Origin

BODY = body_of(1_500_000)
SMALL = b"until the end"


def digest_field(field: str, algorithm: str, body: bytes) -> Header:
    """Return the field with a digest of the body."""
    digest = hashlib.new(algorithm.replace("-", ""), body).digest()
    return field, f"{algorithm}=:{base64.b64encode(digest).decode()}:"


async def until_the_end_with_digest(x: Exchange) -> None:
    """Send a body that the end of the connection ends, with a digest."""
    await x.send_head(200, [digest_field("Repr-Digest", "sha-256", SMALL)])
    await x.send(SMALL)
    x.close()


@pytest.mark.parametrize("body", [BODY, SMALL], ids=["large", "small"])
@pytest.mark.parametrize("algorithm", ["sha-256", "sha-512"])
@pytest.mark.parametrize("field", ["Repr-Digest", "Content-Digest"])
async def test_a_body_with_a_matching_digest_is_stored(
    origin: Origin, worker: OneWorker, field: str, algorithm: str, body: bytes
) -> None:
    """The digest is in Repr-Digest or Content-Digest (RFC 9530)."""
    origin.behaviour = o.ok(body, [digest_field(field, algorithm, body)])

    result = await worker.one(origin.url())

    assert (result.outcome, result.attempts, worker.body(result)) == (Outcome.STORED, 1, body)


@pytest.mark.parametrize("algorithm", ["sha-256", "sha-512"])
@pytest.mark.parametrize("field", ["Repr-Digest", "Content-Digest"])
async def test_a_body_that_does_not_match_its_digest_is_not_stored(
    origin: Origin, start: Start, field: str, algorithm: str
) -> None:
    """Each attempt begins at zero, because any of the bytes may be wrong."""
    worker = await start(policy={"attempts": 2})
    origin.behaviour = o.ok(BODY, [digest_field(field, algorithm, SMALL), ("ETag", '"one"')])

    result = await worker.one(origin.url())

    assert (result.outcome, result.reason) == (Outcome.FAILED, Reason.DIGEST_MISMATCH)
    assert (result.attempts, {range_of(seen) for seen in origin.requests}) == (2, {None})
    assert not worker.files() | worker.parts()


async def test_a_body_that_matches_its_digest_on_retry_is_stored(origin: Origin, worker: OneWorker) -> None:
    """The first body was damaged in transit."""
    field = digest_field("Repr-Digest", "sha-256", BODY)
    damaged = o.ok(BODY[:-1] + b"x", [field])
    origin.behaviour = o.sequence(damaged, o.ok(BODY, [field]))

    result = await worker.one(origin.url())

    assert (result.outcome, result.attempts, worker.body(result)) == (Outcome.STORED, 2, BODY)


@pytest.mark.parametrize("algorithm", ["sha-256", "sha-512"])
async def test_a_resumed_body_is_checked_as_a_whole(
    origin: Origin, worker: OneWorker, algorithm: str
) -> None:
    """Repr-Digest covers the whole body. Content-Digest covers only the range, and is ignored."""
    headers = [("ETag", '"one"'), digest_field("Repr-Digest", algorithm, BODY)]
    rest = RangedBody(BODY, [*headers, digest_field("Content-Digest", "sha-256", b"the rest")])
    origin.behaviour = o.sequence(RangedBody(BODY, headers, [1_000_000]), rest)

    result = await worker.one(origin.url())

    assert (result.outcome, result.attempts, worker.body(result)) == (Outcome.STORED, 2, BODY)
    assert rest.sent_bytes == [500_000]


async def test_parts_of_two_bodies_with_one_etag_are_not_joined(origin: Origin, worker: OneWorker) -> None:
    """The digest does not match, so the body is fetched again from zero."""
    other = BODY[::-1]
    headers = [("ETag", '"one"'), digest_field("Repr-Digest", "sha-256", other)]
    origin.behaviour = o.sequence(RangedBody(BODY, breaks=[1_000_000]), RangedBody(other, headers))

    result = await worker.one(origin.url())

    assert (result.outcome, result.attempts, worker.body(result)) == (Outcome.STORED, 3, other)
    assert [range_of(seen) for seen in origin.requests] == [None, "bytes=1000000-", None]


@pytest.mark.parametrize(
    ("behaviour", "fields", "unverified"),
    [
        (o.unframed, {}, True),
        (o.unframed, {"sha256": hashlib.sha256(SMALL).hexdigest()}, False),
        (until_the_end_with_digest, {}, False),
        (o.ok(SMALL), {}, False),
        (o.chunked([SMALL]), {}, False),
        (o.status(204), {}, False),
        (o.ok(), {"method": "HEAD"}, False),
    ],
    ids=["end of connection", "sha256 of the caller", "digest", "length", "chunked", "204", "HEAD"],
)
async def test_a_body_without_length_or_digest_is_stored_as_unverified(
    origin: Origin,
    worker: OneWorker,
    behaviour: Any,
    fields: dict[str, Any],
    unverified: bool,  # noqa: FBT001
) -> None:
    """Only the end of the connection marks its end."""
    origin.behaviour = behaviour

    result = await worker.one(origin.url(), **fields)

    assert (result.outcome, result.unverified) == (Outcome.STORED, unverified)
    assert _has_size_and_digest(result)


def _has_size_and_digest(result: Result) -> bool:
    """Return True unless a result with a path lacks size or digest."""
    return result.path is None or (result.bytes is not None and result.sha256 is not None)


@pytest.mark.parametrize(
    ("values", "length"),
    [
        (["10"], 10),
        (["10", "10"], 10),
        (["10, 10"], 10),
        (["10", "11"], None),
        (["10,"], None),
        (["1_0"], None),
        (["+10"], None),
        (["\u0661"], None),
        (["9" * 5000], None),
    ],
)
def test_equal_content_lengths_count_as_one(values: list[str], length: int | None) -> None:
    """Any other list or number is a BadAnswerError. Over HTTP/2 no library has checked the field."""
    answer = answer_of(*((b"content-length", value.encode()) for value in values))

    if length is not None:
        assert answer.length_bytes == length
    else:
        with pytest.raises(BadAnswerError):
            _ = answer.length_bytes
