"""Hosts that throttle in every form: three workers, measured at the hosts."""

import asyncio
from pathlib import Path

import pytest

from fetchfleet import Fetch, Fleet, Outcome, Reason
from fetchfleet.jobs.client.batch import Batch
from tests.support.origins import serve_origins
from tests.support.waiting import wait_until
from tests.support.workers import QUICK_POLICY, workers
from tools.one_worker import results_of
from tools.origin import judge, limits
from tools.origin.behaviours import OK, retry_after
from tools.origin.limits import Announce, Quota
from tools.origin.server import Behaviour, Origin, requests_inside

ON_THE_WIRE_S = 0.4
"""Requests in transit when the host sends a 429 do not count."""
ROUGHLY_S = 0.05
"""A request may come that much early: the back-off begins when the worker reads the response."""

CONCURRENCY = 4
CAP_S = 2.0
POLICY = QUICK_POLICY + f"concurrency = {CONCURRENCY}\nthrottle_cap_s = {CAP_S}\n"
WITH_WAIT = {
    "delta": ("127.0.3.1", retry_after(2)),
    "date, clock an hour ahead": ("127.0.3.2", limits.retry_on(2, 3600)),
    "date, clock an hour behind": ("127.0.3.3", limits.retry_on(2, -3600)),
    "more than the cap": ("127.0.3.4", retry_after(1_000_000)),
    "a fraction": ("127.0.3.17", retry_after(1.5)),
    "403": ("127.0.3.18", retry_after(2, 403)),
}
WITHOUT_WAIT = {
    "nothing": ("127.0.3.5", limits.throttle(None)),
    "junk": ("127.0.3.6", limits.throttle("soon")),
    "zero": ("127.0.3.7", limits.throttle("0")),
    "negative": ("127.0.3.8", limits.throttle("-5")),
}


async def test_i16_the_whole_fleet_keeps_every_form_of_retry_after(
    redis_url: str, fleet: Fleet, tmp_path: Path
) -> None:
    """No request is sent in a requested wait. Without one, each incident lengthens the back-off by a step."""
    hosts = {
        name: (at, limits.after(6, 6, throttle))
        for name, (at, throttle) in {**WITH_WAIT, **WITHOUT_WAIT}.items()
    }
    async with serve_origins(hosts) as origins:
        with workers(3, redis_url, tmp_path, POLICY) as running:
            await wait_until(running.started, "the workers")
            batch = await fleet.submit([o.url(f"/{i}") for i in range(30) for o in origins.values()])
            results = await results_of(batch)
            cooled = sorted(running.events("lane.cooling"), key=lambda line: str(line["timestamp"]))
    throttles = {name: _throttles(origin) for name, origin in origins.items()}

    assert {Outcome.STORED} == {result.outcome for result in results}
    assert {1} == {result.attempts for result in results}
    assert sum(throttles.values()) == sum(result.throttles for result in results)
    for name in WITH_WAIT:
        windows = judge.capped(origins[name].windows, CAP_S)
        assert [] == requests_inside(windows, origins[name].requests, ON_THE_WIRE_S), name
    for name, (at, _) in WITHOUT_WAIT.items():
        incidents = [line["incidents"] for line in cooled if line["lane"] == at]
        waits = judge.waits_after(origins[name].requests, 429)
        assert list(range(1, len(incidents) + 1)) == incidents, name
        assert len(incidents) < throttles[name]
        assert len(incidents) == len(waits)
        assert all(wait_s >= min(2**n, CAP_S) - ROUGHLY_S for n, wait_s in enumerate(waits)), (name, waits)


def _throttles(origin: Origin) -> int:
    return sum(request.status in {403, 429} for request in origin.requests)


async def test_a_fetch_with_a_deadline_within_a_cool_down_ends_and_others_wait(
    redis_url: str, fleet: Fleet, tmp_path: Path
) -> None:
    """It ends as `throttled` without an attempt, so its batch ends while the host cools down."""
    async with Origin.serving("127.0.3.9", retry_after(3600)) as origin:
        with workers(3, redis_url, tmp_path) as running:
            long = await fleet.submit([Fetch(url=origin.url("/long"))] * 20)
            await wait_until(lambda: origin.windows and running.events("lane.released"), "the cool-down")
            short = await fleet.submit([Fetch(url=origin.url("/short"), deadline_s=2)] * 500)
            both = await fleet.submit(
                [Fetch(url=origin.url("/b"), deadline_s=deadline_s) for deadline_s in (1, None)]
            )
            async with asyncio.timeout(30):
                results = await results_of(short)
            await wait_until(lambda: _done(both, 1), "the fetch with the short deadline to end")
            waiting = (await long.counts(), await both.counts())
            for batch in (long, both):
                await batch.cancel()
                await results_of(batch)

    assert {(Outcome.FAILED, Reason.THROTTLED)} == {(result.outcome, result.reason) for result in results}
    assert {0} == {result.attempts for result in results}
    assert all((result.timings.total_ms or 0) >= 2000 for result in results)
    assert [0, 1] == [counts.done for counts in waiting]
    assert {"/long"} == {request.target for request in origin.requests}
    assert [] == requests_inside(origin.windows, origin.requests, ON_THE_WIRE_S)


async def _done(batch: Batch, count: int) -> bool:
    return (await batch.counts()).done == count


QUOTA, WINDOW_S = 12, 2.0
ANNOUNCING: dict[str, tuple[str, Announce]] = {
    "RateLimit": ("127.0.3.11", limits.ietf),
    "RateLimit-Remaining": ("127.0.3.12", limits.trio),
    "X-RateLimit": ("127.0.3.13", limits.epoch),
}
SILENT, LYING = "127.0.3.14", "127.0.3.15"


@pytest.mark.timeout(60)
async def test_a_host_that_announces_its_quota_never_has_to_refuse(
    redis_url: str, fleet: Fleet, tmp_path: Path
) -> None:
    """Three generations of header are read. A silent host does refuse. `quota = false` ignores all."""
    hosts: dict[str, tuple[str, Behaviour]] = {
        name: (at, Quota(QUOTA, WINDOW_S, announce)) for name, (at, announce) in ANNOUNCING.items()
    }
    hosts["silent"] = (SILENT, Quota(QUOTA, WINDOW_S, lambda *_: []))
    hosts["lying"] = (LYING, Quota(0, 3600, limits.ietf, strict=False))
    policy = POLICY + f'[host."{LYING}"]\nquota = false\n'
    async with serve_origins(hosts) as origins:
        with workers(3, redis_url, tmp_path, policy) as running:
            await wait_until(running.started, "the workers")
            batch = await fleet.submit([o.url(f"/{i}") for i in range(26) for o in origins.values()])
            results = await results_of(batch)

    assert {Outcome.STORED} == {result.outcome for result in results}
    assert dict.fromkeys(ANNOUNCING, 0) == {name: _throttles(origins[name]) for name in ANNOUNCING}
    assert _throttles(origins["silent"]) > 0
    assert 26 == len(origins["lying"].requests)


async def test_the_judge_detects_violations() -> None:
    """A client without limits sends the requests, so the assertions above can fail."""
    async with Origin.serving("127.0.3.16", OK) as origin:
        for _ in range(3):
            reader, writer = await asyncio.open_connection("127.0.3.16", int(origin.url("").split(":")[2]))
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            await reader.read()
            writer.close()
            await writer.wait_closed()
        seen = origin.requests

    assert 3 == len(requests_inside([(0.0, float("inf"))], seen))
    assert 2 == len(judge.repeats(seen))
    assert 3 == len(judge.closer_than(seen, 60, 1, 0.0))
    assert [] == judge.closer_than(seen, 60, 3, 0.0)
