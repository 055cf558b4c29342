"""Bugs of the worker: each is logged, and no fetch or loop waits forever because of one."""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from fetchfleet import Outcome, Reason
from fetchfleet.jobs.contract.entry import Entry
from fetchfleet.worker.fetch.run import run_fetch
from fetchfleet.worker.fetch.services import FetchSession
from fetchfleet.worker.lanes.settler import Settler
from fetchfleet.worker.runtime.heartbeat import Heartbeat
from fetchfleet.worker.scheduler import lane_loop
from tests.component.conftest import QUICK, Lines, Start
from tests.support.waiting import wait_until
from tools.origin.server import Origin

Call = Callable[..., Awaitable[Any]]
FAILURES = 3


def failing_at_first(call: Call, calls: list[str]) -> Call:
    """Return the call, which fails the first few times; each call is recorded."""

    async def made(*how: Any) -> Any:
        calls.append("")
        if len(calls) <= FAILURES:
            raise ZeroDivisionError("a bug")
        return await call(*how)

    return made


async def test_a_bug_in_a_fetch_ends_that_fetch_alone_as_poison(
    origin: Origin, start: Start, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It counts as a crash. After three the fetch ends, although its lane was never released."""

    async def run(session: FetchSession, entry: Entry) -> None:
        if entry.fetch.url.endswith("/bug"):
            raise ZeroDivisionError("a bug")
        await run_fetch(session, entry)

    monkeypatch.setattr(lane_loop, "run_fetch", run)
    worker = await start()
    results = await worker.run([origin.url("/bug"), *(origin.url(f"/{n}") for n in range(20))])

    bug = results.pop(origin.url("/bug"))
    assert (Outcome.FAILED, Reason.POISON, 3) == (bug.outcome, bug.reason, bug.interruptions)
    assert {Outcome.STORED} == {result.outcome for result in results.values()}
    logged = [line for line in lines if line["event"] == "fetch.bug"]
    assert [bug.id] * 3 == [line["id"] for line in logged]
    assert all("ZeroDivisionError" in line["error"] and "run" in line["trace"] for line in logged)


@pytest.mark.parametrize(
    ("kind", "name", "loop"), [(Heartbeat, "send", "heartbeat"), (Settler, "_write", "settle")]
)
async def test_a_loop_of_the_worker_continues_after_a_bug(
    origin: Origin,
    start: Start,
    lines: Lines,
    monkeypatch: pytest.MonkeyPatch,
    kind: type,
    name: str,
    loop: str,
) -> None:
    """A repeated bug is logged once, and the work in hand is not lost."""
    worker = await start(timings=replace(QUICK, heartbeat_s=0.05, restart_s=0.05))
    calls: list[str] = []
    monkeypatch.setattr(kind, name, failing_at_first(getattr(kind, name), calls))
    result = await worker.one(origin.url())
    await wait_until(
        lambda: [line for line in lines if line["event"] == "worker.bug"], "the bug to be logged"
    )
    await wait_until(lambda: len(calls) > FAILURES, "the end of the bug")

    assert Outcome.STORED == result.outcome
    assert [loop] == [line["loop"] for line in lines if line["event"] == "worker.bug"]
