"""JSON Lines: bodies whose lines are checked as they stream."""

import gzip
import json
from typing import Any

import pytest

from fetchfleet import Outcome, Reason
from tests.component.conftest import Lines, Start
from tools.one_worker import OneWorker
from tools.origin import behaviours as o
from tools.origin.server import Behaviour, Exchange, Origin


def lines_of(count: int, **more: Any) -> bytes:
    """Return that many records, one a line."""
    return b"".join(json.dumps({"row": row, **more}).encode() + b"\n" for row in range(count))


async def until_the_end(x: Exchange) -> None:
    """Send a body that the end of the connection ends, in the middle of its last line."""
    await x.send_head(200)
    await x.send(b'{"a": 1}\n{"a": ')
    x.close()


@pytest.mark.parametrize(
    ("body", "count"),
    [
        (b"", 0),
        (b"1", 1),
        (b'{"a": 1}\r\n\r\n[2]\n\n', 2),
        (lines_of(3000), 3000),
        (lines_of(30_000, padding="x" * 30), 30_000),
    ],
    ids=["none", "no end", "crlf", "some", "many"],
)
async def test_records_are_counted(origin: Origin, worker: OneWorker, body: bytes, count: int) -> None:
    """The body is stored byte for byte."""
    origin.behaviour = o.ok(body)

    result = await worker.one(origin.url(), lines=True)

    assert (result.outcome, result.lines, result.bad_line) == (Outcome.STORED, count, None)
    assert worker.body(result) == body


async def test_records_are_not_counted_without_lines(origin: Origin, worker: OneWorker) -> None:
    """Even a body that is not JSON is stored."""
    origin.behaviour = o.ok(b"{")

    assert (await worker.one(origin.url())).lines is None


@pytest.mark.parametrize("place", [1, 7, 20_000])
async def test_a_bad_line_fails_the_fetch_and_is_named(
    origin: Origin, worker: OneWorker, lines: Lines, place: int
) -> None:
    """Result, log and dead letter have its number, and the fetch is not retried."""
    origin.behaviour = o.ok(lines_of(place - 1, padding="x" * 30) + b"oops\n" + lines_of(1000))

    result = await worker.one(origin.url(), lines=True)
    letters = [letter async for letter in worker.fleet.dead.iter()]

    assert (result.outcome, result.reason, result.bad_line) == (Outcome.FAILED, Reason.BAD_LINE, place)
    assert (result.attempts, len(origin.requests)) == (1, 1)
    assert [f"line {place}: is not JSON" in letter.note for letter in letters] == [True]
    assert any(f"line {place}: " in str(line.get("note")) for line in lines)
    assert not worker.files() | worker.parts()


async def test_a_line_that_is_too_long_is_bad(origin: Origin, start: Start) -> None:
    """The policy's `max_line_bytes` is the limit."""
    worker = await start(policy={"max_line_bytes": 1000})
    origin.behaviour = o.ok(b"1\n" + b'"' + b"x" * 999 + b'"')

    result = await worker.one(origin.url(), lines=True)

    assert (result.reason, result.bad_line) == (Reason.BAD_LINE, 2)


async def test_compressed_lines_are_checked_after_decoding(origin: Origin, worker: OneWorker) -> None:
    """Without `decode` a compressed body fails as `bad_encoding`."""
    origin.behaviour = o.ok(gzip.compress(lines_of(30_000)), [("Content-Encoding", "gzip")])

    result = await worker.one(origin.url(), lines=True, decode=True)
    refused = await worker.one(origin.url(), lines=True)

    assert (result.lines, worker.body(result)) == (30_000, lines_of(30_000))
    assert (refused.reason, refused.attempts) == (Reason.BAD_ENCODING, 1)


@pytest.mark.parametrize(
    "broken",
    [o.truncated(b'{"a": 1}\n{"a": ', 1000), o.cut_chunked(b'{"a": 1}\n{"a": '), until_the_end],
    ids=["length", "chunked", "connection"],
)
async def test_a_body_that_breaks_off_within_a_line_is_retried(
    origin: Origin, worker: OneWorker, broken: Behaviour
) -> None:
    """The incomplete line does not count as a bad one."""
    origin.behaviour = o.sequence(broken, o.ok(b'{"a": 1}\n{"a": 2}'))

    result = await worker.one(origin.url(), lines=True)

    assert (result.outcome, result.lines, result.attempts) == (Outcome.STORED, 2, 2)
