"""Two workers, measured at the hosts: limits apply to the fleet, not to each worker."""

from collections.abc import Mapping
from pathlib import Path

from fetchfleet import Fetch, Fleet, Outcome
from tests.support.waiting import wait_until
from tests.support.workers import QUICK_POLICY, workers
from tools.origin.behaviours import latency, ok, redirect, throttle_window
from tools.origin.process import origins_in_child
from tools.origin.server import Behaviour, requests_inside

CONCURRENCY = 3
STEADY = [f"127.0.0.{number}" for number in range(131, 137)]
LIMITED = [f"127.0.0.{number}" for number in range(137, 141)]
POINTING = "127.0.0.141"
ON_THE_WIRE_S = 0.4

POLICY = QUICK_POLICY + f"concurrency = {CONCURRENCY}\n"


def hosts_of_the_demo() -> Mapping[str, Behaviour]:
    """Return steady hosts, throttling hosts, and one that redirects to a steady host."""
    return {
        **dict.fromkeys(STEADY, latency(0.01, ok(b"steady" * 100))),
        **{host: throttle_window(8, 1, latency(0.01)) for host in LIMITED},
        POINTING: redirect(lambda target: target.removeprefix("/to/")),
    }


async def test_no_host_sees_more_than_its_concurrency_or_a_request_within_retry_after(
    redis_url: str, fleet: Fleet, tmp_path: Path
) -> None:
    """The limits apply across two workers, also for requests that come by a redirect."""
    with origins_in_child(hosts_of_the_demo) as hosts, workers(2, redis_url, tmp_path, POLICY) as running:
        await wait_until(running.started, "both workers to start")
        urls = [f"{hosts.urls[host]}/{i}" for i in range(60) for host in STEADY]
        urls += [f"{hosts.urls[host]}/{i}" for i in range(30) for host in LIMITED]
        urls += [f"{hosts.urls[POINTING]}/to/{hosts.urls[STEADY[0]]}/{i}" for i in range(60)]
        batch = await fleet.submit([Fetch(url=url) for url in urls])
        results = [result async for result in batch.results()]
        seen = hosts.report()

    assert {Outcome.STORED} == {result.outcome for result in results}
    assert {"worker-1", "worker-2"} == {result.worker for result in results}
    assert [] == [host for host, report in seen.items() if report.high_water > CONCURRENCY]
    assert all(seen[host].windows for host in LIMITED)
    for host in LIMITED:
        assert [] == requests_inside(seen[host].windows, seen[host].requests, ON_THE_WIRE_S)


async def test_a_throttled_host_charges_no_attempt(redis_url: str, fleet: Fleet, tmp_path: Path) -> None:
    """Throttles are counted separately, and only the lane of that host cools down."""
    with origins_in_child(hosts_of_the_demo) as hosts, workers(2, redis_url, tmp_path, POLICY) as running:
        host = LIMITED[0]
        batch = await fleet.submit([f"{hosts.urls[host]}/{i}" for i in range(40)])
        results = [result async for result in batch.results()]
        cooled = running.events("lane.cooling")

    assert {1} == {result.attempts for result in results}
    assert sum(result.throttles for result in results) > 0
    assert {host} == {line["lane"] for line in cooled}
