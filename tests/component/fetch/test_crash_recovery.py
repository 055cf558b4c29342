"""After a crash, a lost reply or a deploy nothing is lost, and nothing is done that is in doubt."""

from dataclasses import replace
from functools import partial

import msgspec
import pytest
from redis.asyncio import Redis

from fetchfleet import Batch, Fetch, Fleet, Outcome, Reason
from fetchfleet.jobs import keys
from fetchfleet.jobs.contract import entry
from fetchfleet.jobs.contract.entry import HEAD_CHARS, parse_entry, serialize_entry
from fetchfleet.worker.runtime.timings import WorkerTimings
from tests.component.conftest import HOST, QUICK, Lines, Start, tuned
from tests.support.lanes import claimed, later, orphan_claim, waiting
from tests.support.waiting import wait_until
from tools.one_worker import OneWorker, results_of
from tools.origin import behaviours as o
from tools.origin.server import Origin

LEASE_S = 1.0
PACED = {"rate_per_s": 0.5, "burst": 1}


@pytest.fixture
def timings() -> WorkerTimings:
    """A sweep does its work however short a time the worker has run."""
    return replace(QUICK, reclaim_delay_s=0.0)


async def take_away(redis: Redis) -> None:
    """The lane has another owner's token from here on, as after a crash."""
    await redis.hset(keys.lane(HOST), "token", "0")  # type: ignore[misc]


async def rewrite(redis: Redis, **changes: object) -> None:
    """Each fetch that waits has another ledger."""
    elements = await waiting(redis, lane=HOST)
    await redis.delete(keys.waiting_at(HOST, "normal"))
    changed = [
        serialize_entry(msgspec.structs.replace(parse_entry(element), **changes)) for element in elements
    ]
    await redis.rpush(keys.waiting_at(HOST, "normal"), *changed)  # type: ignore[misc]


async def ended(worker: OneWorker, batch: Batch) -> bool:
    """Whether it has all its results, with a sweep before."""
    await worker.runtime.sweep.once()
    return (await batch.counts()).ended


async def test_a_claim_whose_reply_was_lost_is_found(
    origin: Origin, start: Start, redis: Redis, timings: WorkerTimings
) -> None:
    """Although the lane is never given back meanwhile."""
    half = o.HalfBody()
    origin.behaviour = o.by_path({"/held": half}, o.OK)
    worker = await start(policy={"concurrency": 1}, timings=tuned(timings, expiry_check_s=0.1))
    batch = await worker.submit([origin.url("/held"), origin.url("/lost"), origin.url("/next")])
    await wait_until(lambda: origin.in_progress, "the first")

    await orphan_claim(redis, HOST)
    assert 2 == len(await claimed(redis, HOST))
    half.go_on.set()
    results = await results_of(batch)

    assert {Outcome.STORED} == {result.outcome for result in results}
    assert {1} == {result.attempts for result in results}
    assert 3 == len(origin.requests)


async def test_a_post_that_was_only_claimed_is_made_by_the_next_worker(
    origin: Origin, start: Start, redis: Redis
) -> None:
    """What had begun may have been done by the host, and ends as interrupted; the other had not."""
    origin.behaviour = o.stall_headers(60)
    worker = await start(lease_s=LEASE_S, hosts={HOST: PACED})
    posts = [Fetch(url=origin.url(path), method="POST", body="x") for path in ("/begun", "/claimed")]
    batch = await worker.submit(posts)
    await wait_until(lambda: origin.in_progress, "the first")
    assert [True, False] == [parse_entry(element).begun for element in await claimed(redis, HOST)]

    origin.behaviour = o.OK
    await take_away(redis)
    await wait_until(partial(ended, worker, batch), "both results", every_s=0.1, timeout_s=20)
    begun, other = await results_of(batch)

    assert (Outcome.FAILED, Reason.INTERRUPTED, 1) == (begun.outcome, begun.reason, begun.interruptions)
    assert (Outcome.STORED, 1, 0) == (other.outcome, other.attempts, other.interruptions)
    assert ["/begun", "/claimed"] == [request.target for request in origin.requests]


async def test_what_workers_may_be_dying_of_is_tried_alone_and_alone_condemned(
    origin: Origin, fleet: Fleet, start: Start, redis: Redis
) -> None:
    """One fetch with two crashes is in flight at a time, beside all the others; only it is poison then."""
    origin.behaviour = o.stall_headers(60)
    batch = await fleet.submit([origin.url(f"/suspect/{number}") for number in range(3)])
    await rewrite(redis, crashes=2, interruptions=2)
    others = await fleet.submit([origin.url(f"/other/{number}") for number in range(3)])
    worker = await start(lease_s=LEASE_S, policy={"concurrency": 6})
    await wait_until(lambda: origin.in_progress == 4, "one suspect and the others")

    origin.behaviour = o.OK
    await take_away(redis)
    await wait_until(partial(ended, worker, batch), "the results", every_s=0.1, timeout_s=20)
    results, innocent = await results_of(batch), await results_of(others)

    assert [(Reason.POISON, 3), (None, 2), (None, 2)] == [(r.reason, r.interruptions) for r in results]
    assert [(Outcome.STORED, 1)] * 3 == [(r.outcome, r.interruptions) for r in innocent]
    assert 1 == [request.target for request in origin.requests].count("/suspect/0")


async def test_nothing_starts_beside_what_workers_may_be_dying_of(
    origin: Origin, other: Origin, fleet: Fleet, start: Start, redis: Redis
) -> None:
    """All lanes of the worker wait until it has ended: the worker could die of another fetch meanwhile."""
    origin.behaviour = o.by_path({"/suspect": o.latency(0.1)}, o.latency(0.02))
    other.behaviour = o.latency(0.02)
    suspect = await fleet.submit([origin.url("/suspect")])
    await rewrite(redis, crashes=2, interruptions=2)
    others = await fleet.submit(
        [of.url(f"/other/{number}") for number in range(60) for of in (origin, other)]
    )
    await start(policy={"concurrency": 4})
    results = [*await results_of(suspect), *await results_of(others)]

    assert [Outcome.STORED] * 121 == [result.outcome for result in results]
    [alone] = [seen for seen in origin.requests if seen.target == "/suspect"]
    for host in (origin, other):
        rest = [seen for seen in host.requests if seen is not alone]
        assert not [seen for seen in rest if alone.arrived_s < seen.arrived_s < alone.finished_s]
        assert [seen for seen in rest if seen.arrived_s > alone.finished_s]
        assert 2 < host.high_water


@pytest.fixture
async def newer(origin: Origin, fleet: Fleet, redis: Redis) -> Batch:
    """A batch of one fetch that a newer worker has written."""
    batch = await fleet.submit([Fetch(url=origin.url("/new"), deadline_s=3)])
    [element] = await waiting(redis, lane=HOST)
    raised = element[:HEAD_CHARS] + b'{"v":2,' + element[HEAD_CHARS + 1 :]
    await redis.lset(keys.waiting_at(HOST, "normal"), 0, raised)  # type: ignore[misc, arg-type]
    return batch


async def test_i27_what_only_a_newer_worker_can_read_is_left_to_one(
    origin: Origin, start: Start, redis: Redis, lines: Lines, newer: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An old one hands it back as it is, serves the rest of the lane, and says so."""
    worker = await start(timings=tuned(newer_return_s=0.2))
    [old] = await worker.results([origin.url("/old")])
    await wait_until(partial(later, redis, HOST), "the newer one to be put back")
    assert "lane.newer" in {line["event"] for line in lines}
    assert ["/old"] == [request.target for request in origin.requests]

    monkeypatch.setattr(entry, "ENTRY_VERSION", 2)
    [result] = await results_of(newer)

    assert [Outcome.STORED] * 2 == [old.outcome, result.outcome]
    assert (1, 0) == (result.attempts, result.interruptions)


async def test_what_no_newer_worker_comes_for_ends_by_its_deadline(
    origin: Origin, start: Start, newer: Batch
) -> None:
    """With a result that names its URL, and nothing was asked of its host."""
    await start(timings=tuned(newer_return_s=0.2))
    [result] = await results_of(newer)

    assert (Outcome.FAILED, Reason.DEADLINE) == (result.outcome, result.reason)
    assert origin.url("/new") == result.url
    assert not origin.requests
