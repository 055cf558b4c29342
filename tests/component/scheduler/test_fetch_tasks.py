"""The tasks in which a lane runs its fetches."""

import asyncio
from typing import Any

import pytest

from fetchfleet import Outcome
from fetchfleet.jobs.contract.entry import Entry
from fetchfleet.worker.fetch.run import run_fetch
from fetchfleet.worker.fetch.services import FetchSession
from fetchfleet.worker.lanes import lane
from fetchfleet.worker.scheduler import lane_loop
from tests.component.conftest import Start
from tests.support.waiting import wait_until
from tools.one_worker import results_of
from tools.origin.behaviours import by_path, ok, silent
from tools.origin.server import Origin

ONE_AT_ONCE = {"concurrency": 1}


@pytest.fixture
def tasks(monkeypatch: pytest.MonkeyPatch) -> dict[str, asyncio.Task[Any] | None]:
    """Return the task of each fetch, by the path of its URL; a claim has up to eight fetches."""
    ran: dict[str, asyncio.Task[Any] | None] = {}

    async def run(session: FetchSession, entry: Entry) -> None:
        ran[entry.url.rpartition("/")[2]] = asyncio.current_task()
        await run_fetch(session, entry)

    monkeypatch.setattr(lane_loop, "run_fetch", run)
    monkeypatch.setattr(lane, "claim_size", lambda *_: 8)
    return ran


async def test_a_task_runs_one_claimed_fetch_after_the_other(
    origin: Origin, start: Start, tasks: dict[str, asyncio.Task[Any] | None]
) -> None:
    """One fetch is claimed as the lane is acquired, and the others by one claim: two tasks run all."""
    worker = await start(policy=ONE_AT_ONCE)
    results = await worker.run([origin.url(f"/{number}") for number in range(8)])

    assert {Outcome.STORED} == {result.outcome for result in results.values()}
    assert (8, 2) == (len(tasks), len(set(tasks.values())))


async def test_a_task_that_is_cancelled_runs_no_other_fetch(
    origin: Origin, start: Start, tasks: dict[str, asyncio.Task[Any] | None]
) -> None:
    """The fetches after a cancelled one run in another task."""
    origin.behaviour = by_path({"/slow": silent}, ok())
    worker = await start(policy=ONE_AT_ONCE)
    slow = await worker.submit([origin.url("/slow")])
    others = await worker.submit([origin.url(f"/{number}") for number in range(3)])
    await wait_until(lambda: "slow" in tasks, "the slow fetch runs")

    await slow.cancel()

    assert [Outcome.STORED] * 3 == [result.outcome for result in await results_of(others)]
    assert (4, 2) == (len(tasks), len(set(tasks.values())))
