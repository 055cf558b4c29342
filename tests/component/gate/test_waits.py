"""Waits: for a change in a lane, and for the end of a task that must not be interrupted."""

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
    """Return a lane that changes only by notification."""
    return Lane(LANE, 1, LanePolicy(), GateState(), RedisClock())


async def test_a_wait_for_a_change_ends_with_the_change(lane: Lane) -> None:
    """A change right before the wait ends it too."""
    waiting = asyncio.create_task(lane.changed(math.inf))
    await asyncio.sleep(0)
    lane.notify()
    await waiting

    lane.notify()
    await lane.changed(LONG_S)


async def test_a_wait_ends_in_time_after_a_longer_wait_ended_early(lane: Lane) -> None:
    """The timer of the longer wait is still set."""
    lane.notify()
    await lane.changed(LONG_S)

    await lane.changed(0.01)
    await lane.changed(0.01)


async def test_waits_end_in_time_after_a_shorter_wait_ended_early(lane: Lane) -> None:
    """The timer of the first wait may end the second. The third has its own."""
    lane.notify()
    await lane.changed(0.05)

    await lane.changed(0.1)
    await lane.changed(0.1)


async def test_a_wait_for_the_end_of_a_task_survives_cancellation() -> None:
    """A body gets its name before its fetch continues."""
    done: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    ends: list[str] = []

    async def wait() -> None:
        await aio.wait_until_done(done)
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


async def test_a_wait_for_the_end_of_a_task_does_not_raise_its_error() -> None:
    """The error is raised by `result()`."""
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    waiting = asyncio.create_task(aio.wait_until_done(done))
    await asyncio.sleep(0)
    done.set_exception(ValueError("no"))

    await waiting

    with pytest.raises(ValueError, match="no"):
        done.result()
