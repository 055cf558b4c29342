"""Rate limits, adaptive concurrency and fairness with three workers, measured at the hosts."""

import signal
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from redis.asyncio import Redis

from fetchfleet import Fetch, Fleet, Outcome, Priority
from fetchfleet.jobs import keys
from tests.support.origins import serve_origins
from tests.support.waiting import wait_until
from tests.support.workers import QUICK_POLICY, Workers, workers
from tools.one_worker import results_of
from tools.origin import judge
from tools.origin.behaviours import latency, retry_after, status
from tools.origin.limits import Capacity
from tools.origin.process import OriginProcess, Report, origins_in_child
from tools.origin.server import Behaviour, Origin

ON_THE_WIRE_S = 0.1
"""Variation of the time in transit: two requests may arrive that much closer together than they were sent."""

EVEN, BURSTY, RARE = "127.0.3.41", "127.0.3.42", "127.0.3.43"
PACED = (
    QUICK_POLICY
    + f"""
[host."{EVEN}"]
rate_per_s = 5
[host."{BURSTY}"]
rate_per_s = 5
burst = 4
[host."{RARE}"]
rate_per_s = 0.3
"""
)


async def test_a_rate_limit_holds_across_a_deploy_and_a_crash(
    redis_url: str, redis: Redis, fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGTERM and SIGKILL end the workers that hold the lanes. No request comes early."""
    monkeypatch.setenv("FETCHFLEET_LEASE_S", "1")
    hosts = {host: (host, latency(0.01)) for host in (EVEN, BURSTY)}
    async with serve_origins({**hosts, RARE: (RARE, latency(1.5))}) as origins:
        with workers(3, redis_url, tmp_path, PACED) as running:
            await wait_until(running.started, "the workers")
            batch = await fleet.submit([o.url(f"/{i}") for i in range(25) for o in origins.values()])
            await wait_until(lambda: origins[RARE].requests, "a request of the slowest lane")
            begun = len(origins[EVEN].requests)
            await wait_until(lambda: len(origins[EVEN].requests) >= begun + 3, "requests of the other lanes")
            await _end(running, await _owner(redis, RARE), signal.SIGKILL)
            await _end(running, await _owner(redis, EVEN), signal.SIGTERM)
            for host, count in ((EVEN, 25), (BURSTY, 25), (RARE, 2)):
                await wait_until(lambda: len(origins[host].requests) >= count, f"{count} at {host}", 30)  # noqa: B023
            owners = {line["worker"] for line in running.events("lane.taken") if line["lane"] == EVEN}
            await batch.cancel()
            results = await results_of(batch)

    assert len(owners) >= 2
    assert {Outcome.STORED, Outcome.CANCELLED} == {result.outcome for result in results}
    for host, interval_s, burst in ((EVEN, 0.2, 1), (BURSTY, 0.2, 4), (RARE, 1 / 0.3, 1)):
        assert [] == judge.closer_than(origins[host].requests, interval_s, burst, ON_THE_WIRE_S), host


async def _owner(redis: Redis, lane: str) -> str:
    """Return the worker that holds the lane now."""

    async def owner() -> bytes | None:
        found: bytes | None = await redis.hget(keys.lane(lane), "owner")  # type: ignore[misc]
        return found

    return (await wait_until(owner, f"{lane} to be held") or b"").decode()


async def _end(running: Workers, worker: str, how: signal.Signals) -> None:
    process = running.processes[int(worker.removeprefix("worker-").partition("-")[0]) - 1]
    process.send_signal(how)
    await wait_until(lambda: process.poll() is not None, f"{worker} to end", 20)


REFUSING, THROTTLING = "127.0.3.44", "127.0.3.45"
CAPACITY, LESS, LATENCY_S, LESS_FROM_S = 12, 4, 0.06, 3.5
ADAPTIVE = """\
[default]
concurrency = {min = 1, max = 64}
attempts = 100
retry_base_s = 0.05
retry_cap_s = 0.2
breaker_reset_s = 0.5
"""


def limited() -> Mapping[str, Behaviour]:
    """Return hosts that accept 12 at once: one later 4, and 503 above, the other 429 above."""
    return {
        REFUSING: Capacity([(0, CAPACITY), (LESS_FROM_S, LESS)], status(503), LATENCY_S),
        THROTTLING: Capacity([(0, CAPACITY)], retry_after(1), LATENCY_S),
    }


@pytest.mark.timeout(90)
async def test_adaptive_concurrency_finds_and_follows_the_capacity_of_a_host(
    redis_url: str, fleet: Fleet, tmp_path: Path
) -> None:
    """The peak is 60 % of the capacity at least and one above it at most. Under 2 % are refused."""
    with origins_in_child(limited) as hosts, workers(3, redis_url, tmp_path, ADAPTIVE) as running:
        await wait_until(running.started, "the workers")
        batch = await fleet.submit([f"{url}/{i}" for i in range(2000) for url in hosts.urls.values()])
        await wait_until(
            _served_for(hosts, REFUSING, LESS_FROM_S + 4.5), "some seconds at the lower capacity", 40, 0.5
        )
        seen = hosts.report()
        await batch.cancel()
        results = await results_of(batch)

    before = _between(seen[REFUSING], LESS_FROM_S - 1.5, LESS_FROM_S - LATENCY_S)
    _assert_capacity_used(before, CAPACITY)
    _assert_capacity_used(_between(seen[REFUSING], LESS_FROM_S + 2.5, 60), LESS)
    _assert_capacity_used(_between(seen[THROTTLING], LESS_FROM_S, 60), CAPACITY)
    assert {Outcome.STORED, Outcome.CANCELLED} == {result.outcome for result in results}


def _served_for(hosts: OriginProcess, host: str, for_s: float) -> Callable[[], bool]:
    def served() -> bool:
        arrivals = judge.arrivals_of(hosts.report()[host].requests)
        return bool(arrivals) and arrivals[-1] - arrivals[0] >= for_s

    return served


def _between(report: Report, from_s: float, until_s: float) -> list[judge.Seen]:
    """Return the requests that arrived between two times after the first request."""
    first_s = min(judge.arrivals_of(report.requests))
    return [seen for seen in report.requests if from_s <= seen.arrived_s - first_s <= until_s]


def _assert_capacity_used(seen: list[judge.Seen], capacity: int) -> None:
    assert 0.6 * capacity <= judge.most_at_once(seen) <= capacity + 1
    assert judge.refused(seen) < 0.02


MANY = [f"127.0.4.{number}" for number in range(1, 41)]
EACH, FIRST = 40, 1200


async def test_every_lane_progresses_with_few_slots(
    redis_url: str, fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of 40 hosts sees some of the first 1,200 of 1,600 requests. A worker has four slots."""
    monkeypatch.setenv("FETCHFLEET_MAX_IN_FLIGHT", "4")
    async with serve_origins({host: (host, latency(0.05)) for host in MANY}) as origins:
        with workers(3, redis_url, tmp_path) as running:
            await wait_until(running.started, "the workers")
            batch = await fleet.submit([o.url(f"/{i}") for o in origins.values() for i in range(EACH)])
            results = await results_of(batch)
    arrived = sorted((seen.arrived_s, host) for host, o in origins.items() for seen in o.requests)
    early = Counter(host for _, host in arrived[:FIRST])
    everything = [seen for origin in origins.values() for seen in origin.requests]

    assert len(MANY) * EACH == len(results)
    assert set(MANY) == set(early)
    assert judge.most_at_once(everything) <= 3 * 4


async def test_a_lane_serves_fetches_by_priority(redis_url: str, fleet: Fleet, tmp_path: Path) -> None:
    """High before normal before low, and in order of submission within each."""
    async with Origin.serving("127.0.3.46", latency(0.005)) as origin:
        batch = await fleet.submit(
            Fetch(url=origin.url(f"/{priority}/{i}"), priority=priority)
            for i in range(10)
            for priority in (Priority.LOW, Priority.NORMAL, Priority.HIGH)
        )
        with workers(3, redis_url, tmp_path, QUICK_POLICY + "concurrency = 1\n"):
            await results_of(batch)

    expected = [f"/{priority}/{i}" for priority in ("high", "normal", "low") for i in range(10)]
    assert expected == [seen.target for seen in origin.requests]
