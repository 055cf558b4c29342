"""Isolation: while a suspect starts, no other fetch starts. Then the worker continues in any case."""

import asyncio

import pytest

from fetchfleet.worker.fetch.isolation import Isolation

LONG_S = 3600.0


async def begin(isolation: Isolation, fetch_id: str) -> asyncio.Task[None]:
    """Return the task of a suspect that has closed the worker to others, or waits for its turn."""
    task = asyncio.create_task(isolation.begin(fetch_id))
    await asyncio.sleep(0)
    return task


async def test_others_wait_from_before_the_start_until_the_worker_has_outlived_it() -> None:
    """Waiting lanes are woken once."""
    isolation, woken = Isolation(soon_s=0.0), list[str]()
    assert not isolation.closed
    suspect = await begin(isolation, "suspect")
    assert isolation.closed
    isolation.wake_when_open(lambda: woken.append("lane"))
    marked = asyncio.create_task(isolation.wait_open())
    await suspect
    isolation.outlived("another")
    assert (isolation.closed, woken, marked.done()) == (True, [], False)

    isolation.outlived("suspect")
    await marked
    isolation.end()
    assert (isolation.closed, woken) == (False, ["lane"])


async def test_the_next_suspect_waits_for_the_end_of_the_first() -> None:
    """A suspect that runs for long delays only other suspects."""
    isolation = Isolation(soon_s=0.0)
    await isolation.begin("first")
    second = await begin(isolation, "second")
    isolation.outlived("first")
    assert not isolation.closed
    assert not second.done()

    isolation.end()
    await second
    assert isolation.closed
    isolation.outlived("first")  # Redis answers late
    assert isolation.closed
    isolation.end()
    assert not isolation.closed


async def test_a_lane_that_waits_is_woken_before_the_next_suspect_closes_the_worker() -> None:
    """Consecutive suspects do not starve the others."""
    isolation, started = Isolation(soon_s=0.0), asyncio.Event()
    await isolation.begin("first")
    second = await begin(isolation, "second")
    isolation.wake_when_open(started.set)

    async def lane() -> bool:
        await started.wait()
        return not isolation.closed

    waiting = asyncio.create_task(lane())
    await asyncio.sleep(0)
    isolation.end()
    assert await waiting
    await second
    isolation.end()


@pytest.mark.parametrize("holder", [False, True], ids=["before its start", "before its turn"])
async def test_a_suspect_that_is_stopped_leaves_the_worker_open(holder: bool) -> None:  # noqa: FBT001
    """The loss of its lane or its deadline may cancel the suspect."""
    isolation = Isolation(soon_s=LONG_S)
    first = await begin(isolation, "first")
    second = await begin(isolation, "second")
    stopped, other = (second, first) if holder else (first, second)
    stopped.cancel()
    await asyncio.wait([stopped])
    assert stopped.cancelled()
    await asyncio.sleep(0)
    assert isolation.closed

    other.cancel()
    await asyncio.wait([other])
    assert not isolation.closed
    third = await begin(isolation, "third")
    assert isolation.closed
    third.cancel()
    await asyncio.wait([third])


async def test_others_start_after_a_timeout_if_redis_does_not_answer() -> None:
    """The suspect continues meanwhile, and no other suspect runs beside it."""
    isolation = Isolation(soon_s=0.0, max_closed_s=0.01)
    await isolation.begin("first")
    await isolation.wait_open()
    second = await begin(isolation, "second")
    assert not second.done()
    isolation.end()
    await second
    isolation.end()
