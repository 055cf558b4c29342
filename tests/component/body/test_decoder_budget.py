"""Resuming, lines, decoding, conditions and digests do not get in each other's way."""

import base64
import gzip
import hashlib
from typing import Any

import pytest

from fetchfleet import Outcome
from tests.component.conftest import Start
from tests.support.ranged import Ranged, range_of
from tools.one_worker import OneWorker
from tools.origin.server import Origin

LINES = b"".join(b'{"number": %d, "of": "%s"}\n' % (number, b"x" * 80) for number in range(15_000))
BREAK = 1_000_000
ETAG = ("ETag", '"one"')


def digest_of(body: bytes) -> tuple[str, str]:
    """What a host says of the representation that it sends."""
    return "Repr-Digest", f"sha-256=:{base64.b64encode(hashlib.sha256(body).digest()).decode()}:"


@pytest.mark.parametrize("asked", [{"lines": True}, {"decode": True}, {"lines": True, "decode": True}])
async def test_what_is_looked_into_starts_again_from_its_beginning(
    origin: Origin, worker: OneWorker, asked: dict[str, Any]
) -> None:
    """Half of it would have been counted, or decoded, by somebody else."""
    origin.behaviour = Ranged(LINES, [ETAG], [BREAK])

    result = await worker.one(origin.url(), **asked)

    assert (Outcome.STORED, 2, None) == (result.outcome, result.attempts, range_of(origin.requests[1]))
    assert worker.body(result) == LINES
    assert result.lines == (15_000 if "lines" in asked else None)
    assert not worker.parts()


async def test_a_digest_of_the_coded_body_is_no_digest_of_the_decoded_one(
    origin: Origin, worker: OneWorker
) -> None:
    """Its host has said the truth."""
    packed = gzip.compress(LINES)
    origin.behaviour = Ranged(packed, [ETAG, ("Content-Encoding", "gzip"), digest_of(packed)])

    result = await worker.one(origin.url(), decode=True, lines=True, sha256=hashlib.sha256(LINES).hexdigest())

    assert (Outcome.STORED, 15_000, False) == (result.outcome, result.lines, result.unverified)
    assert worker.body(result) == LINES


async def test_a_conditional_fetch_that_breaks_off_goes_on(origin: Origin, worker: OneWorker) -> None:
    """The caller's condition comes first, also where the range has its own (RFC 9110 §13.2.2)."""
    origin.behaviour = Ranged(LINES, [ETAG, digest_of(LINES)], [BREAK])

    result = await worker.one(origin.url(), etag='"zero"')

    assert [None, f"bytes={BREAK}-"] == [range_of(seen) for seen in origin.requests]
    assert ['"zero"'] * 2 == [Origin.header(seen, "If-None-Match") for seen in origin.requests]
    assert (Outcome.STORED, '"one"') == (result.outcome, result.etag)
    assert worker.body(result) == LINES


async def test_a_resumed_body_is_as_durable_as_any(origin: Origin, start: Start) -> None:
    """Where a file stands already it is not replaced, and of the half nothing stays."""
    worker = await start(policy={"durability": "full"})
    origin.behaviour = Ranged(LINES, [ETAG], [BREAK])
    (first,) = await worker.results([{"url": origin.url(), "dest": "there"}])
    origin.behaviour = Ranged(LINES, [ETAG], [BREAK])
    (second,) = await worker.results([{"url": origin.url(), "dest": "there", "if_exists": "fail"}])

    assert (Outcome.STORED, 206) == (first.outcome, first.status)
    assert (Outcome.FAILED, "exists") == (second.outcome, second.reason)
    assert worker.body(first) == LINES
    assert not worker.parts()
