"""A result that another thread computes, and callers that are cancelled."""

import asyncio

import pytest

from fetchfleet.worker.util.aio import Pending


async def test_a_cancelled_caller_leaves_the_outcome_to_the_next() -> None:
    """The work continues in its thread, and a later caller gets the result."""
    pending: Pending[int] = Pending()
    first = asyncio.create_task(pending.result())
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait([first])
    second = asyncio.create_task(pending.result())
    await asyncio.sleep(0)
    pending.set_result(7)
    pending.notify()

    assert first.cancelled()
    assert await second == 7


async def test_an_error_is_raised_to_every_caller() -> None:
    """A block that could not be written fails each later step of its body."""
    pending: Pending[int] = Pending()
    pending.set_error(OSError("full"))

    for _ in range(2):
        with pytest.raises(OSError, match="full"):
            await pending.result()
