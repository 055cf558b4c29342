"""JSON Lines: bodies whose every line is checked as they stream."""

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
    """So many records, one a line."""
    return b"".join(json.dumps({"row": row, **more}).encode() + b"\n" for row in range(count))


async def until_the_end(x: Exchange) -> None:
    """A body that only the end of the connection ends, in the middle of its last line."""
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
    """The body itself is kept byte for byte."""
    origin.behaviour = o.ok(body)

    result = await worker.one(origin.url(), lines=True)

    assert (result.outcome, result.lines, result.bad_line) == (Outcome.STORED, count, None)
    assert worker.body(result) == body


async def test_records_are_counted_only_where_it_is_asked(origin: Origin, worker: OneWorker) -> None:
    """Any body will do for a fetch that did not ask."""
    origin.behaviour = o.ok(b"{")

    assert (await worker.one(origin.url())).lines is None


@pytest.mark.parametrize("place", [1, 7, 20_000])
async def test_a_bad_line_fails_the_fetch_and_is_named(
    origin: Origin, worker: OneWorker, lines: Lines, place: int
) -> None:
    """By its number, in the result, the log and the dead letter; it is not asked for again."""
    origin.behaviour = o.ok(lines_of(place - 1, padding="x" * 30) + b"oops\n" + lines_of(1000))

    result = await worker.one(origin.url(), lines=True)
    letters = [letter async for letter in worker.fleet.dead.iter()]

    assert (result.outcome, result.reason, result.bad_line) == (Outcome.FAILED, Reason.BAD_LINE, place)
    assert (result.attempts, len(origin.requests)) == (1, 1)
    assert [f"line {place}: is no JSON" in letter.note for letter in letters] == [True]
    assert any(f"line {place}: " in str(line.get("note")) for line in lines)
    assert not worker.files() | worker.parts()


async def test_a_line_that_is_too_long_is_bad(origin: Origin, start: Start) -> None:
    """The policy says how long."""
    worker = await start(policy={"max_line_bytes": 1000})
    origin.behaviour = o.ok(b"1\n" + b'"' + b"x" * 999 + b'"')

    result = await worker.one(origin.url(), lines=True)

    assert (result.reason, result.bad_line) == (Reason.BAD_LINE, 2)


async def test_compressed_lines_are_checked_decoded(origin: Origin, worker: OneWorker) -> None:
    """Both go together; without decode compressed lines are refused for what they are."""
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
async def test_a_body_that_breaks_off_in_a_line_is_tried_again(
    origin: Origin, worker: OneWorker, broken: Behaviour
) -> None:
    """A line that did not come whole is not a bad one."""
    origin.behaviour = o.sequence(broken, o.ok(b'{"a": 1}\n{"a": 2}'))

    result = await worker.one(origin.url(), lines=True)

    assert (result.outcome, result.lines, result.attempts) == (Outcome.STORED, 2, 2)
