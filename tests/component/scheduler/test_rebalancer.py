"""Rebalancing: a worker keeps its share of the lanes. Releasing lanes costs no attempt."""

import asyncio
from collections.abc import Mapping

import pytest
from redis.asyncio import Redis

from fetchfleet import Fetch, Outcome
from fetchfleet.jobs import keys
from fetchfleet.jobs.scripts.lanes import Enough
from fetchfleet.worker.scheduler.balance import CHECKS, FleetLoad
from tests.component.conftest import Lines, Start, tuned
from tests.support.lanes import fields, now_ms
from tests.support.origins import serve_origins
from tests.support.waiting import wait_until
from tools.one_worker import results_of
from tools.origin.behaviours import held
from tools.origin.server import Origin

HOSTS = [f"127.0.0.{number}" for number in (13, 14, 15)]
ONE_LANE_A_WORKER = FleetLoad(busy=1, workers=9)


def requests_to(hosts: Mapping[str, Origin]) -> int:
    """Return how many requests the hosts have received."""
    return sum(len(host.requests) for host in hosts.values())


@pytest.mark.parametrize(("method", "requests"), [("GET", 5), ("POST", 3)])
async def test_a_worker_over_its_share_interrupts_gets_and_not_posts(
    start: Start, lines: Lines, method: str, requests: int
) -> None:
    """Two of three lanes are released as soon as possible. An interrupted GET is sent again."""
    may_end = asyncio.Event()
    worker = await start(timings=tuned(release_within_s=0))
    async with serve_origins({host: (host, held(may_end)) for host in HOSTS}) as hosts:
        batch = await worker.submit([Fetch(url=host.url(), method=method) for host in hosts.values()])
        await wait_until(lambda: all(host.in_progress for host in hosts.values()), "three requests")
        for _ in range(CHECKS):
            worker.runtime.signals.apply_load(ONE_LANE_A_WORKER)
        leaving = [lane.name for lane in worker.runtime.lanes.values() if lane.stopping]
        await wait_until(lambda: requests_to(hosts) == requests, "interrupted requests to be repeated")
        may_end.set()
        results = await results_of(batch)
        seen = requests_to(hosts)

    assert 2 == len(leaving)
    assert set(leaving) == {line["lane"] for line in lines if line["event"] == "lane.yielded"}
    assert [(Outcome.STORED, 1)] * 3 == [(result.outcome, result.attempts) for result in results]
    assert requests == seen == 3 + sum(result.interruptions for result in results)


async def test_a_fetch_that_ends_in_time_is_not_interrupted(start: Start) -> None:
    """The lanes are released after their last response."""
    may_end = asyncio.Event()
    worker = await start()
    async with serve_origins({host: (host, held(may_end)) for host in HOSTS}) as hosts:
        batch = await worker.submit([host.url() for host in hosts.values()])
        await wait_until(lambda: all(host.in_progress for host in hosts.values()), "three requests")
        for _ in range(CHECKS):
            worker.runtime.signals.apply_load(ONE_LANE_A_WORKER)
        may_end.set()
        results = await results_of(batch)

    assert [0, 0, 0] == [result.interruptions for result in results]


async def test_a_worker_acquires_its_share_of_lanes_notified_at_once(start: Start, redis: Redis) -> None:
    """A rival is alive, so the share is two of four. Lanes that are being acquired count."""
    may_end = asyncio.Event()
    worker = await start()
    await worker.stop_acquiring()
    await redis.zadd(keys.WORKERS, {"rival": await now_ms(redis) + 4_000})
    async with serve_origins({host: (host, held(may_end)) for host in [*HOSTS, "127.0.0.16"]}) as hosts:
        await worker.submit([host.url() for host in hosts.values()])
        generations = {host: int((await fields(redis, host))["generation"]) for host in hosts}
        took = await asyncio.gather(
            *(worker.runtime.take_lane(*notification) for notification in generations.items())
        )
        may_end.set()
        await wait_until(lambda: not worker.runtime.lanes, "both lanes to be released")

    assert [2, 2] == [took.count(None), took.count(Enough())]
    assert 2 == requests_to(hosts)
