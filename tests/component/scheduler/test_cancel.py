"""Cancelling a batch during its fetches: waiting ones end without a request, running ones are stopped."""

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from fetchfleet import Batch, BatchCancelledError, Fetch, Outcome, Priority, Result
from fetchfleet.jobs import keys
from fetchfleet.jobs.client.submit import CHUNK_FETCHES
from fetchfleet.jobs.scripts.lanes import Claim, Withdrawal
from fetchfleet.worker.lanes.lane import Lane
from fetchfleet.worker.lanes.store import CancelledBatches, LaneStore
from fetchfleet.worker.runtime.timings import WorkerTimings
from fetchfleet.worker.scheduler.acquire import Acquirer
from fetchfleet.worker.sink.files.directory import Directory
from tests.component.conftest import HOST, QUICK, Lines, Start, on_both_sinks
from tests.support.disks import disable_unnamed_files
from tests.support.lanes import backlog
from tests.support.waiting import wait_until
from tools.one_worker import OneWorker, results_of
from tools.origin import behaviours as o
from tools.origin.server import Origin

HOUR_S = 3600
ONE_AT_A_TIME = {"concurrency": 1}


@pytest.fixture
def timings() -> WorkerTimings:
    """Return timings with twenty heartbeats a second, each of which reads the cancelled batches."""
    return replace(QUICK, heartbeat_s=0.05)


async def outcomes(batch: Batch) -> Counter[str]:
    """Return the count of each outcome, after checking that each fetch has one result."""
    found: Sequence[Result] = await results_of(batch)
    counts = await batch.counts()
    assert counts.total == len(found) == len({of.id for of in found}) == counts.done
    assert all(of.path is None for of in found if of.outcome is Outcome.CANCELLED)
    return Counter(of.outcome.value for of in found)


async def no_lane_is_left(worker: OneWorker, redis: Redis) -> None:
    """Wait until no lane is held, then check that no fetch and no cancellation is left."""
    await wait_until(lambda: not worker.runtime.lanes, "the lanes to be released")
    assert 0 == await backlog(redis)
    assert [] == await redis.keys("ff:cancelled:*")


@on_both_sinks
async def test_a_cancellation_stops_running_fetches(origin: Origin, worker: OneWorker, redis: Redis) -> None:
    """The connections are closed, no file or partial file remains, and no request is repeated."""
    origin.behaviour = o.HalfBody()
    batch = await worker.submit([origin.url("/1"), origin.url("/2")])
    await wait_until(lambda: len(worker.parts()) == 2, "two partial files")
    await batch.cancel()

    assert {"cancelled": 2} == await outcomes(batch)
    await wait_until(lambda: all(seen.aborted for seen in origin.requests), "the connections to close")
    assert not worker.files() | worker.parts()
    assert 2 == len(origin.requests)
    await no_lane_is_left(worker, redis)


async def test_cancelled_fetches_behind_a_running_one_end_without_a_request(
    origin: Origin, start: Start, redis: Redis, lines: Lines
) -> None:
    """They have all priorities. Another batch in the lane continues, in its order."""
    worker = await start(policy=ONE_AT_A_TIME)
    slow = o.HalfBody()
    origin.behaviour = o.by_path({"/slow": slow}, o.OK)
    fetches = [Fetch(url=origin.url(f"/{of}"), priority=of) for of in Priority] * 20
    batch = await worker.submit([Fetch(url=origin.url("/slow"), priority=Priority.HIGH), *fetches])
    await wait_until(lambda: origin.in_progress, "the slow fetch")
    other = await worker.submit([origin.url(f"/other/{n}") for n in range(20)])
    await batch.cancel()

    assert {"cancelled": 61} == await outcomes(batch)
    assert {"stored": 20} == await outcomes(other)
    assert ["/slow", *(f"/other/{n}" for n in range(20))] == [seen.target for seen in origin.requests]
    [line] = [line for line in lines if line["event"] == "lane.cancelled"]
    assert (HOST, [batch.id], 61) == (line["lane"], line["batches"], line["fetches"])
    await no_lane_is_left(worker, redis)


async def test_running_fetches_of_other_batches_continue(origin: Origin, worker: OneWorker) -> None:
    """Only the connection of the cancelled batch is closed."""
    slow = o.HalfBody(half_bytes=10)
    origin.behaviour = slow
    batch = await worker.submit([origin.url("/gone")])
    other = await worker.submit([origin.url("/stays")])
    await wait_until(lambda: origin.in_progress == 2, "both requests")
    await batch.cancel()

    assert {"cancelled": 1} == await outcomes(batch)
    slow.resume.set()
    assert {"stored": 1} == await outcomes(other)
    assert {"/gone"} == {seen.target for seen in origin.requests if seen.aborted}


@on_both_sinks
async def test_results_from_before_a_cancellation_are_kept(origin: Origin, start: Start) -> None:
    """Their files are kept too."""
    worker = await start(policy=ONE_AT_A_TIME)
    origin.behaviour = o.by_path({"/slow": o.HalfBody()}, o.ok(b"body"))
    batch = await worker.submit([origin.url("/1"), origin.url("/2"), origin.url("/slow"), origin.url("/3")])
    await wait_until(lambda: origin.in_progress and len(origin.requests) == 3, "the slow one")
    await batch.cancel()

    assert {"stored": 2, "cancelled": 2} == await outcomes(batch)
    assert [b"body"] * 2 == [worker.body(of) for of in await results_of(batch) if of.path]
    assert 2 == len(worker.files())


@pytest.mark.parametrize(
    ("behaviour", "policy", "why"),
    [
        (o.retry_after(HOUR_S), {}, "cooling"),
        (o.status(500), {"breaker_failures": 1, "breaker_reset_s": HOUR_S}, "breaker"),
        (o.status(500), {"retry_base_s": HOUR_S, "retry_cap_s": HOUR_S, "concurrency": 8}, ""),
    ],
    ids=["cool-down", "open breaker", "retries in an hour"],
)
async def test_a_batch_is_cancelled_at_once_although_its_lane_waits_for_an_hour(
    origin: Origin, start: Start, redis: Redis, behaviour: Any, policy: dict[str, Any], why: str
) -> None:
    """A worker acquires the lane for the cancellation, and sends no request."""
    worker = await start(policy={**ONE_AT_A_TIME, "attempts": 9, **policy})
    origin.behaviour = behaviour
    batch = await worker.submit([origin.url(f"/{n}") for n in range(5)])
    await wait_until(lambda: _waits(worker, redis, why), "the lane to be released")
    sent = len(origin.requests)
    await batch.cancel()

    assert {"cancelled": 5} == await outcomes(batch)
    assert sent == len(origin.requests)
    await no_lane_is_left(worker, redis)


async def _waits(worker: OneWorker, redis: Redis, why: str) -> bool:
    found = await redis.hmget(keys.lane(HOST), "state", "why")  # type: ignore[misc, arg-type]
    return not worker.runtime.lanes and found == [b"scheduled", why.encode()]


async def test_other_batches_still_wait_for_the_cool_down_of_their_lane(
    origin: Origin, start: Start, redis: Redis
) -> None:
    """The cancellation of one batch does not end the cool-down."""
    worker = await start(policy=ONE_AT_A_TIME)
    origin.behaviour = o.retry_after(HOUR_S)
    batch, other = await worker.submit([origin.url("/1")]), await worker.submit([origin.url("/2")])
    await wait_until(lambda: _waits(worker, redis, "cooling"), "the lane to be released")
    await batch.cancel()
    assert {"cancelled": 1} == await outcomes(batch)
    await wait_until(lambda: _waits(worker, redis, "cooling"), "the lane to be released again")

    assert (1, 0) == (len(origin.requests), (await other.counts()).done)


async def test_a_batch_cancelled_while_no_worker_runs_ends_when_one_starts(
    origin: Origin, start: Start, redis: Redis
) -> None:
    """One fetch waits, the other one returned to the queue. The new worker sends no request."""
    origin.behaviour = o.HalfBody(half_bytes=10)
    first = await start(grace_s=0, policy=ONE_AT_A_TIME)
    batch = await first.submit([origin.url("/1"), origin.url("/2")])
    await wait_until(lambda: origin.in_progress, "the first request")
    await first.stop()
    await batch.cancel()
    assert 0 == (await batch.counts()).done
    worker = await start(worker_id="two")

    assert {"cancelled": 2} == await outcomes(batch)
    assert 1 == len(origin.requests)
    await no_lane_is_left(worker, redis)


async def test_a_batch_is_cancelled_while_no_slot_is_free(
    origin: Origin, other: Origin, start: Start
) -> None:
    """A slow fetch of another lane has the worker's only slot, and continues."""
    worker = await start(max_in_flight=1)
    slow = o.HalfBody(half_bytes=10)
    origin.behaviour = slow
    running = await worker.submit([origin.url()])
    await wait_until(lambda: origin.in_progress, "the slow fetch")
    batch = await worker.submit([other.url(f"/{n}") for n in range(30)])
    await wait_until(lambda: _is_full_of(worker, 8), "the claim")
    await batch.cancel()

    assert {"cancelled": 30} == await outcomes(batch)
    assert [] == other.requests
    slow.resume.set()
    assert {"stored": 1} == await outcomes(running)


def _is_full_of(worker: OneWorker, count: int) -> bool:
    return any(len(lane.entries) >= count for lane in worker.runtime.lanes.values())


async def test_submitting_to_a_cancelled_batch_raises(origin: Origin, worker: OneWorker) -> None:
    """The error comes with the next chunk. The earlier fetches have one result each."""
    origin.behaviour = o.HalfBody()
    batch = worker.fleet.batch("d" * 16)

    async def made() -> AsyncIterator[str]:
        for n in range(CHUNK_FETCHES):
            yield origin.url(f"/{n}")
        await wait_until(lambda: origin.in_progress, "a request")
        await batch.cancel()
        assert {"cancelled": CHUNK_FETCHES} == await outcomes(batch)
        yield origin.url("/too-late")

    with pytest.raises(BatchCancelledError):
        await worker.fleet.submit(made(), batch_id=batch.id)
    assert {"cancelled": CHUNK_FETCHES} == await outcomes(batch)


async def test_a_claim_that_races_with_a_cancellation_starts_no_fetch(
    origin: Origin, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reply of the claim arrives after the worker has noticed the cancellation."""
    origin.behaviour = o.HalfBody()
    cancelled = asyncio.Event()
    claim, cancel = LaneStore.claim, Lane.cancel

    async def late_reply(self: LaneStore, *args: Any, **how: Any) -> Claim:
        reply = await claim(self, *args, **how)
        await cancelled.wait()
        return reply

    def note(self: Lane, batches: set[str]) -> None:
        cancel(self, batches)
        if batches:
            cancelled.set()

    monkeypatch.setattr(Acquirer, "_first_claims", lambda *_: 0)
    monkeypatch.setattr(LaneStore, "claim", late_reply)
    monkeypatch.setattr(Lane, "cancel", note)
    worker = await start()
    batch = await worker.submit([origin.url(f"/{n}") for n in range(20)])
    await wait_until(lambda: worker.runtime.lanes, "the lane to be acquired")
    await batch.cancel()

    assert {"cancelled": 20} == await outcomes(batch)
    assert [] == origin.requests


async def test_a_cancellation_is_noticed_after_a_redis_error(
    origin: Origin, worker: OneWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The failed query is sent again."""
    origin.behaviour = o.HalfBody()
    ask, refused = LaneStore.cancelled, list[str]()

    async def fail_once(self: LaneStore, lanes: Sequence[str]) -> CancelledBatches:
        if not refused and lanes:
            refused.append("once")
            raise RedisConnectionError("reset")
        return await ask(self, lanes)

    batch = await worker.submit([origin.url()])
    await wait_until(lambda: origin.in_progress, "the request")
    monkeypatch.setattr(LaneStore, "cancelled", fail_once)
    await batch.cancel()

    assert {"cancelled": 1} == await outcomes(batch)
    assert ["once"] == refused


async def test_a_withdrawal_whose_reply_is_lost_loses_no_fetch(
    origin: Origin, start: Start, redis: Redis, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker finds the claimed fetches and ends them before it releases the lane."""
    worker = await start(policy=ONE_AT_A_TIME)
    origin.behaviour = o.HalfBody()
    withdraw, lost = LaneStore.withdraw, list[int]()

    async def lose_the_first(self: LaneStore, *args: Any) -> Withdrawal:
        reply = await withdraw(self, *args)
        if reply.serialized and not lost:
            lost.append(len(reply.serialized))
            raise RedisConnectionError("reset")
        return reply

    monkeypatch.setattr(LaneStore, "withdraw", lose_the_first)
    batch = await worker.submit([origin.url(f"/{n}") for n in range(50)])
    await wait_until(lambda: origin.in_progress, "a request")
    await batch.cancel()

    assert {"cancelled": 50} == await outcomes(batch)
    assert [49] == lost
    assert {0} == {of.interruptions for of in await results_of(batch)}
    await no_lane_is_left(worker, redis)
    assert [50] == [line["fetches"] for line in lines if line["event"] == "lane.cancelled"]


@pytest.mark.parametrize("step", ["name", "put"], ids=["unnamed", "partial file"])
async def test_a_body_that_is_being_placed_during_a_cancellation_is_stored(
    origin: Origin, worker: OneWorker, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Otherwise the file would be left without a result that names it."""
    if step == "put":
        disable_unnamed_files(monkeypatch)
    placing, go_on = threading.Event(), threading.Event()
    real = getattr(Directory, step)

    def slowly(self: Directory, *args: Any, **how: Any) -> Any:
        placing.set()
        go_on.wait(10)
        return real(self, *args, **how)

    monkeypatch.setattr(Directory, step, slowly)
    batch = await worker.submit([origin.url()])
    await wait_until(placing.is_set, "the body to be whole")
    await batch.cancel()
    await wait_until(
        lambda: any(lane.interrupted for lane in worker.runtime.lanes.values()), "the worker to notice"
    )
    go_on.set()

    assert {"stored": 1} == await outcomes(batch)
    assert [b"ok"] == [worker.body(of) for of in await results_of(batch)]


async def test_a_redirect_that_races_with_a_cancellation_is_not_followed(
    origin: Origin, other: Origin, worker: OneWorker, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis refuses the transfer to the lane of the other host."""
    origin.behaviour = o.redirect(other.url("/there"))
    transfer = LaneStore.transfer
    batches: list[Batch] = []

    async def after_cancelling(self: LaneStore, *args: Any) -> Any:
        await batches[0].cancel()
        return await transfer(self, *args)

    monkeypatch.setattr(LaneStore, "transfer", after_cancelling)
    batches.append(worker.fleet.batch("c" * 16))
    await worker.fleet.submit([origin.url("/here")], batch_id="c" * 16)

    assert {"cancelled": 1} == await outcomes(batches[0])
    assert [] == other.requests
    await no_lane_is_left(worker, redis)


async def test_a_redirected_fetch_is_cancelled_in_the_lane_of_the_target(
    origin: Origin, other: Origin, worker: OneWorker, redis: Redis
) -> None:
    """The lanes of a batch are those that hold its fetches now."""
    origin.behaviour = o.redirect(other.url("/there"))
    other.behaviour = o.HalfBody()
    batch = await worker.submit([origin.url("/here")])
    await wait_until(lambda: other.in_progress, "the request at the other host")
    await batch.cancel()

    assert {"cancelled": 1} == await outcomes(batch)
    await wait_until(lambda: other.requests[0].aborted, "the connection to close")
    await no_lane_is_left(worker, redis)


async def test_two_batches_are_cancelled_in_one_lane(origin: Origin, start: Start, redis: Redis) -> None:
    """A third batch in the lane continues."""
    worker = await start(policy=ONE_AT_A_TIME)
    slow = o.HalfBody(half_bytes=10)
    origin.behaviour = o.by_path({"/slow": slow}, o.OK)
    holding = await worker.submit([origin.url("/slow")])
    await wait_until(lambda: origin.in_progress, "the slow fetch")
    gone = [await worker.submit([origin.url(f"/gone/{n}") for n in range(20)]) for _ in range(2)]
    stays = await worker.submit([origin.url(f"/stays/{n}") for n in range(20)])
    for batch in gone:
        await batch.cancel()

    assert [{"cancelled": 20}] * 2 == [await outcomes(batch) for batch in gone]
    slow.resume.set()
    assert [{"stored": 1}, {"stored": 20}] == [await outcomes(holding), await outcomes(stays)]
    assert not [seen for seen in origin.requests if seen.target.startswith("/gone")]


async def test_thousands_of_waiting_fetches_of_a_lane_are_cancelled(
    origin: Origin, start: Start, redis: Redis
) -> None:
    """They end in several steps. The fetches of another batch are requested in order."""
    worker = await start(policy=ONE_AT_A_TIME)
    slow = o.HalfBody(half_bytes=10)
    origin.behaviour = o.by_path({"/slow": slow}, o.OK)
    holding = await worker.submit([origin.url("/slow")])
    await wait_until(lambda: origin.in_progress, "the slow fetch")
    batch = await worker.submit([origin.url(f"/gone/{n}") for n in range(2500)])
    stays = await worker.submit([origin.url(f"/stays/{n}") for n in range(10)])
    more = await worker.submit([origin.url(f"/gone/{n}") for n in range(500)])
    await asyncio.gather(batch.cancel(), more.cancel())

    assert [{"cancelled": 2500}, {"cancelled": 500}] == [await outcomes(batch), await outcomes(more)]
    slow.resume.set()
    assert [{"stored": 1}, {"stored": 10}] == [await outcomes(holding), await outcomes(stays)]
    assert [f"/stays/{n}" for n in range(10)] == [seen.target for seen in origin.requests[1:]]
    await no_lane_is_left(worker, redis)
