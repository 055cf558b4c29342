"""The time that attempts have: far bounds end what they bound as near ones do."""

import asyncio

from fetchfleet.worker.util.aio import NEAR_S, Deadlines


async def outlast(own: Deadlines, left_s: float) -> bool:
    """Whether the bound has ended what would never end; it is gone then."""
    bound = own.timeout(left_s)
    try:
        async with bound:
            await asyncio.Event().wait()
    except TimeoutError:
        return bound.expired()
    finally:
        own.over(bound)
    return False


async def test_a_near_bound_ends_its_block() -> None:
    """As asyncio's own does."""
    assert await outlast(Deadlines(), 0.01)


async def test_far_bounds_end_their_blocks_once_they_have_come_near() -> None:
    """Each in its time, also those that were far at more than one look."""
    own, ended = Deadlines(near_s=0.02, look_every_s=0.01), []

    async def bounded(left_s: float) -> None:
        assert await outlast(own, left_s)
        ended.append(left_s)

    await asyncio.gather(*(bounded(left_s) for left_s in (0.3, 0.1, 0.2)))

    assert ended == [0.1, 0.2, 0.3]


async def test_a_bound_whose_block_has_ended_ends_nothing() -> None:
    """What comes after the block has as long as it takes; other bounds hold on."""
    own = Deadlines(near_s=0.02, look_every_s=0.01)
    bound = own.timeout(0.05)
    async with bound:
        pass
    own.over(bound)

    assert await outlast(own, 0.1)
    assert not bound.expired()


async def test_a_far_bound_has_no_timer() -> None:
    """It is what it costs least to forget."""
    own = Deadlines()
    bound = own.timeout(NEAR_S + 1)
    async with bound:
        assert bound.when() is None
    own.over(bound)
