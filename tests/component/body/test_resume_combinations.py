"""Resuming combined with lines, decoding, conditions, digests and durability."""

import base64
import gzip
import hashlib
from typing import Any

import pytest

from fetchfleet import Outcome
from tests.component.conftest import Start
from tests.support.range_server import RangedBody, range_of
from tools.one_worker import OneWorker
from tools.origin.server import Origin

LINES = b"".join(b'{"number": %d, "of": "%s"}\n' % (number, b"x" * 80) for number in range(15_000))
BREAK = 1_000_000
ETAG = ("ETag", '"one"')


def digest_of(body: bytes) -> tuple[str, str]:
    """Return the Repr-Digest of the body."""
    return "Repr-Digest", f"sha-256=:{base64.b64encode(hashlib.sha256(body).digest()).decode()}:"


@pytest.mark.parametrize("fields", [{"lines": True}, {"decode": True}, {"lines": True, "decode": True}])
async def test_a_body_with_lines_or_decode_is_not_resumed(
    origin: Origin, worker: OneWorker, fields: dict[str, Any]
) -> None:
    """The state of the line check and of the decoder is not saved with a partial file."""
    origin.behaviour = RangedBody(LINES, [ETAG], [BREAK])

    result = await worker.one(origin.url(), **fields)

    assert (Outcome.STORED, 2, None) == (result.outcome, result.attempts, range_of(origin.requests[1]))
    assert worker.body(result) == LINES
    assert result.lines == (15_000 if "lines" in fields else None)
    assert not worker.parts()


async def test_a_repr_digest_of_a_compressed_body_covers_the_compressed_bytes(
    origin: Origin, worker: OneWorker
) -> None:
    """The caller's sha256 covers the decoded bytes."""
    compressed = gzip.compress(LINES)
    origin.behaviour = RangedBody(compressed, [ETAG, ("Content-Encoding", "gzip"), digest_of(compressed)])

    result = await worker.one(origin.url(), decode=True, lines=True, sha256=hashlib.sha256(LINES).hexdigest())

    assert (Outcome.STORED, 15_000, False) == (result.outcome, result.lines, result.unverified)
    assert worker.body(result) == LINES


async def test_a_conditional_fetch_is_resumed_with_its_condition(origin: Origin, worker: OneWorker) -> None:
    """The caller's If-None-Match is evaluated before the range (RFC 9110 §13.2.2)."""
    origin.behaviour = RangedBody(LINES, [ETAG, digest_of(LINES)], [BREAK])

    result = await worker.one(origin.url(), etag='"zero"')

    assert [None, f"bytes={BREAK}-"] == [range_of(seen) for seen in origin.requests]
    assert ['"zero"'] * 2 == [Origin.header(seen, "If-None-Match") for seen in origin.requests]
    assert (Outcome.STORED, '"one"') == (result.outcome, result.etag)
    assert worker.body(result) == LINES


async def test_a_resumed_body_is_stored_with_full_durability(origin: Origin, start: Start) -> None:
    """With `if_exists=fail` it does not replace a file, and its partial file is removed."""
    worker = await start(policy={"durability": "full"})
    origin.behaviour = RangedBody(LINES, [ETAG], [BREAK])
    (first,) = await worker.results([{"url": origin.url(), "dest": "there"}])
    origin.behaviour = RangedBody(LINES, [ETAG], [BREAK])
    (second,) = await worker.results([{"url": origin.url(), "dest": "there", "if_exists": "fail"}])

    assert (Outcome.STORED, 206) == (first.outcome, first.status)
    assert (Outcome.FAILED, "exists") == (second.outcome, second.reason)
    assert worker.body(first) == LINES
    assert not worker.parts()
