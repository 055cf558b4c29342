"""Half an hour of faults in seconds: a worker's resources return to their initial level."""

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator, Iterator

import pytest

from fetchfleet import Result
from fetchfleet.worker.policy.model import Timeouts
from fetchfleet.worker.runtime.stats import open_files, rss_bytes
from tests.component.conftest import Lines, Start
from tests.support import tcp
from tests.support.waiting import wait_until
from tools.one_worker import OneWorker, results_of
from tools.origin import behaviours
from tools.origin import server as o
from tools.origin.server import Origin

FETCHES = int(os.environ.get("FETCHFLEET_TEST_SOAK_FETCHES", "1500"))
A_ROUND = 500
CANCELLED_A_ROUND = 24
HOST, OTHER_HOST = "127.0.63.11", "127.0.63.12"
POLICY = {
    "attempts": 1,  # retries would only wait
    "concurrency": 24,
    "breaker_failures": 1000,
    "timeout": Timeouts(connect_s=5, read_s=0.3, write_s=5, pool_s=5, total_s=60),
}
MAX_GROWTH_BYTES = 48 << 20
MAX_GROWTH_FILES = 16
"""Connections to Redis are opened on demand and kept."""


def faulty_behaviour(other: Origin) -> o.Behaviour:
    """Return the behaviour of a host that varies nine of forty responses, by the number in the path."""
    faults: dict[int, o.Behaviour] = {
        0: behaviours.reset,
        5: behaviours.stall_headers(1.0),
        10: behaviours.truncated(b"half", 100),
        15: behaviours.NOT_FOUND,
        20: behaviours.redirect("/hop/1"),
        25: behaviours.redirect(other.url),
        30: behaviours.slow(b"x" * 1000, 0.02, 5),
        35: behaviours.big(200_000),
        38: behaviours.reset_after(1000),
    }

    async def answer(x: o.Exchange) -> None:
        number = int(x.request.target.rpartition("/")[2])
        await faults.get(number % 40, behaviours.OK)(x)

    return behaviours.by_path({"/endless/": behaviours.slow(b"x", 0.1, 10_000), "/": answer})


@pytest.fixture
async def origins() -> AsyncIterator[tuple[Origin, Origin]]:
    """A host with many faults, and the one that some of its redirects lead to."""
    async with (
        Origin.serving(OTHER_HOST, behaviours.OK) as other,
        Origin.serving(HOST, faulty_behaviour(other)) as origin,
    ):
        yield origin, other


class Held:
    """A snapshot of the resources that the process holds."""

    def __init__(self) -> None:
        self.tasks = len(asyncio.all_tasks())
        self.files = open_files()
        self.rss_bytes = rss_bytes()


async def run_round(worker: OneWorker, origin: Origin, numbers: Iterator[int]) -> list[Result]:
    """Run some hundred fetches, cancel a batch under way, and wait until the worker is idle."""
    to_be_cancelled = await worker.submit(origin.url(f"/endless/{n}") for n in range(CANCELLED_A_ROUND))
    await wait_until(lambda: origin.in_progress >= CANCELLED_A_ROUND // 2, "the endless bodies")
    batch = await worker.submit(origin.url(f"/{next(numbers)}") for _ in range(A_ROUND))
    await to_be_cancelled.cancel()
    results = await results_of(batch) + await results_of(to_be_cancelled)
    await wait_until(lambda: not worker.runtime.lanes, "the lanes to be released", timeout_s=30)
    await wait_until(lambda: origin.in_progress == 0, "the origin to be idle")
    return results


@pytest.mark.timeout(120 + FETCHES // 50)
async def test_a_worker_leaks_nothing_under_faults(
    origins: tuple[Origin, Origin], start: Start, lines: Lines
) -> None:
    """Descriptors, tasks, memory and connections, after resets, timeouts, cancellations and redirects."""
    origin, other = origins
    left_by_others = tcp.connections(origin.url(), other.url())[
        "time_wait"
    ]  # by earlier tests on these hosts
    worker = await start(policy=POLICY, max_in_flight=64)
    numbers = iter(range(10 * FETCHES + A_ROUND))
    await run_round(worker, origin, numbers)
    before, ends = Held(), Counter[str]()
    for _ in range(FETCHES // A_ROUND):
        ends.update(result.reason or result.outcome for result in await run_round(worker, origin, numbers))
        origin.requests.clear()  # memory of the test, not of the worker
        lines.clear()

    await wait_until(lambda: len(asyncio.all_tasks()) <= before.tasks, "every task to end")
    hosts, traffic = tcp.connections(origin.url(), other.url()), worker.runtime.stats.traffic
    after, opened = Held(), origin.connections_opened + other.connections_opened
    made = FETCHES + A_ROUND

    assert ends.total() >= FETCHES
    assert {"stored", "http_status", "truncated", "cancelled"} <= ends.keys()
    assert {"listen", "time_wait"} >= hosts.keys(), "connections are still open"
    assert hosts["listen"] == 2
    assert traffic.opened == traffic.closed == opened
    assert hosts["time_wait"] - left_by_others <= opened < made / 2, "connections are used again and again"
    assert traffic.reused > made / 2
    assert after.files <= before.files + MAX_GROWTH_FILES
    assert after.rss_bytes <= before.rss_bytes + MAX_GROWTH_BYTES
