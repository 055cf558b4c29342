"""Hosts that send too slowly, too much or without end: every fetch from them ends."""

import asyncio
import gzip
import itertools
import random
from collections.abc import Iterator

import pytest

from fetchfleet import Outcome, Reason
from fetchfleet.worker.http.http1.connection import MAX_UNREAD_BYTES
from fetchfleet.worker.policy.model import Timeouts
from fetchfleet.worker.sink.files.buffered_body import BufferedBody
from tests.component.conftest import Start
from tools.origin import behaviours as o
from tools.origin.server import Behaviour, Exchange, Origin

SHORT = Timeouts(connect_s=5, read_s=5, write_s=5, pool_s=5, total_s=1)
FLOOR = {"attempts": 1, "min_rate_bytes_per_s": 1000, "min_rate_window_s": 0.3}
DRIP = o.slow(b"x", 0.05, 100_000)
LONG = Timeouts(connect_s=5, read_s=5, write_s=5, pool_s=5, total_s=20)


def endless(first: bytes, pieces: Iterator[bytes], every_s: float) -> Behaviour:
    """Send the first bytes, then piece by piece, until the client closes the connection."""

    async def answer(x: Exchange) -> None:
        await x.raw(first)
        for piece in pieces:
            await asyncio.sleep(every_s)
            await x.raw(piece)

    return answer


async def test_a_trickle_is_given_up(origin: Origin, start: Start) -> None:
    """It is below the policy's minimum rate for a window, although no read times out."""
    worker = await start(policy=FLOOR)
    origin.behaviour = DRIP

    result = await worker.one(origin.url())

    assert (result.outcome, result.reason, result.status) == (Outcome.FAILED, Reason.TOO_SLOW, 200)
    assert not worker.files() | worker.parts()


async def test_a_trickle_is_retried(origin: Origin, start: Start) -> None:
    """A slow response may be a transient fault of its host."""
    worker = await start(policy={**FLOOR, "attempts": 2})
    origin.behaviour = o.sequence(DRIP, o.OK)

    result = await worker.one(origin.url())

    assert (result.outcome, result.attempts) == (Outcome.STORED, 2)


async def test_a_body_above_the_minimum_rate_is_stored(origin: Origin, start: Start) -> None:
    """The body takes several windows."""
    worker = await start(policy={**FLOOR, "min_rate_window_s": 0.1})
    origin.behaviour = o.slow(b"x" * 5000, 0.05, 10)

    result = await worker.one(origin.url())

    assert (result.outcome, result.bytes) == (Outcome.STORED, 50_000)


async def test_a_large_body_with_a_minimum_rate_is_received_into_blocks(
    origin: Origin, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not copied on its way to the file, like one without a minimum rate."""
    received, receive_buffer = [], BufferedBody.receive_buffer

    def counted(body: BufferedBody) -> memoryview | None:
        received.append(body)
        return receive_buffer(body)

    monkeypatch.setattr(BufferedBody, "receive_buffer", counted)
    worker = await start(policy=FLOOR)
    origin.behaviour = big = o.big(4 << 20)

    result = await worker.one(origin.url())

    assert (result.outcome, result.sha256) == (Outcome.STORED, big.sha256)
    assert received


async def test_without_a_minimum_rate_a_drip_ends_at_the_total_timeout(origin: Origin, start: Start) -> None:
    """Single bytes keep no fetch alive beyond the policy's `total_s`."""
    worker = await start(policy={"attempts": 1, "timeout": SHORT})
    origin.behaviour = DRIP

    result = await worker.one(origin.url())

    assert (result.outcome, result.reason) == (Outcome.FAILED, Reason.TOTAL_TIMEOUT)
    assert not worker.files() | worker.parts()


async def test_a_drip_ends_at_the_deadline_of_its_fetch(origin: Origin, start: Start) -> None:
    """The policy's timeouts would allow more time."""
    worker = await start()
    origin.behaviour = DRIP

    result = await worker.one(origin.url(), deadline_s=1.0)

    assert (result.outcome, result.reason) == (Outcome.FAILED, Reason.DEADLINE)


LINE = b"HTTP/1.1 200 OK\r\n"
GZIPPED = [("Content-Encoding", "gzip")]
EARLY = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (o.garbage(LINE + b"X: " + b"x" * 200_000 + b"\r\n\r\n"), Reason.PROTOCOL),
        (o.garbage(LINE + b"X: y\r\n" * 34_000 + b"\r\n"), Reason.PROTOCOL),
        (endless(LINE, itertools.repeat(b"X: y\r\n" * 2000), 0.001), Reason.PROTOCOL),
        (endless(LINE + b"X: ", itertools.repeat(b"x" * 12_000), 0.001), Reason.PROTOCOL),
        (endless(LINE, itertools.repeat(b"X: y\r\n"), 0.05), Reason.TOTAL_TIMEOUT),
        (endless(b"", itertools.repeat(EARLY), 0.05), Reason.TOTAL_TIMEOUT),
        (endless(b"", itertools.repeat(EARLY * 1000), 0), Reason.PROTOCOL),
    ],
    ids=[
        "a field of 200 kB",
        "fields of 200 kB",
        "endless fields",
        "an endless field",
        "slow fields",
        "slow 1xx",
        "1xx without pause",
    ],
)
async def test_an_endless_response_header_is_given_up(
    origin: Origin, other: Origin, start: Start, answer: Behaviour, reason: Reason
) -> None:
    """A large header fails by its size, a slow one by the total timeout. Other hosts are served meanwhile."""
    timeout = SHORT if reason is Reason.TOTAL_TIMEOUT else LONG
    worker = await start(policy={"attempts": 1, "timeout": timeout})
    origin.behaviour = answer

    results = await worker.run([origin.url("/bad"), *(other.url(f"/{n}") for n in range(5))])

    bad = results.pop(origin.url("/bad"))
    assert (bad.outcome, bad.reason) == (Outcome.FAILED, reason)
    assert {result.outcome for result in results.values()} == {Outcome.STORED}


@pytest.mark.parametrize("size_bytes", [90_000, 0])
async def test_a_large_header_after_interim_responses_is_accepted(
    origin: Origin, start: Start, size_bytes: int
) -> None:
    """Each request on a connection has the whole allowance."""
    x = b"X: " + b"x" * size_bytes

    async def answer(exchange: Exchange) -> None:
        await exchange.raw(EARLY * 50)
        await exchange.raw(LINE + x + b"\r\nContent-Length: 300000\r\n\r\n" + b"x" * 300_000)

    origin.behaviour = answer
    worker = await start(policy={"concurrency": 1})
    results = await worker.results([origin.url(f"/{n}") for n in range(4)])

    assert [(result.outcome, result.bytes) for result in results] == [(Outcome.STORED, 300_000)] * 4
    assert origin.connections_opened == 1


def until_it_closes(body: bytes) -> Behaviour:
    """Send a body that the end of its connection ends."""

    async def answer(x: Exchange) -> None:
        await x.raw(LINE + b"Connection: close\r\n\r\n" + body)
        x.close()

    return answer


@pytest.mark.parametrize(
    ("answer", "fields"),
    [
        (o.chunked([b"x" * 64_000] * 100), {}),
        (until_it_closes(b"x" * 6_400_000), {}),
        (o.ok(gzip.compress(random.Random(1).randbytes(6_400_000)), GZIPPED), {"decode": True}),
        (o.ok(gzip.compress(b"x" * 6_400_000), GZIPPED), {"decode": True}),
        (o.chunked([b"1234567890\n" * 6000] * 100), {"lines": True}),
    ],
    ids=["chunked", "until it closes", "decoded", "decoded a bomb", "lines"],
)
async def test_at_most_two_chunks_beyond_max_bytes_are_received(
    origin: Origin, start: Start, answer: Behaviour, fields: dict[str, bool]
) -> None:
    """Further bytes are neither read nor decoded."""
    worker = await start()
    origin.behaviour = answer

    result = await worker.one(origin.url(), max_bytes=200_000, **fields)

    assert result.reason is Reason.TOO_LARGE
    received_bytes = worker.runtime.services.sink.disk.received_bytes
    assert received_bytes <= 200_000 + 2 * MAX_UNREAD_BYTES
    assert received_bytes > 200_000 or "decode" in fields  # compressed bytes have a separate limit
    assert not worker.files() | worker.parts()
