"""Cancelling a batch while a worker is at it: what waits ends untried, what runs is stopped."""

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
from tests.component.conftest import HOST, QUICK, Lines, Start
from tests.support.disks import disable_nameless_files
from tests.support.lanes import backlog
from tests.support.waiting import wait_until
from tools.one_worker import OneWorker, results_of
from tools.origin import behaviours as o
from tools.origin.server import Origin

HOUR_S = 3600
ONE_AT_A_TIME = {"concurrency": 1}


@pytest.fixture
def timings() -> WorkerTimings:
    """Workers look for cancelled batches many times a second."""
    return replace(QUICK, heartbeat_s=0.05)


async def outcomes(batch: Batch) -> Counter[str]:
    """How often each outcome is among the results, which must be as many as the batch's fetches."""
    found: Sequence[Result] = await results_of(batch)
    counts = await batch.counts()
    assert counts.total == len(found) == len({of.id for of in found}) == counts.done
    assert all(of.path is None for of in found if of.outcome is Outcome.CANCELLED)
    return Counter(of.outcome.value for of in found)


async def every_lane_is_done(worker: OneWorker, redis: Redis) -> None:
    """Nothing waits, nothing is held, nothing is counted."""
    await wait_until(lambda: not worker.runtime.lanes, "the lanes to be given back")
    assert 0 == await backlog(redis)
    assert [] == await redis.keys("ff:cancelled:*")


async def test_a_running_fetch_is_stopped(origin: Origin, worker: OneWorker, redis: Redis) -> None:
    """The connection is closed, half a body leaves neither file nor part, and nothing is tried again."""
    origin.behaviour = o.HalfBody()
    batch = await worker.submit([origin.url("/1"), origin.url("/2")])
    await wait_until(lambda: len(worker.parts()) == 2, "two halves on disk")
    await batch.cancel()

    assert {"cancelled": 2} == await outcomes(batch)
    await wait_until(lambda: all(seen.aborted for seen in origin.requests), "the connections to close")
    assert not worker.files() | worker.parts()
    assert 2 == len(origin.requests)
    await every_lane_is_done(worker, redis)


async def test_what_waits_behind_a_running_fetch_ends_untried(
    origin: Origin, start: Start, redis: Redis, lines: Lines
) -> None:
    """Of all priorities; another batch in the same lane goes on, in its order."""
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
    await every_lane_is_done(worker, redis)


async def test_a_fetch_of_another_batch_goes_on_running(origin: Origin, worker: OneWorker) -> None:
    """Only the batch's own connections are closed."""
    slow = o.HalfBody(half_bytes=10)
    origin.behaviour = slow
    batch = await worker.submit([origin.url("/gone")])
    other = await worker.submit([origin.url("/stays")])
    await wait_until(lambda: origin.in_progress == 2, "both requests")
    await batch.cancel()

    assert {"cancelled": 1} == await outcomes(batch)
    slow.go_on.set()
    assert {"stored": 1} == await outcomes(other)
    assert {"/gone"} == {seen.target for seen in origin.requests if seen.aborted}


async def test_results_that_had_come_stay(origin: Origin, start: Start) -> None:
    """What was stored is stored, and its file is there."""
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
    ids=["asked for an hour of quiet", "open breaker", "retries in an hour"],
)
async def test_a_lane_that_waits_for_an_hour_is_cancelled_now(
    origin: Origin, start: Start, redis: Redis, behaviour: Any, policy: dict[str, Any], why: str
) -> None:
    """Nobody holds it; it is taken for this, and its host is asked nothing."""
    worker = await start(policy={**ONE_AT_A_TIME, "attempts": 9, **policy})
    origin.behaviour = behaviour
    batch = await worker.submit([origin.url(f"/{n}") for n in range(5)])
    await wait_until(lambda: _waits(worker, redis, why), "the lane to be given back")
    asked = len(origin.requests)
    await batch.cancel()

    assert {"cancelled": 5} == await outcomes(batch)
    assert asked == len(origin.requests)
    await every_lane_is_done(worker, redis)


async def _waits(worker: OneWorker, redis: Redis, why: str) -> bool:
    found = await redis.hmget(keys.lane(HOST), "state", "why")  # type: ignore[misc, arg-type]
    return not worker.runtime.lanes and found == [b"scheduled", why.encode()]


async def test_other_batches_in_a_lane_that_cools_down_go_on_waiting(
    origin: Origin, start: Start, redis: Redis
) -> None:
    """Cancelling one batch breaks no promise of quiet."""
    worker = await start(policy=ONE_AT_A_TIME)
    origin.behaviour = o.retry_after(HOUR_S)
    batch, other = await worker.submit([origin.url("/1")]), await worker.submit([origin.url("/2")])
    await wait_until(lambda: _waits(worker, redis, "cooling"), "the lane to be given back")
    await batch.cancel()
    assert {"cancelled": 1} == await outcomes(batch)
    await wait_until(lambda: _waits(worker, redis, "cooling"), "the lane to be given back again")

    assert (1, 0) == (len(origin.requests), (await other.counts()).done)


async def test_a_batch_cancelled_while_no_worker_runs_ends_when_one_starts(
    origin: Origin, start: Start, redis: Redis
) -> None:
    """What waits, and what was handed back, is not tried."""
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
    await every_lane_is_done(worker, redis)


async def test_a_lane_without_a_slot_is_cancelled_all_the_same(
    origin: Origin, other: Origin, start: Start
) -> None:
    """The worker's only slot is taken by a slow fetch of another lane, which stays."""
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
    slow.go_on.set()
    assert {"stored": 1} == await outcomes(running)


def _is_full_of(worker: OneWorker, count: int) -> bool:
    return any(len(lane.entries) >= count for lane in worker.runtime.lanes.values())


async def test_a_producer_that_still_submits_is_told(origin: Origin, worker: OneWorker) -> None:
    """At its next chunk, whether the fetches of before have ended or not; they have, each once."""
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


async def test_a_claim_that_races_with_the_cancelling_starts_nothing(
    origin: Origin, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is claimed just as the worker hears of the cancelling is not begun any more."""
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
    await wait_until(lambda: worker.runtime.lanes, "the lane to be taken")
    await batch.cancel()

    assert {"cancelled": 20} == await outcomes(batch)
    assert [] == origin.requests


async def test_a_worker_whose_redis_stumbles_hears_of_it_all_the_same(
    origin: Origin, worker: OneWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A question that was not answered is asked again."""
    origin.behaviour = o.HalfBody()
    ask, refused = LaneStore.cancelled, list[str]()

    async def stumble(self: LaneStore, lanes: Sequence[str]) -> CancelledBatches:
        if not refused and lanes:
            refused.append("once")
            raise RedisConnectionError("reset")
        return await ask(self, lanes)

    batch = await worker.submit([origin.url()])
    await wait_until(lambda: origin.in_progress, "the request")
    monkeypatch.setattr(LaneStore, "cancelled", stumble)
    await batch.cancel()

    assert {"cancelled": 1} == await outcomes(batch)
    assert ["once"] == refused


async def test_a_withdrawal_whose_reply_is_lost_loses_no_fetch(
    origin: Origin, start: Start, redis: Redis, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What Redis had claimed for us is found and ended within the same stay in the lane."""
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
    await every_lane_is_done(worker, redis)
    assert [50] == [line["fetches"] for line in lines if line["event"] == "lane.cancelled"]


@pytest.mark.parametrize("step", ["name", "put"], ids=["nameless", "a part"])
async def test_a_body_that_is_being_put_in_its_place_is_stored(
    origin: Origin, worker: OneWorker, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """The disk has it: no file of a cancelled fetch is left without a result that names it."""
    if step == "put":
        disable_nameless_files(monkeypatch)
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
    await wait_until(lambda: any(lane.cut for lane in worker.runtime.lanes.values()), "the worker to hear")
    go_on.set()

    assert {"stored": 1} == await outcomes(batch)
    assert [b"ok"] == [worker.body(of) for of in await results_of(batch)]


async def test_a_hand_over_that_races_with_the_cancelling_is_refused(
    origin: Origin, other: Origin, worker: OneWorker, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The redirect is not followed into the other host's lane."""
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
    await every_lane_is_done(worker, redis)


async def test_a_fetch_handed_over_is_stopped_in_the_other_lane(
    origin: Origin, other: Origin, worker: OneWorker, redis: Redis
) -> None:
    """The batch's lanes are those where its fetches are, not only where they began."""
    origin.behaviour = o.redirect(other.url("/there"))
    other.behaviour = o.HalfBody()
    batch = await worker.submit([origin.url("/here")])
    await wait_until(lambda: other.in_progress, "the request at the other host")
    await batch.cancel()

    assert {"cancelled": 1} == await outcomes(batch)
    await wait_until(lambda: other.requests[0].aborted, "the connection to close")
    await every_lane_is_done(worker, redis)


async def test_two_batches_are_cancelled_in_one_lane(origin: Origin, start: Start, redis: Redis) -> None:
    """At about the same time, with a third that goes on."""
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
    slow.go_on.set()
    assert [{"stored": 1}, {"stored": 20}] == [await outcomes(holding), await outcomes(stays)]
    assert not [seen for seen in origin.requests if seen.target.startswith("/gone")]


async def test_every_lane_of_a_large_batch_is_cancelled(origin: Origin, start: Start, redis: Redis) -> None:
    """Thousands waiting end in stretches, while what another batch has there is served in its order."""
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
    slow.go_on.set()
    assert [{"stored": 1}, {"stored": 10}] == [await outcomes(holding), await outcomes(stays)]
    assert [f"/stays/{n}" for n in range(10)] == [seen.target for seen in origin.requests[1:]]
    await every_lane_is_done(worker, redis)
