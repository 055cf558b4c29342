"""Resets of lanes: an operator reports a repaired host, and its lane continues at once."""

from dataclasses import replace

import pytest
from redis.asyncio import Redis

from fetchfleet import Outcome
from fetchfleet.worker.lanes.reset import await_applied, reset
from fetchfleet.worker.runtime.timings import WorkerTimings
from tests.component.conftest import HOST, OTHER_HOST, QUICK, Lines, Start
from tests.support.waiting import wait_until
from tools.one_worker import results_of
from tools.origin import behaviours as o
from tools.origin.server import Origin

HOUR = {"breaker_failures": 2, "breaker_reset_s": 3600, "retry_base_s": 3600, "retry_cap_s": 3600}
BY = "alice@ops"


@pytest.fixture
def timings() -> WorkerTimings:
    """Return timings with a heartbeat every 50 ms, which reads the resets."""
    return replace(QUICK, heartbeat_s=0.05)


async def test_a_reset_closes_the_breaker_of_a_waiting_lane(
    origin: Origin, start: Start, redis: Redis, lines: Lines
) -> None:
    """Its waiting fetches and retries run at once, and the log names the operator."""
    worker = await start(policy={**HOUR, "concurrency": 2})
    origin.behaviour = o.reset
    batch = await worker.submit([origin.url(f"/{n}") for n in range(10)])
    await wait_until(
        lambda: not worker.runtime.lanes and any(line["event"] == "lane.released" for line in lines),
        "the breaker to be open",
    )
    origin.behaviour = o.OK
    failed = len(origin.requests)

    [done] = await reset(redis, worker.fleet.notify, [HOST], BY)
    results = await results_of(batch)

    assert {Outcome.STORED} == {result.outcome for result in results}
    assert failed < 10
    assert (["breaker"], failed) == (done.reset, done.retries)
    [line] = [line for line in lines if line["event"] == "lane.reset"]
    assert (HOST, BY) == (line["lane"], line["by"])
    assert "breaker" in line["reset"]


async def test_a_reset_ends_the_cool_down_of_a_held_lane(
    origin: Origin, other: Origin, start: Start, redis: Redis, lines: Lines
) -> None:
    """Its owner applies the reset while a fetch is in flight. Other lanes keep their cool-downs."""
    worker = await start(policy={"concurrency": 2})
    throttle = o.by_path({"/slow": o.stall_headers(60), "/": o.retry_after(3600)})
    origin.behaviour, other.behaviour = throttle, o.retry_after(3600)
    slow = await worker.submit([origin.url("/slow")])
    await wait_until(lambda: origin.in_progress, "the slow fetch")
    batch = await worker.submit([origin.url("/1")])
    others = await worker.submit([other.url("/1")])
    await wait_until(
        lambda: {HOST, OTHER_HOST} == {line["lane"] for line in lines if line["event"] == "fetch.retry"},
        "the cool-downs of both hosts to be saved",
    )
    origin.behaviour = other.behaviour = o.OK

    [done] = await reset(redis, worker.fleet.notify, [HOST], BY)
    [result] = await results_of(batch)
    await await_applied(redis, [done], 2, 0.01)

    assert Outcome.STORED is result.outcome
    assert (["cool_down"], True, False) == (done.reset, done.held, done.pending)
    assert 0 == (await others.counts()).done
    assert [HOST] == [line["lane"] for line in lines if line["event"] == "lane.reset"]
    await slow.cancel()
    await others.cancel()
    await results_of(slow)
    await results_of(others)
