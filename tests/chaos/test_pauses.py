"""A worker stands still for longer than its lease, or loses a lane: what it does then counts no more."""

import asyncio
import signal
from functools import partial
from itertools import count
from pathlib import Path

from redis.asyncio import Redis

from fetchfleet import Fleet, Outcome, Result
from fetchfleet.jobs import keys
from tests.support.named_workers import named_workers, results_of
from tests.support.waiting import wait_until
from tests.support.workers import QUICK_POLICY
from tools.origin.server import Exchange, Origin

COMING, DUE = "127.0.0.218", "127.0.0.219"
RETOKENED, RENAMED = "127.0.0.220", "127.0.0.221"
AWAY = "ff:test:away"

HALF_BYTES = 700_000
"""More than is kept in memory: half a body is on disk."""

SOON_S = 15.0


class Halves:
    """Answers each request with a body of its own: half of it at once, the rest when that request may end."""

    def __init__(self) -> None:
        self.may_end = [asyncio.Event() for _ in range(10)]
        self.sent_all = [asyncio.Event() for _ in range(10)]
        self._numbers = count()

    async def __call__(self, x: Exchange) -> None:
        """The nth request's body is made of n."""
        number = next(self._numbers)
        half = b"%d" % number * HALF_BYTES
        await x.send_head(200, [("Content-Length", str(2 * HALF_BYTES))])
        await x.send(half)
        await self.may_end[number].wait()
        await x.send(half)
        self.sent_all[number].set()


async def test_i03_i06_a_worker_that_stood_still_writes_nothing_and_hangs_up(
    redis_url: str, fleet: Fleet, tmp_path: Path
) -> None:
    """Its fetches were done elsewhere: their results and files stay, its own requests end, its parts go.

    Be it that the rest of the body has come meanwhile, or that the host has still to send it.
    """
    come, due = Halves(), Halves()
    async with Origin.serving(COMING, come) as whole, Origin.serving(DUE, due) as half:
        with named_workers(redis_url, tmp_path / "fleet", QUICK_POLICY, FETCHFLEET_LEASE_S="3") as hands:
            [first] = await hands.start_all("first")
            batch = await fleet.submit([whole.url("/body"), half.url("/body")])
            await wait_until(lambda: len(hands.parts()) == 2, "two halves on disk")
            first.send(signal.SIGSTOP)
            come.may_end[0].set()
            [second] = await hands.start_all("second")
            for behaviour in (come, due):
                behaviour.may_end[1].set()
            results = await results_of(fleet, batch.id)
            first.send(signal.SIGCONT)
            await wait_until(lambda: half.requests[0].aborted, "the stale request's end", SOON_S)
            await wait_until(lambda: len(first.said("lane.lost")) == 2, "the end of both lanes", SOON_S)
            await wait_until(lambda: not hands.parts(), "the parts to go", SOON_S)
            counts = await batch.counts()
            bodies = {(hands.out / str(result.path)).read_bytes() for result in results.values()}
            told = first.said("fetch.finished")
            assert 0 == await second.terminated()

    assert {"second"} == {result.worker for result in results.values()}
    assert {(Outcome.STORED, 1, 1)} == {_ledger(result) for result in results.values()}
    assert {b"1" * 2 * HALF_BYTES} == bodies
    assert (2, [], 2) == (counts.done, told, len(hands.files()))


async def test_i06_a_lane_that_is_taken_away_is_let_go_of_within_a_renewal(
    redis_url: str, redis: Redis, fleet: Fleet, tmp_path: Path
) -> None:
    """With another's token on it, or gone: its request ends, its part goes, the next owner does it again."""
    by_token, by_name = Halves(), Halves()
    async with Origin.serving(RETOKENED, by_token) as one, Origin.serving(RENAMED, by_name) as two:
        with named_workers(redis_url, tmp_path / "fleet", QUICK_POLICY, FETCHFLEET_LEASE_S="3") as hands:
            [worker] = await hands.start_all("worker")
            batch = await fleet.submit([one.url("/body"), two.url("/body")])
            await wait_until(lambda: len(hands.parts()) == 2, "two halves on disk")
            await redis.hset(keys.lane(RETOKENED), "token", "0")  # type: ignore[misc]
            await redis.rename(keys.lane(RENAMED), AWAY)
            for origin in (one, two):
                await wait_until(partial(_aborted, origin), "the request's end", SOON_S)
            await wait_until(lambda: len(worker.said("lane.lost")) == 2, "the lanes' end", SOON_S)
            assert not hands.parts() | hands.files()
            await redis.rename(AWAY, keys.lane(RENAMED))
            await redis.zadd(keys.ATTENTION, {RENAMED: 1})
            for behaviour in (by_token, by_name):
                behaviour.may_end[1].set()
            results = await results_of(fleet, batch.id)

    assert {(Outcome.STORED, 1, 1)} == {_ledger(result) for result in results.values()}
    assert [2, 2] == [len(one.requests), len(two.requests)]


def _aborted(origin: Origin) -> bool:
    return origin.requests[0].aborted


def _ledger(result: Result) -> tuple[Outcome, int, int]:
    return result.outcome, result.attempts, result.interruptions
