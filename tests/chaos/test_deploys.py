"""Workers get SIGTERM at any time and repeatedly: nothing is lost, charged or stored twice."""

import asyncio
import signal
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from fetchfleet import Batch, Fleet, Outcome
from tests.support.named_workers import NamedWorker, named_workers, results_of
from tests.support.own_redis import OwnRedis, own_redis
from tests.support.waiting import wait_until
from tests.support.workers import QUICK_POLICY
from tools.origin.behaviours import latency, ok
from tools.origin.server import Behaviour, Exchange, Origin

GRACE_S = 0.5
SHORTS = 200
"""More than can be made in the grace period."""

RESTARTS = 10
LONG, BUSY = "127.0.2.60", "127.0.2.61"
SOON_S = 20.0
CONCURRENCY = 4
POLICY = f"{QUICK_POLICY}concurrency = {CONCURRENCY}\n"


class PausedResponses:
    """Behaviours of an origin that hold a response before its header or in its body."""

    def __init__(self) -> None:
        self.resume = asyncio.Event()

    async def head(self, x: Exchange) -> None:
        """Respond once `resume` is set."""
        await self.resume.wait()
        await x.respond(200, (), b"whole")

    async def body(self, x: Exchange) -> None:
        """Send a part of the body, and the rest once `resume` is set."""
        await x.send_head(200, [("Content-Length", "10")])
        await x.send(b"whole")
        await self.resume.wait()
        await x.send(b"whole")


@dataclass
class Setup:
    """A worker that is about to get SIGTERM, with its Redis, its host and its batch."""

    worker: NamedWorker
    origin: Origin
    batch: Batch
    server: OwnRedis


WaitFor = Callable[[Setup], Awaitable[object]]
"""Waits for a state of the worker."""


async def _at_start(_: Setup) -> None:
    """The worker is ready, and lanes are due."""


async def _acquiring(setup: Setup) -> None:
    await wait_until(lambda: setup.worker.events("lane.taken"), "a lane", SOON_S, 0.005)


async def _connecting(setup: Setup) -> None:
    await wait_until(lambda: setup.origin.connections_opened, "a connection", SOON_S, 0.005)


async def _in_flight(setup: Setup) -> None:
    await wait_until(lambda: setup.origin.in_progress, "a request", SOON_S)


async def _settling(setup: Setup) -> None:
    await wait_until(lambda: len(setup.origin.requests) >= 10, "responses", SOON_S, 0.005)


async def _idle(setup: Setup) -> None:
    await wait_until(lambda: _ended(setup.batch), "the end of the batch", SOON_S)


async def _without_redis(setup: Setup) -> None:
    await _in_flight(setup)
    await asyncio.to_thread(setup.server.kill)


async def _redis_frozen(setup: Setup) -> None:
    await _in_flight(setup)
    setup.server.freeze()


async def _stopping(setup: Setup) -> None:
    await _in_flight(setup)
    setup.worker.send(signal.SIGTERM)
    await wait_until(lambda: setup.worker.events("worker.stopping"), "the stop", SOON_S)


SHORT = "short"
STATES: dict[str, tuple[WaitFor, str]] = {
    "at its start": (_at_start, SHORT),
    "while it acquires a lane": (_acquiring, SHORT),
    "while it connects": (_connecting, SHORT),
    "while it waits for a header": (_in_flight, "head"),
    "in a body": (_in_flight, "body"),
    "while it settles": (_settling, SHORT),
    "while it is idle": (_idle, SHORT),
    "while Redis is down": (_without_redis, "body"),
    "while Redis is frozen": (_redis_frozen, "body"),
    "while it stops": (_stopping, "head"),
}


async def _ended(batch: Batch) -> bool:
    return (await batch.counts()).ended


async def terminated_at(name: str, number: int, folder: Path) -> None:
    """Terminate a worker in a state; another worker finishes the batch, with one result a fetch."""
    wait_for, kind = STATES[name]
    paused = PausedResponses()
    behaviours: dict[str, Behaviour] = {
        "head": paused.head,
        "body": paused.body,
        SHORT: latency(0.05, ok(b"whole")),
    }
    async with AsyncExitStack() as stack:
        origin = await stack.enter_async_context(Origin.serving(f"127.0.2.{number}", behaviours[kind]))
        server = stack.enter_context(own_redis())
        await wait_until(server.responds, "Redis")
        fleet = await stack.enter_async_context(Fleet(server.url))
        variables = {"FETCHFLEET_GRACE_S": str(GRACE_S), "FETCHFLEET_LEASE_S": "4"}
        workers = stack.enter_context(named_workers(server.url, folder / str(number), POLICY, **variables))
        count = SHORTS if kind == SHORT else 2
        batch = await fleet.submit(origin.url(f"/{n}") for n in range(count))
        worker = workers.start("first")
        await worker.started()
        await wait_for(Setup(worker, origin, batch, server))

        worker.send(signal.SIGTERM)
        await wait_until(lambda: worker.events("worker.stopping"), "the stop", SOON_S)
        before_stop = len(origin.requests)
        assert 0 == await worker.ended(), name
        made = len(origin.requests)
        if name == "while Redis is down":
            server.start()
        if name == "while Redis is frozen":
            server.thaw()
        await wait_until(server.responds, "Redis")
        paused.resume.set()
        await workers.start_all("second")
        results = await results_of(fleet, batch.id)
        await server.wait_until_clean()

        assert {(Outcome.STORED, 1)} == {(result.outcome, result.attempts) for result in results.values()}, (
            name
        )
        assert {0, 1} >= {result.interruptions for result in results.values()}, name
        assert count == len(results)
        assert made - before_stop <= CONCURRENCY, name  # requests in transit
        assert worker.events("worker.stopped"), name
        assert not workers.parts(), name
        if kind == SHORT and wait_for is not _idle:
            assert made < SHORTS, name
        if kind != SHORT:
            assert {1} == {result.interruptions for result in results.values()}, name
            assert all(seen.aborted for seen in origin.requests[:made]), name


async def test_i08_a_worker_finishes_a_long_fetch_within_its_grace_period(
    redis_url: str, fleet: Fleet, tmp_path: Path
) -> None:
    """It exits afterwards and returns no claim."""
    paused = PausedResponses()
    async with Origin.serving(LONG, paused.body) as long:
        with named_workers(redis_url, tmp_path / "fleet", POLICY, FETCHFLEET_GRACE_S="60") as workers:
            [worker] = await workers.start_all("worker")
            batch = await fleet.submit([long.url("/")])
            await wait_until(lambda: long.in_progress, "the long fetch", SOON_S)
            worker.send(signal.SIGTERM)
            await wait_until(lambda: worker.events("worker.stopping"), "the stop", SOON_S)
            paused.resume.set()
            assert 0 == await worker.ended()
            [result] = (await results_of(fleet, batch.id)).values()

    assert (Outcome.STORED, 1, 0) == (result.outcome, result.attempts, result.interruptions)
    assert 1 == len(long.requests)


async def test_i08_sigterm_at_any_moment_loses_nothing_and_ends_with_0(tmp_path: Path) -> None:
    """No fetch starts after it, no attempt is charged, and another worker repeats interrupted fetches."""
    ended = await asyncio.gather(
        *(terminated_at(name, number, tmp_path) for number, name in enumerate(STATES, 1)),
        return_exceptions=True,
    )
    failed = [error for error in ended if error is not None]
    assert not failed, failed


async def test_i07_ten_rolling_restarts_charge_a_long_fetch_no_attempt(
    redis_url: str, fleet: Fleet, tmp_path: Path
) -> None:
    """It is interrupted and repeated. Only interrupted fetches are requested twice."""
    paused = PausedResponses()
    async with (
        Origin.serving(LONG, paused.body) as long,
        Origin.serving(BUSY, latency(0.05, ok(b"short"))) as busy,
    ):
        with named_workers(redis_url, tmp_path / "fleet", POLICY, FETCHFLEET_GRACE_S="0.3") as workers:
            await workers.start_all("a", "b")
            batch = await fleet.submit([long.url("/"), *(busy.url(f"/{n}") for n in range(1500))])
            await wait_until(lambda: long.in_progress, "the long fetch", SOON_S)
            codes: list[int] = []
            for _ in range(RESTARTS // 2):
                for old, new in (("a", "b"), ("b", "a")):
                    codes.append(await workers.members[old].terminated())
                    replaced = workers.start(old)
                    await wait_until(lambda: long.in_progress, f"the long fetch at {new}", SOON_S)
                    await replaced.started()
            paused.resume.set()
            results = await results_of(fleet, batch.id)
            last = results.pop(long.url("/"))

    assert [0] * RESTARTS == codes
    assert (Outcome.STORED, 1) == (last.outcome, last.attempts)
    assert 2 <= last.interruptions == len(long.requests) - 1
    assert {(Outcome.STORED, 1)} == {(result.outcome, result.attempts) for result in results.values()}
    assert 1500 == len(results)
    assert len(busy.requests) <= 1500 + sum(result.interruptions for result in results.values())
    assert busy.high_water <= CONCURRENCY
