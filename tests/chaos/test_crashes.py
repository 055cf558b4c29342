"""Workers are killed: their lanes are reclaimed soon, and a fetch that kills workers is isolated."""

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from redis.asyncio import Redis

from fetchfleet import Fleet, Outcome, Reason, Result
from fetchfleet.jobs import keys
from tests.support.lanes import ask
from tests.support.named_workers import NamedWorkers, named_workers, results_of, worker_of
from tests.support.waiting import wait_until
from tests.support.workers import QUICK_POLICY
from tools.origin.behaviours import by_path, held, latency, slow
from tools.origin.server import Exchange, Origin, Seen

RECOVERY_S = 15.0
FLOODED_S = 2.0 + 3.0
"""The lease and a few sweeps."""
POISON_S = 60.0
CONCURRENCY = 3
POLICY = f"{QUICK_POLICY}concurrency = {CONCURRENCY}\n"

LONG, BUSY, STEADY = "127.0.0.213", "127.0.0.214", "127.0.0.215"
DEADLY, BESIDE = "127.0.0.216", "127.0.0.217"


def in_flight(origin: Origin) -> list[Seen]:
    """Return the requests whose response is not complete."""
    return [seen for seen in origin.requests if seen.finished_s == math.inf]


async def test_i04_i05_i14_lanes_of_a_killed_worker_are_reclaimed_within_15_s(
    redis_url: str, fleet: Fleet, tmp_path: Path
) -> None:
    """No attempt is charged, and the concurrency of each host stays within its limit.

    A fetch of another worker that outlasts many renewals is made once.
    """
    may_end = asyncio.Event()
    async with (
        Origin.serving(LONG, held(may_end)) as long,
        Origin.serving(BUSY, latency(0.05)) as busy,
        Origin.serving(STEADY, slow(b"drop", 0.25, 40)) as steady,
    ):
        with named_workers(redis_url, tmp_path / "fleet", POLICY) as workers:
            await workers.start_all("one", "two", "three")
            urls = [long.url(f"/{n}") for n in range(2 * CONCURRENCY)]
            batch = await fleet.submit(urls)
            await wait_until(lambda: len(in_flight(long)) == CONCURRENCY, "long fetches")
            slowly = await fleet.submit([steady.url("/")])  # another worker, which holds no lane, fetches it
            await wait_until(lambda: in_flight(steady), "the steady fetch")
            short = await fleet.submit(busy.url(f"/{n}") for n in range(400))
            await wait_until(lambda: in_flight(busy), "short fetches")
            held_by = worker_of(long.requests[0])
            workers.members[held_by].kill()
            await wait_until(
                lambda: any(worker_of(seen) != held_by for seen in long.requests),
                "their new owner",
                RECOVERY_S,
            )
            may_end.set()
            results = await results_of(fleet, batch.id)
            shorts = await results_of(fleet, short.id) | await results_of(fleet, slowly.id)

    assert {Outcome.STORED} == {result.outcome for result in (results | shorts).values()}
    assert {1} == {result.attempts for result in (results | shorts).values()}
    assert CONCURRENCY <= sum(results[url].interruptions for url in urls)
    assert {0, 1} >= {result.interruptions for result in (results | shorts).values()}
    assert [CONCURRENCY, CONCURRENCY] == [long.high_water, busy.high_water]
    assert 1 == len(steady.requests)


async def test_i04_foreign_members_in_arqs_queue_do_not_delay_recovery(
    redis_url: str, redis: Redis, fleet: Fleet, tmp_path: Path
) -> None:
    """A thousand members precede the lane. The reclaim is logged with the dead worker."""
    async with Origin.serving(BUSY, latency(0.05)) as origin:
        with named_workers(redis_url, tmp_path / "fleet", POLICY, FETCHFLEET_LEASE_S="2") as workers:
            await workers.start_all("one", "two")
            batch = await fleet.submit(origin.url(f"/{n}") for n in range(200))
            await wait_until(lambda: in_flight(origin), "fetches")
            owner = worker_of(origin.requests[0])
            await ask(redis, "ZADD", keys.QUEUE, *(word for i in range(1000) for word in ("0", f"z{i}")))
            workers.members[owner].kill()
            await wait_until(
                lambda: any(worker_of(seen) != owner for seen in origin.requests), "the next owner", FLOODED_S
            )
            results = await results_of(fleet, batch.id)
            rescued = workers.events("lane.rescued")
    assert {Outcome.STORED} == {result.outcome for result in results.values()}
    assert [BUSY] == [line["lane"] for line in rescued if line["owner"].startswith(owner)]


@asynccontextmanager
async def restarted(workers: NamedWorkers) -> AsyncIterator[None]:
    """Restart every worker that dies, as a supervisor does."""

    async def watch() -> None:
        while True:
            for name, member in list(workers.members.items()):
                if member.process.poll() is not None:
                    workers.start(name)
            await asyncio.sleep(0.05)

    watching = asyncio.create_task(watch())
    try:
        yield
    finally:
        watching.cancel()
        await asyncio.wait([watching])


async def test_i07_a_fetch_that_kills_three_workers_ends_alone_as_poison(
    redis_url: str, fleet: Fleet, tmp_path: Path
) -> None:
    """It becomes a dead letter. Long fetches of its lane and of another lane are stored."""
    may_end = asyncio.Event()
    with named_workers(redis_url, tmp_path / "fleet", POLICY, FETCHFLEET_LEASE_S="2") as workers:

        async def deadly(x: Exchange) -> None:
            workers.members[worker_of(x.request)].kill()
            await asyncio.Event().wait()

        long = held(may_end)
        async with (
            Origin.serving(DEADLY, by_path({"/poison": deadly, "/": long})) as origin,
            Origin.serving(BESIDE, long) as beside,
        ):
            await workers.start_all("one", "two")
            poison = origin.url("/poison")
            batch = await fleet.submit(
                [poison, *(of.url(f"/{n}") for n in range(4) for of in (origin, beside))]
            )
            async with restarted(workers):
                await wait_until(lambda: len(_of(origin, "/poison")) == 2, "the second death", POISON_S)
                may_end.set()
                results = await results_of(fleet, batch.id)
            letters = [letter async for letter in fleet.dead.iter()]
            made = _of(origin, "/poison")

    assert (Outcome.FAILED, Reason.POISON, 3) == _end(results.pop(poison))
    assert {Outcome.STORED} == {result.outcome for result in results.values()}, results
    assert {1} == {result.attempts for result in results.values()}
    assert 3 == len(made)
    assert ["poison"] == [letter.reason for letter in letters], letters


def _of(origin: Origin, target: str) -> list[Seen]:
    return [seen for seen in origin.requests if seen.target == target]


def _end(result: Result) -> tuple[Outcome, Reason | None, int]:
    return result.outcome, result.reason, result.interruptions
