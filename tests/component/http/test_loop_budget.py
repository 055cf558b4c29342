"""Responses that arrive together do not occupy the event loop for long."""

import asyncio
from collections import Counter

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from fetchfleet import Outcome
from fetchfleet.worker.lanes.store import LaneStore
from fetchfleet.worker.util.aio import LoopBudget
from tests.component.conftest import Lines, Start
from tests.support.waiting import wait_until
from tools.origin.server import Exchange, Origin


class Loop:
    """Counts the iterations of the running loop."""

    def __init__(self) -> None:
        self.turn = 0
        self._count()

    def _count(self) -> None:
        self.turn += 1
        self._next = asyncio.get_running_loop().call_soon(self._count)

    def stop(self) -> None:
        """Stop counting."""
        self._next.cancel()


async def test_a_budget_bounds_the_steps_of_one_loop_iteration_and_keeps_their_order() -> None:
    """Every step is made."""
    budget, loop = LoopBudget(steps=4), Loop()
    went: list[tuple[int, int]] = []

    async def goes(number: int) -> None:
        await budget.take()
        went.append((number, loop.turn))

    await asyncio.gather(*(goes(number) for number in range(50)))
    loop.stop()

    assert [number for number, _ in went] == list(range(50))
    assert max(Counter(turn for _, turn in went).values()) <= 4


async def test_steps_within_the_budget_do_not_wait() -> None:
    """All are made in the current iteration."""
    budget = LoopBudget(steps=4)
    loop = Loop()
    for _ in range(4):
        await budget.take()
    loop.stop()

    assert loop.turn == 1


async def test_a_cancelled_step_uses_no_budget() -> None:
    """The following steps are made."""
    budget = LoopBudget(steps=1)
    waiting = [asyncio.create_task(budget.take()) for _ in range(6)]
    await asyncio.sleep(0)
    for task in waiting[1:5]:
        task.cancel()

    await waiting[5]

    assert [task.cancelled() for task in waiting] == [False, *[True] * 4, False]


async def test_a_lease_outlives_renewals_that_fail(
    origin: Origin, start: Start, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failed renewal is repeated at once, not when the next is due."""
    go_on = asyncio.Event()
    renew, failures = LaneStore.renew, 0

    async def trouble(self: LaneStore, lanes: list[tuple[str, int]]) -> object:
        nonlocal failures
        if lanes and failures < 3:
            failures += 1
            raise RedisConnectionError("gone for a moment")
        return await renew(self, lanes)

    async def waits(x: Exchange) -> None:
        await go_on.wait()
        await x.respond(200, (), b"ok")

    monkeypatch.setattr(LaneStore, "renew", trouble)
    origin.behaviour = waits
    worker = await start(lease_s=3.0)
    batch = await worker.submit([origin.url()])
    await wait_until(lambda: origin.requests, "the request")
    [lane] = worker.runtime.lanes.values()
    lease_ends_s = lane.lease_ends_s
    await wait_until(lambda: lane.lease_ends_s > lease_ends_s or lane.lapsed, "the renewal")
    go_on.set()

    assert [result.outcome async for result in batch.results()] == [Outcome.STORED]
    assert failures == 3
    assert not [line for line in lines if line["event"] == "lane.lapsed"]
