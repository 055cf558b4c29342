"""The slots of a worker: acquired while some are free, else waited for in order."""

import asyncio

from fetchfleet.worker.util.aio import Slots


async def test_slots_are_acquired_while_some_are_free() -> None:
    """A released slot can be acquired again."""
    slots = Slots(2)

    assert [True, True, False] == [slots.take() for _ in range(3)]
    slots.release()
    assert [True, False] == [slots.take() for _ in range(2)]


async def test_a_released_slot_goes_to_the_first_in_the_queue() -> None:
    """No other caller can acquire it before."""
    slots = Slots(1)
    assert slots.take()
    first, second = slots.queue(), slots.queue()

    slots.release()

    assert not slots.take()
    assert [True, False] == [first.done(), second.done()]
    assert slots.leave(first)
    slots.release()
    assert second.done()


async def test_a_waiter_that_leaves_the_queue_gets_no_slot() -> None:
    """The slot goes to the next waiter, or becomes free."""
    slots = Slots(1)
    had = slots.queue()
    leaving, staying = slots.queue(), slots.queue()

    assert not slots.leave(leaving)
    slots.release()

    assert had.done()
    assert not leaving.done()
    await asyncio.wait_for(staying, 1)
