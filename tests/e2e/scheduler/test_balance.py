"""Balance: lanes move to workers with free capacity, and all slots of the fleet are used."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from math import ceil
from pathlib import Path

from redis.asyncio import Redis

from fetchfleet import Fleet, Outcome
from fetchfleet.worker.inspect.registration import name_of
from fetchfleet.worker.scheduler.balance import SLACK
from tests.support.lanes import fields
from tests.support.origins import serve_origins
from tests.support.waiting import wait_until
from tests.support.workers import QUICK_POLICY, Workers, workers
from tools.origin.behaviours import held
from tools.origin.server import Origin

HOSTS = [f"127.0.1.{number}" for number in range(1, 21)]
CONCURRENCY = 2
POLICY = QUICK_POLICY + f"concurrency = {CONCURRENCY}\n"
SLOTS_A_HOST = 8

BALANCED_WITHIN_S = 10.0

Origins = Mapping[str, Origin]


@asynccontextmanager
async def busy_origins() -> AsyncIterator[tuple[Origins, asyncio.Event]]:
    """Yield twenty hosts that respond once the event is set."""
    may_end = asyncio.Event()
    async with serve_origins({host: (host, held(may_end)) for host in HOSTS}) as hosts:
        yield hosts, may_end


def in_progress(hosts: Origins) -> int:
    """Return how many requests at the hosts wait for a response."""
    return sum(host.in_progress for host in hosts.values())


async def lanes_of(redis: Redis) -> Counter[str]:
    """Return how many lanes each worker holds, as recorded in Redis."""
    found = [await fields(redis, host) for host in HOSTS]
    return Counter(name_of(lane["owner"]) for lane in found if lane.get("state") == "held")


async def balanced(redis: Redis, of_workers: int) -> Counter[str] | None:
    """Return the number of lanes by worker if all are held and no worker has too many, else None."""
    lanes = await lanes_of(redis)
    bound = ceil(len(HOSTS) / of_workers) + SLACK
    return lanes if lanes.total() == len(HOSTS) and max(lanes.values()) <= bound else None


def yielded(running: Workers) -> list[str]:
    """Return the lanes that were released for balance, with repetitions."""
    return [line["lane"] for line in running.events("lane.yielded")]


async def test_added_workers_get_their_share_of_the_lanes_and_no_attempt_is_charged(
    redis_url: str, redis: Redis, fleet: Fleet, tmp_path: Path
) -> None:
    """No worker keeps more than its share plus one, and no host gets more than its concurrency."""
    async with busy_origins() as (hosts, may_end):
        with workers(1, redis_url, tmp_path, POLICY) as first:
            batch = await fleet.submit([host.url(f"/{i}") for host in hosts.values() for i in range(4)])
            slots = len(HOSTS) * CONCURRENCY
            await wait_until(lambda: in_progress(hosts) == slots, "one worker to hold all", 20)
            alone = await lanes_of(redis)
            with workers(2, redis_url, tmp_path, POLICY, first=2) as more:
                await wait_until(lambda: len(more.events("worker.started")) == 3, "two more workers", 30)
                await wait_until(lambda: balanced(redis, 3), "balance", BALANCED_WITHIN_S)
                await wait_until(lambda: in_progress(hosts) == slots, "all slots in use again", 20)
                may_end.set()
                results = [result async for result in batch.results()]
        gone = yielded(first)
        most = {host.high_water for host in hosts.values()}

    assert Counter({"worker-1": 20}) == alone
    assert {Outcome.STORED} == {result.outcome for result in results}
    assert {1} == {result.attempts for result in results}
    assert 20 - 7 - SLACK <= len(set(gone))
    assert 1 <= sum(result.interruptions for result in results) <= len(gone) * CONCURRENCY
    assert {CONCURRENCY} == most


async def test_i12_all_slots_of_the_fleet_are_used(
    redis_url: str, redis: Redis, fleet: Fleet, tmp_path: Path
) -> None:
    """Eight workers send 160 requests at once, to twenty hosts with eight slots each."""
    policy = QUICK_POLICY + f"concurrency = {SLOTS_A_HOST}\n"
    async with busy_origins() as (hosts, may_end):
        with workers(8, redis_url, tmp_path, policy) as running:
            await wait_until(running.started, "eight workers", 60)
            batch = await fleet.submit(
                [host.url(f"/{i}") for host in hosts.values() for i in range(SLOTS_A_HOST + 2)]
            )
            slots = len(HOSTS) * SLOTS_A_HOST
            await wait_until(lambda: in_progress(hosts) == slots, "all slots in use", 20)
            await wait_until(lambda: balanced(redis, 8), "balance", BALANCED_WITHIN_S)
            lanes = await lanes_of(redis)
            may_end.set()
            results = [result async for result in batch.results()]
        most = {host.high_water for host in hosts.values()}

    assert 5 <= len(lanes)
    assert {SLOTS_A_HOST} == most
    assert {Outcome.STORED} == {result.outcome for result in results}
    assert {1} == {result.attempts for result in results}
