"""Waiting for a change in a lane, and for the end of what must not be left half done."""

import asyncio
import math

import pytest

from fetchfleet.worker.gate.state import GateState
from fetchfleet.worker.lanes.lane import Lane
from fetchfleet.worker.policy.model import LanePolicy
from fetchfleet.worker.util import aio
from fetchfleet.worker.util.clock import RedisClock
from tests.support.lanes import LANE
from tests.support.waiting import wait_until

LONG_S = 3600.0


@pytest.fixture
def lane() -> Lane:
    """A lane in which nothing happens by itself."""
    return Lane(LANE, 1, LanePolicy(), GateState(), RedisClock())


async def test_a_wait_ends_with_a_change(lane: Lane) -> None:
    """However long it might have lasted, and also when the change came a moment before it."""
    waiting = asyncio.create_task(lane.changed(math.inf))
    await asyncio.sleep(0)
    lane.notify()
    await waiting

    lane.notify()
    await lane.changed(LONG_S)


async def test_a_wait_ends_in_time_although_a_longer_one_was_left_early(lane: Lane) -> None:
    """What was to be looked at in an hour says nothing of what is to be looked at now."""
    lane.notify()
    await lane.changed(LONG_S)

    await lane.changed(0.01)
    await lane.changed(0.01)


async def test_after_a_wait_that_was_left_early_each_wait_still_ends(lane: Lane) -> None:
    """The look of the first one may end the second; the third has one of its own."""
    lane.notify()
    await lane.changed(0.05)

    await lane.changed(0.1)
    await lane.changed(0.1)


async def test_the_end_of_a_task_is_waited_for_however_often_the_wait_is_cancelled() -> None:
    """What is being put in its place is in its place before its fetch goes on."""
    done: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    ends: list[str] = []

    async def wait() -> None:
        await aio.end_of(done)
        ends.append(done.result())

    waiting = asyncio.create_task(wait())
    for _ in range(3):
        await asyncio.sleep(0)
        waiting.cancel()
    await asyncio.sleep(0)
    assert not waiting.done()

    done.set_result("there")
    await wait_until(waiting.done, "the wait to end", 5)
    assert ends == ["there"]


async def test_what_a_task_raises_is_left_to_who_asks_for_it() -> None:
    """Waiting for its end says only that it has ended."""
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    waiting = asyncio.create_task(aio.end_of(done))
    await asyncio.sleep(0)
    done.set_exception(ValueError("no"))

    await waiting

    with pytest.raises(ValueError, match="no"):
        done.result()
