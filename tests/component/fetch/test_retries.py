"""Retries: which failures are retried, how often, and which requests never are."""

import asyncio
import socket

import pytest
from msgspec.structs import replace
from redis.asyncio import Redis

from fetchfleet import Outcome, Reason
from fetchfleet.jobs import keys
from fetchfleet.jobs.contract.entry import parse_entry
from fetchfleet.jobs.contract.urls import lane_of_url
from fetchfleet.worker.policy.model import Timeouts
from tests.component.conftest import HOST, Lines, Start, on_both_sinks
from tests.support.waiting import wait_until
from tools.one_worker import OneWorker, results_of
from tools.origin import behaviours as o
from tools.origin.server import Behaviour, Exchange, Origin

SHORT = Timeouts(connect_s=0.5, read_s=0.2, write_s=0.5, pool_s=0.5, total_s=5)


class Halfway:
    """A behaviour that sends half of a large body, waits for `go_on`, then runs `then`."""

    def __init__(self, then: Behaviour) -> None:
        self.is_halfway = asyncio.Event()
        self.go_on = asyncio.Event()
        self._then = then

    async def __call__(self, x: Exchange) -> None:
        """Send one response in two steps."""
        await x.send_head(200, [("Content-Length", str(2 << 20))])
        await x.send(b"x" * (1 << 20))
        self.is_halfway.set()
        await self.go_on.wait()
        await self._then(x)


async def hang_up(x: Exchange) -> None:
    """Close the connection before the end of the body."""
    x.close()


@pytest.mark.parametrize("status", [408, 425, 500, 502, 503, 504, 506, 520, 522, 524, 529, 599])
async def test_a_temporary_failure_is_retried(origin: Origin, worker: OneWorker, status: int) -> None:
    """Two failures and a success count as three attempts."""
    origin.behaviour = o.fail_times(2, status)

    result = await worker.one(origin.url())

    assert (result.outcome, result.status) == (Outcome.STORED, 200)
    assert (result.attempts, result.throttles, result.interruptions) == (3, 0, 0)
    assert len(origin.requests) == 3


async def test_the_policy_limits_the_attempts(origin: Origin, start: Start) -> None:
    """The result has the last status."""
    worker = await start(policy={"attempts": 3})
    origin.behaviour = o.status(500)

    result = await worker.one(origin.url())

    assert (result.outcome, result.reason) == (Outcome.FAILED, Reason.HTTP_STATUS)
    assert (result.status, result.attempts, len(origin.requests)) == (500, 3, 3)


async def test_a_refused_connection_is_retried(worker: OneWorker) -> None:
    """The default policy has five attempts."""
    with socket.socket() as unheard:
        unheard.bind((HOST, 0))
        result = await worker.one(f"http://{HOST}:{unheard.getsockname()[1]}/")

    assert (result.outcome, result.reason) == (Outcome.FAILED, Reason.CONNECT)
    assert (result.status, result.attempts) == (None, 5)


async def test_an_origin_that_comes_up_late_is_reached(start: Start) -> None:
    """Its port refuses connections at first."""
    worker = await start(policy={"attempts": 100, "breaker_failures": 1000})
    with socket.socket() as place:
        place.bind((HOST, 0))
        port = place.getsockname()[1]
    batch = await worker.submit([f"http://{HOST}:{port}/"])
    redis, later = worker.runtime.redis, keys.later(HOST)
    await wait_until(lambda: redis.exists(later), "a failed attempt", every_s=0.001)

    async with Origin.serving(HOST, o.OK, port):
        [result] = await results_of(batch)

    assert result.outcome is Outcome.STORED
    assert result.attempts > 1


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (o.truncated(b"half", 8), Reason.TRUNCATED),
        (o.cut_chunked(b"half"), Reason.TRUNCATED),
        (o.reset_after(10), Reason.READ),
        (o.reset, Reason.READ),
        (o.stall_headers(0), Reason.PROTOCOL),
        (o.garbage(b"\x00 not HTTP\r\n\r\n"), Reason.PROTOCOL),
    ],
    ids=["truncated", "cut-chunked", "reset-in-body", "reset", "no-response", "garbage"],
)
async def test_a_broken_response_is_retried(
    origin: Origin, worker: OneWorker, lines: Lines, broken: Behaviour, reason: Reason
) -> None:
    """The received bytes are discarded, and the stored body is that of the second response."""
    origin.behaviour = o.sequence(broken, o.ok(b"whole"))

    result = await worker.one(origin.url())

    assert (result.outcome, result.attempts) == (Outcome.STORED, 2)
    assert worker.body(result) == b"whole"
    assert worker.files() == {result.path}
    assert not worker.parts()
    assert [line["reason"] for line in lines if line["event"] == "fetch.retry"] == [reason]


@on_both_sinks
@pytest.mark.parametrize("break_off", [hang_up, o.reset], ids=["truncated", "reset"])
async def test_an_incomplete_body_never_has_the_final_name(
    origin: Origin, worker: OneWorker, break_off: Behaviour
) -> None:
    """It has none during the transfer and none after the connection broke."""
    halfway = Halfway(break_off)
    origin.behaviour = o.sequence(halfway, o.NOT_FOUND)
    batch = await worker.submit([origin.url()])

    await halfway.is_halfway.wait()
    await wait_until(worker.parts, "the first half on disk")
    assert not worker.files()
    halfway.go_on.set()
    [result] = await results_of(batch)

    assert (result.status, result.attempts) == (404, 2)
    assert not worker.files() | worker.parts()


async def test_a_host_that_sends_no_header_times_out(origin: Origin, start: Start) -> None:
    """The read timeout ends the attempt with its own reason, `first_byte_timeout`."""
    worker = await start(policy={"timeout": replace(SHORT, read_s=0.1), "attempts": 2})
    origin.behaviour = o.stall_headers(10)

    result = await worker.one(origin.url())

    assert (result.reason, result.attempts, len(origin.requests)) == (Reason.FIRST_BYTE_TIMEOUT, 2, 2)
    assert all(seen.aborted for seen in origin.requests)


async def test_a_host_that_stalls_within_a_body_times_out(origin: Origin, start: Start) -> None:
    """The read timeout applies between two pieces of the body."""
    worker = await start(policy={"timeout": replace(SHORT, read_s=0.1), "attempts": 1})
    origin.behaviour = Halfway(hang_up)

    result = await worker.one(origin.url())

    assert (result.reason, result.status, result.attempts) == (Reason.READ_TIMEOUT, 200, 1)
    assert not worker.files() | worker.parts()


async def test_a_slow_body_ends_at_the_total_timeout(origin: Origin, start: Start) -> None:
    """Each piece arrives within the read timeout."""
    worker = await start(policy={"timeout": replace(SHORT, total_s=0.3), "attempts": 1})
    origin.behaviour = o.slow(b"x", 0.02, 1000)

    result = await worker.one(origin.url())

    assert (result.reason, result.attempts) == (Reason.TOTAL_TIMEOUT, 1)
    assert result.note == "the body was not complete within 0.3 s (total_s)"
    assert not worker.files() | worker.parts()


async def test_the_deadline_of_a_fetch_ends_its_attempt(origin: Origin, worker: OneWorker) -> None:
    """No other attempt follows."""
    origin.behaviour = o.slow(b"x", 0.02, 1000)

    result = await worker.one(origin.url(), deadline_s=0.4)

    assert (result.outcome, result.reason, result.attempts) == (Outcome.FAILED, Reason.DEADLINE, 1)
    assert result.note == "the body was not complete by the deadline of the fetch"
    assert len(origin.requests) == 1


async def test_a_retry_waits_in_redis(origin: Origin, start: Start) -> None:
    """Between two attempts the fetch has no task and holds no lane."""
    worker = await start(policy={"retry_base_s": 3000, "retry_cap_s": 3000})
    origin.behaviour = o.status(500)
    await worker.submit([origin.url()])
    redis: Redis = worker.runtime.redis
    lane = lane_of_url(origin.url())

    [element] = await wait_until(lambda: redis.zrange(keys.later(lane), 0, -1), "the retry in Redis")
    await wait_until(lambda: not worker.runtime.lanes, "the lane to be released")

    entry = parse_entry(element)
    assert (entry.attempts, entry.last, entry.crashes) == (1, Reason.HTTP_STATUS, 0)
    assert not await redis.exists(keys.claimed(lane))
    assert await redis.hget(keys.lane(lane), "state") == b"scheduled"  # type: ignore[misc]
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith(("fetch ", "lane "))]


async def test_a_post_is_not_repeated(origin: Origin, worker: OneWorker) -> None:
    """After a 500 or a reset, the host may have processed it."""
    origin.behaviour = o.by_path({"/500": o.status(500), "/reset": o.reset})

    results = await worker.results(
        [{"url": origin.url(path), "method": "POST", "body": "x"} for path in ("/500", "/reset")]
    )

    assert [(r.reason, r.attempts) for r in results] == [(Reason.HTTP_STATUS, 1), (Reason.READ, 1)]
    assert len(origin.requests) == 2


@pytest.mark.parametrize(
    ("method", "headers"),
    [("POST", {"Idempotency-Key": "k"}), ("PATCH", {"idempotency-key": "k"}), ("PUT", {}), ("DELETE", {})],
    ids=["POST-keyed", "PATCH-keyed", "PUT", "DELETE"],
)
async def test_an_idempotent_request_is_repeated(
    origin: Origin, worker: OneWorker, method: str, headers: dict[str, str]
) -> None:
    """An Idempotency-Key makes a POST or PATCH repeatable. The second request has the same body."""
    origin.behaviour = o.fail_times(1, 500)

    result = await worker.one(origin.url(), method=method, headers=headers, body="again")

    assert (result.outcome, result.attempts) == (Outcome.STORED, 2)
    assert [seen.body for seen in origin.requests] == [b"again"] * 2


async def test_a_post_whose_connection_was_refused_is_retried(worker: OneWorker) -> None:
    """The host has received nothing."""
    with socket.socket() as unheard:
        unheard.bind((HOST, 0))
        url = f"http://{HOST}:{unheard.getsockname()[1]}/"
        result = await worker.one(url, method="POST", body="x")

    assert (result.reason, result.attempts) == (Reason.CONNECT, 5)


async def test_a_throttled_post_is_sent_again(origin: Origin, worker: OneWorker) -> None:
    """A host that responds with 429 has not processed the request."""
    origin.behaviour = o.sequence(o.retry_after(1), o.OK)

    result = await worker.one(origin.url(), method="POST", body="x")

    assert (result.outcome, result.attempts, result.throttles) == (Outcome.STORED, 1, 1)
