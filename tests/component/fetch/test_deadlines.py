"""Deadlines of attempts: far ones share a timer, near ones have their own."""

import asyncio

import pytest

from fetchfleet.worker.util.aio import NEAR_S, Deadlines


class Work:
    """Work that only its deadline ends."""

    def __init__(self) -> None:
        self.ended = asyncio.Event()

    def expire(self) -> None:
        """End the work; a second call fails."""
        assert not self.ended.is_set()
        self.ended.set()


async def outlast(own: Deadlines, left_s: float) -> None:
    """Return once the deadline has ended the work."""
    work = Work()
    own.add(work, left_s)
    await work.ended.wait()
    own.discard(work)


async def test_a_near_deadline_ends_its_work() -> None:
    """A deadline at most `near_s` away has its own timer."""
    await outlast(Deadlines(), 0.01)


async def test_far_deadlines_end_their_work_in_order() -> None:
    """Each gets a timer at the first check that finds it near."""
    own, ended = Deadlines(near_s=0.02, check_every_s=0.01), []

    async def bounded(left_s: float) -> None:
        await outlast(own, left_s)
        ended.append(left_s)

    await asyncio.gather(*(bounded(left_s) for left_s in (0.3, 0.1, 0.2)))

    assert ended == [0.1, 0.2, 0.3]


async def test_discarded_deadlines_end_nothing() -> None:
    """One is far and one near. Another deadline still ends its work."""
    own = Deadlines(near_s=0.02, check_every_s=0.01)
    far, near = Work(), Work()
    own.add(far, 0.05)
    own.add(near, 0.01)
    own.discard(far)
    own.discard(near)
    own.discard(near)

    await outlast(own, 0.1)

    assert not far.ended.is_set()
    assert not near.ended.is_set()


async def test_far_deadlines_share_one_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The timer fires every few seconds and checks all of them."""
    own, timers = Deadlines(), list[object]()

    def call_later(*_: object) -> object:
        timers.append(object())
        return timers[-1]

    monkeypatch.setattr(asyncio.get_running_loop(), "call_later", call_later)
    for _ in range(3):
        own.add(Work(), NEAR_S + 1)

    assert 1 == len(timers)
