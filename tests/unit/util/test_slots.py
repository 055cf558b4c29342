"""The slots of a worker: taken while some are free, else waited for in order."""

import asyncio

from fetchfleet.worker.util.aio import Slots


async def test_slots_are_taken_while_there_are_some() -> None:
    """Each that is released may be taken again."""
    slots = Slots(2)

    assert [True, True, False] == [slots.take() for _ in range(3)]
    slots.release()
    assert [True, False] == [slots.take() for _ in range(2)]


async def test_a_released_slot_goes_to_the_first_in_the_queue() -> None:
    """No other caller can take it before."""
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
    """The slot goes to the next waiter; a free slot is given at once."""
    slots = Slots(1)
    had = slots.queue()
    leaving, staying = slots.queue(), slots.queue()

    assert not slots.leave(leaving)
    slots.release()

    assert had.done()
    assert not leaving.done()
    await asyncio.wait_for(staying, 1)
