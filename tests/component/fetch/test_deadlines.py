"""The time that attempts have: far deadlines end their work as near ones do."""

import asyncio

import pytest

from fetchfleet.worker.util.aio import NEAR_S, Deadlines


class Work:
    """Work that would never end by itself."""

    def __init__(self) -> None:
        self.ended = asyncio.Event()

    def expire(self) -> None:
        """End it."""
        assert not self.ended.is_set()
        self.ended.set()


async def outlast(own: Deadlines, left_s: float) -> None:
    """Return once the deadline has ended work that would never end."""
    work = Work()
    own.add(work, left_s)
    await work.ended.wait()
    own.discard(work)


async def test_a_near_deadline_ends_its_work() -> None:
    """It has a timer of its own."""
    await outlast(Deadlines(), 0.01)


async def test_far_deadlines_end_their_work_once_they_have_come_near() -> None:
    """Each in its time, also those that were far at more than one look."""
    own, ended = Deadlines(near_s=0.02, look_every_s=0.01), []

    async def bounded(left_s: float) -> None:
        await outlast(own, left_s)
        ended.append(left_s)

    await asyncio.gather(*(bounded(left_s) for left_s in (0.3, 0.1, 0.2)))

    assert ended == [0.1, 0.2, 0.3]


async def test_discarded_deadlines_end_nothing() -> None:
    """Neither a far one, nor one that has come near; other deadlines hold on."""
    own = Deadlines(near_s=0.02, look_every_s=0.01)
    far, near = Work(), Work()
    own.add(far, 0.05)
    own.add(near, 0.01)
    own.discard(far)
    own.discard(near)
    own.discard(near)

    await outlast(own, 0.1)

    assert not far.ended.is_set()
    assert not near.ended.is_set()


async def test_far_deadlines_have_no_timers(monkeypatch: pytest.MonkeyPatch) -> None:
    """One timer looks at all of them every few seconds."""
    own, timers = Deadlines(), list[object]()

    def call_later(*_: object) -> object:
        timers.append(object())
        return timers[-1]

    monkeypatch.setattr(asyncio.get_running_loop(), "call_later", call_later)
    for _ in range(3):
        own.add(Work(), NEAR_S + 1)

    assert 1 == len(timers)
