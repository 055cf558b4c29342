"""A worker takes its share of the lanes, and what it gives back costs no attempt."""

import asyncio
from collections.abc import Mapping

import pytest
from redis.asyncio import Redis

from fetchfleet import Fetch, Outcome
from fetchfleet.jobs import keys
from fetchfleet.jobs.scripts.lanes import Enough
from fetchfleet.worker.scheduler.balance import LOOKS, FleetLoad
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
    """How many requests they have seen."""
    return sum(len(host.requests) for host in hosts.values())


@pytest.mark.parametrize(("method", "requests"), [("GET", 5), ("POST", 3)])
async def test_what_may_be_repeated_is_cut_short_in_time_and_the_rest_ends_by_itself(
    start: Start, lines: Lines, method: str, requests: int
) -> None:
    """Two of three lanes go; a GET in one is made again, a POST is not."""
    may_end = asyncio.Event()
    worker = await start(timings=tuned(give_back_within_s=0))
    async with serve_origins({host: (host, held(may_end)) for host in HOSTS}) as hosts:
        batch = await worker.submit([Fetch(url=host.url(), method=method) for host in hosts.values()])
        await wait_until(lambda: all(host.in_progress for host in hosts.values()), "three requests")
        for _ in range(LOOKS):
            worker.runtime.signals.heed_fleet(ONE_LANE_A_WORKER)
        leaving = [lane.name for lane in worker.runtime.lanes.values() if lane.leaving]
        await wait_until(lambda: requests_to(hosts) == requests, "what was cut short to be made again")
        may_end.set()
        results = await results_of(batch)
        seen = requests_to(hosts)

    assert 2 == len(leaving)
    assert set(leaving) == {line["lane"] for line in lines if line["event"] == "lane.yielded"}
    assert [(Outcome.STORED, 1)] * 3 == [(result.outcome, result.attempts) for result in results]
    assert requests == seen == 3 + sum(result.interruptions for result in results)


async def test_what_ends_in_time_is_not_cut_short(start: Start) -> None:
    """The lanes go when their last answer has come."""
    may_end = asyncio.Event()
    worker = await start()
    async with serve_origins({host: (host, held(may_end)) for host in HOSTS}) as hosts:
        batch = await worker.submit([host.url() for host in hosts.values()])
        await wait_until(lambda: all(host.in_progress for host in hosts.values()), "three requests")
        for _ in range(LOOKS):
            worker.runtime.signals.heed_fleet(ONE_LANE_A_WORKER)
        may_end.set()
        results = await results_of(batch)

    assert [0, 0, 0] == [result.interruptions for result in results]


async def test_lanes_that_are_handed_over_together_are_shared_all_the_same(
    start: Start, redis: Redis
) -> None:
    """With a rival alive it takes two of four, though none is in its hands while it asks for the others."""
    may_end = asyncio.Event()
    worker = await start()
    await worker.stop_acquiring()
    await redis.zadd(keys.WORKERS, {"rival": await now_ms(redis) + 4_000})
    async with serve_origins({host: (host, held(may_end)) for host in [*HOSTS, "127.0.0.16"]}) as hosts:
        await worker.submit([host.url() for host in hosts.values()])
        generations = {host: int((await fields(redis, host))["generation"]) for host in hosts}
        took = await asyncio.gather(
            *(worker.runtime.take_lane(*hand_off) for hand_off in generations.items())
        )
        may_end.set()
        await wait_until(lambda: not worker.runtime.lanes, "the end of both lanes")

    assert [2, 2] == [took.count(None), took.count(Enough())]
    assert 2 == requests_to(hosts)
