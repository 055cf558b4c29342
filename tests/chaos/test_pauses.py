"""A worker that is frozen beyond its lease, or loses a lane: its late work has no effect."""

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

COMPLETED, INCOMPLETE = "127.0.0.218", "127.0.0.219"
RETOKENED, RENAMED = "127.0.0.220", "127.0.0.221"
AWAY = "ff:test:away"

HALF_BYTES = 700_000
"""More than is buffered in memory, so that half a body is on disk."""

SOON_S = 15.0


class Halves:
    """Responds to each request with a different body, and sends its second half when `may_end` is set."""

    def __init__(self) -> None:
        self.may_end = [asyncio.Event() for _ in range(10)]
        self.sent_all = [asyncio.Event() for _ in range(10)]
        self._numbers = count()

    async def __call__(self, x: Exchange) -> None:
        """Respond to request number n with a body that repeats n."""
        number = next(self._numbers)
        half = b"%d" % number * HALF_BYTES
        await x.send_head(200, [("Content-Length", str(2 * HALF_BYTES))])
        await x.send(half)
        await self.may_end[number].wait()
        await x.send(half)
        self.sent_all[number].set()


async def test_i03_i06_a_frozen_worker_writes_nothing_and_closes_its_requests_afterwards(
    redis_url: str, fleet: Fleet, tmp_path: Path
) -> None:
    """Results and files of the next owner stay. The worker aborts its requests and removes its partial files.

    The host completed one of its two bodies meanwhile.
    """
    completed, incomplete = Halves(), Halves()
    async with Origin.serving(COMPLETED, completed) as whole, Origin.serving(INCOMPLETE, incomplete) as half:
        with named_workers(redis_url, tmp_path / "fleet", QUICK_POLICY, FETCHFLEET_LEASE_S="3") as workers:
            [first] = await workers.start_all("first")
            batch = await fleet.submit([whole.url("/body"), half.url("/body")])
            await wait_until(lambda: len(workers.parts()) == 2, "two halves on disk")
            first.send(signal.SIGSTOP)
            completed.may_end[0].set()
            [second] = await workers.start_all("second")
            for behaviour in (completed, incomplete):
                behaviour.may_end[1].set()
            results = await results_of(fleet, batch.id)
            first.send(signal.SIGCONT)
            await wait_until(lambda: half.requests[0].aborted, "the end of the stale request", SOON_S)
            await wait_until(lambda: len(first.events("lane.lost")) == 2, "the end of both lanes", SOON_S)
            await wait_until(lambda: not workers.parts(), "the partial files to be removed", SOON_S)
            counts = await batch.counts()
            bodies = {(workers.out / str(result.path)).read_bytes() for result in results.values()}
            finished = first.events("fetch.finished")
            assert 0 == await second.terminated()

    assert {"second"} == {result.worker for result in results.values()}
    assert {(Outcome.STORED, 1, 1)} == {_counters(result) for result in results.values()}
    assert {b"1" * 2 * HALF_BYTES} == bodies
    assert (2, [], 2) == (counts.done, finished, len(workers.files()))


async def test_i06_a_worker_gives_up_a_lost_lane_within_a_renewal(
    redis_url: str, redis: Redis, fleet: Fleet, tmp_path: Path
) -> None:
    """The token of the lane changes, or its key is gone. Requests end, and the fetch is repeated."""
    by_token, by_name = Halves(), Halves()
    async with Origin.serving(RETOKENED, by_token) as one, Origin.serving(RENAMED, by_name) as two:
        with named_workers(redis_url, tmp_path / "fleet", QUICK_POLICY, FETCHFLEET_LEASE_S="3") as workers:
            [worker] = await workers.start_all("worker")
            batch = await fleet.submit([one.url("/body"), two.url("/body")])
            await wait_until(lambda: len(workers.parts()) == 2, "two halves on disk")
            await redis.hset(keys.lane(RETOKENED), "token", "0")  # type: ignore[misc]
            await redis.rename(keys.lane(RENAMED), AWAY)
            for origin in (one, two):
                await wait_until(partial(_aborted, origin), "the end of the request", SOON_S)
            await wait_until(lambda: len(worker.events("lane.lost")) == 2, "the end of both lanes", SOON_S)
            assert not workers.parts() | workers.files()
            await redis.rename(AWAY, keys.lane(RENAMED))
            await redis.zadd(keys.ATTENTION, {RENAMED: 1})
            for behaviour in (by_token, by_name):
                behaviour.may_end[1].set()
            results = await results_of(fleet, batch.id)

    assert {(Outcome.STORED, 1, 1)} == {_counters(result) for result in results.values()}
    assert [2, 2] == [len(one.requests), len(two.requests)]


def _aborted(origin: Origin) -> bool:
    return origin.requests[0].aborted


def _counters(result: Result) -> tuple[Outcome, int, int]:
    return result.outcome, result.attempts, result.interruptions
