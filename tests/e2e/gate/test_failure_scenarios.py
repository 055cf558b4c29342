"""Hosts that fail temporarily or permanently: three workers, measured at the hosts."""

import asyncio
from collections import Counter
from itertools import pairwise
from pathlib import Path

from fetchfleet import Fetch, Fleet, Outcome, Priority, Reason
from fetchfleet.jobs.client.dead_letters import DeadLetterFilter
from tests.support.origins import serve_origins
from tests.support.waiting import wait_until
from tests.support.workers import workers
from tools.one_worker import results_of
from tools.origin import judge
from tools.origin.behaviours import OK, by_path, latency, ok, reset, retry_after, slow, status
from tools.origin.server import Origin

BREAKER_FAILURES, RESET_S, CAP_S = 5, 0.6, 2.0
CONCURRENCY = 4
POLICY = f"""\
[default]
concurrency = {CONCURRENCY}
attempts = 100
retry_base_s = 0.05
retry_cap_s = 0.2
breaker_failures = {BREAKER_FAILURES}
breaker_reset_s = {RESET_S}
breaker_cap_s = {CAP_S}
"""
ROUGHLY_S = 0.1
"""The gate counts from when it reads a response, the host from when it writes it."""


async def test_a_failing_host_sees_a_few_requests_and_then_single_cheap_probes(
    redis_url: str, fleet: Fleet, tmp_path: Path
) -> None:
    """After the failure limit the host sees one probe at a time, at growing intervals. HEAD goes first."""
    async with (
        Origin.serving("127.0.3.21", latency(0.05, status(500))) as failing,
        Origin.serving("127.0.3.22", status(404)) as scolding,
        Origin.serving("127.0.3.23", retry_after(1, 429)) as throttling,
    ):
        with workers(3, redis_url, tmp_path, POLICY) as running:
            await wait_until(running.started, "the workers")
            scolded = await fleet.submit([scolding.url(f"/{i}") for i in range(100)])
            throttled = await fleet.submit([throttling.url(f"/{i}") for i in range(20)])
            batch = await fleet.submit(
                [Fetch(url=failing.url(f"/{i}")) for i in range(25)]
                + [Fetch(url=failing.url(f"/{i}"), method="HEAD") for i in range(25, 30)]
            )
            await wait_until(lambda: len(_after_opening(failing)) >= 3, "three probes", 30)
            probes = _after_opening(failing)
            throttling.behaviour = OK
            await batch.cancel()
            results = [result for one in (throttled, scolded) for result in await results_of(one)]
            opened = {line["lane"] for line in running.events("lane.breaker_open")}
            await results_of(batch)
    first = len(failing.requests) - len(_after_opening(failing))

    assert BREAKER_FAILURES <= first <= BREAKER_FAILURES + CONCURRENCY - 1
    assert 1 == judge.most_at_once(probes)
    assert {"HEAD"} == {probe.method for probe in probes}
    pauses = judge.gaps_of(probes)
    assert all(pause_s >= min(RESET_S * n, CAP_S) - ROUGHLY_S for n, pause_s in enumerate(pauses, 2)), pauses
    assert {"127.0.3.21"} == opened
    assert 100 == len(scolding.requests)
    assert {(404, 100), (200, 20)} == set(Counter(result.status for result in results).items())


def _after_opening(origin: Origin) -> list[judge.Seen]:
    """Return the requests after the first pause that a breaker makes."""
    seen = sorted(origin.requests, key=lambda request: request.arrived_s)
    pauses = (
        place
        for place, (before, after) in enumerate(pairwise(seen), 1)
        if after.arrived_s - before.arrived_s >= RESET_S - ROUGHLY_S
    )
    return seen[next(pauses, len(seen)) :]


async def test_a_dead_host_costs_tens_of_connections_and_its_fetches_can_be_retried(
    redis_url: str, fleet: Fleet, tmp_path: Path
) -> None:
    """Its 2,000 fetches become dead letters. Retried once the host is up, all are stored."""
    count = 2000
    async with Origin.serving("127.0.3.24", reset) as origin:
        with workers(3, redis_url, tmp_path, POLICY + "give_up_s = 1.5\n") as running:
            await wait_until(running.started, "the workers")
            batch = await fleet.submit([origin.url(f"/{i}") for i in range(count)])
            results = await results_of(batch)
            connections, dead = origin.connections_opened, running.events("lane.dead")
            letters = [letter async for letter in fleet.dead.iter()]
            origin.behaviour = OK
            retried = await fleet.dead.retry(DeadLetterFilter(reason=Reason.HOST_DEAD))
            again = [result for one in retried.batches for result in await results_of(fleet.batch(one))]
            left = [letter async for letter in fleet.dead.iter()]

    assert {(Outcome.FAILED, Reason.HOST_DEAD)} == {(result.outcome, result.reason) for result in results}
    assert (count, count) == (len(results), len({letter.id for letter in letters}))
    assert {"host_dead"} == {letter.reason for letter in letters}
    assert connections <= 40
    assert {"127.0.3.24"} == {line["lane"] for line in dead}
    assert (count, count, 0) == (retried.fetches, len(again), retried.left)
    assert {Outcome.STORED} == {result.outcome for result in again}
    assert [] == left


async def test_retries_are_a_small_share_of_the_requests_of_a_host(
    redis_url: str, fleet: Fleet, tmp_path: Path
) -> None:
    """Each URL that always fails gets its first request. The retry budget limits further ones."""
    policy = POLICY.replace(f"breaker_failures = {BREAKER_FAILURES}", "breaker_failures = 1000")
    behaviour = latency(0.01, by_path({"/bad": status(500), "/good": OK}))
    async with Origin.serving("127.0.3.25", behaviour) as origin:
        with workers(3, redis_url, tmp_path, policy) as running:
            await wait_until(running.started, "the workers")
            good = await fleet.submit(
                [Fetch(url=origin.url(f"/good/{i}"), priority=Priority.LOW) for i in range(600)]
            )
            bad = await fleet.submit([origin.url(f"/bad/{i}") for i in range(300)])
            stored = await results_of(good)
            seen = list(origin.requests)
            await bad.cancel()
            await results_of(bad)

    repeats, first_s = judge.repeats(seen), min(judge.arrivals_of(seen))
    took_s = max(judge.arrivals_of(seen)) - first_s
    assert {Outcome.STORED} == {result.outcome for result in stored}
    assert 300 == len({request.target for request in seen if request.target.startswith("/bad")})
    # The budget: a fifth of the requests or three in ten seconds, and a burst of three.
    assert len(repeats) <= max(0.2 * len(seen), 3 * took_s / 10) + 3
    assert len(repeats) > 0


BAD = {
    "throttled": ("127.0.3.26", retry_after(3600)),
    "slow": ("127.0.3.27", slow(b"drip", 0.5, 1000)),
    "dead": ("127.0.3.28", reset),
}
GOOD = {f"healthy {number}": (f"127.0.3.{number}", latency(0.01, ok(b"healthy"))) for number in range(31, 37)}


async def test_i15_bad_hosts_with_most_of_the_backlog_delay_no_other_host(
    redis_url: str, fleet: Fleet, tmp_path: Path
) -> None:
    """The healthy hosts are done while the throttled, the slow and the dead one still have a backlog."""
    async with serve_origins({**BAD, **GOOD}) as origins:
        with workers(3, redis_url, tmp_path, POLICY) as running:
            await wait_until(running.started, "the workers")
            bad = await fleet.submit([origins[name].url(f"/{i}") for i in range(300) for name in BAD])
            good = await fleet.submit([origins[name].url(f"/{i}") for i in range(16) for name in GOOD])
            async with asyncio.timeout(30):
                results = await results_of(good)
            waiting = await bad.counts()
            await bad.cancel()
            await results_of(bad)
    seen = {name: len(origins[name].requests) for name in BAD}

    assert {Outcome.STORED} == {result.outcome for result in results}
    assert (16 * len(GOOD), 0) == (len(results), waiting.done)
    assert seen["throttled"] <= CONCURRENCY
    assert seen["slow"] == CONCURRENCY
    assert BREAKER_FAILURES <= seen["dead"] <= 3 * BREAKER_FAILURES
