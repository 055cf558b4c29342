"""Acquiring lanes: a notification is only a hint, and each worker also searches for due lanes."""

import asyncio
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from redis.asyncio import Redis

from fetchfleet import Fleet, Outcome
from fetchfleet.jobs import keys
from fetchfleet.jobs.scripts import runner
from fetchfleet.jobs.scripts.submission import MAX_DUE_NOTIFICATIONS
from fetchfleet.worker.lanes.store import AcquireResult, LaneStore
from fetchfleet.worker.scheduler import acquire, balance
from fetchfleet.worker.scheduler.acquire import Acquirer
from tests.component.conftest import HOST, QUICK, Start, tuned
from tests.support.lanes import notifications, now_ms, state
from tests.support.origins import serve_origins
from tests.support.waiting import wait_until
from tools.one_worker import OneWorker, results_of
from tools.origin import behaviours as o
from tools.origin.server import Origin

HOSTS = [f"127.0.2.{number}" for number in range(1, 2 * MAX_DUE_NOTIFICATIONS + 1)]


async def lose_notifications(redis: Redis) -> None:
    """Delete arq's queue, and with it every notification."""
    await redis.delete(keys.QUEUE)
    assert await notifications(redis) == {}


async def test_lanes_without_a_notification_are_served(
    start: Start,
) -> None:
    """Only half of these lanes have one. The worker acquires three in a round trip."""
    worker = await start(timings=tuned(acquire_at_once=3))
    async with serve_origins({host: (host, o.OK) for host in HOSTS}) as hosts:
        results = await worker.results(host.url() for host in hosts.values())
        seen = [len(host.requests) for host in hosts.values()]

    assert [Outcome.STORED] * len(HOSTS) == [result.outcome for result in results]
    assert [1] * len(HOSTS) == seen


async def test_a_starting_worker_looks_for_due_lanes(
    origin: Origin, fleet: Fleet, redis: Redis, start: Start
) -> None:
    """A lost notification causes no delay."""
    batch = await fleet.submit([origin.url()])
    await lose_notifications(redis)

    await start()

    [result] = await results_of(batch)
    assert result.outcome is Outcome.STORED


async def test_a_worker_of_a_run_looks_for_its_first_lanes_until_it_has_one(
    origin: Origin, redis: Redis, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may start before the command has enqueued. Neither a notification nor a heartbeat is needed."""
    monkeypatch.setattr(acquire, "FIRST_LOOKS", sys.maxsize)
    worker = await start(timings=replace(QUICK, heartbeat_s=3600, sweep_s=3600), alone=True)
    await wait_until(lambda: not worker.runtime.acquirer.wanted.is_set(), "the first look")
    await worker.stop_arq_jobs()
    batch = await worker.submit([origin.url()])

    [result] = await results_of(batch)
    assert result.outcome is Outcome.STORED


async def test_a_worker_below_its_share_looks_for_due_lanes(
    origin: Origin, worker: OneWorker, redis: Redis
) -> None:
    """The number of due lanes comes with each heartbeat."""
    await wait_until(lambda: not worker.runtime.acquirer.wanted.is_set(), "the first look")
    await worker.stop_arq_jobs()
    batch = await worker.submit([origin.url()])
    await lose_notifications(redis)
    assert (await batch.counts()).done == 0

    worker.runtime.signals.apply_load(balance.FleetLoad(busy=1, workers=1))

    [result] = await results_of(batch)
    assert result.outcome is Outcome.STORED


async def test_a_worker_at_its_share_acquires_another_lane_when_one_is_empty(
    worker: OneWorker, redis: Redis
) -> None:
    """A rival is alive, so the share is two of four lanes."""
    await worker.stop_arq_jobs()
    await redis.zadd(keys.WORKERS, {"rival": await now_ms(redis) + 4_000})
    async with serve_origins({host: (host, o.OK) for host in HOSTS[:4]}) as hosts:
        batch = await worker.submit([host.url() for host in hosts.values()])
        worker.runtime.acquirer.look_soon()
        results = await results_of(batch)

    assert [Outcome.STORED] * 4 == [result.outcome for result in results]


async def test_lanes_acquired_during_a_stop_are_given_back(
    origin: Origin, worker: OneWorker, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In Redis the worker holds them, so others would wait for the leases to expire."""
    acquired, may_return = asyncio.Event(), asyncio.Event()
    take_many = LaneStore.acquire_many

    async def slow(self: LaneStore, *args: Any, **how: Any) -> list[AcquireResult | Exception]:
        found = await take_many(self, *args, **how)
        acquired.set()
        await may_return.wait()
        return found

    monkeypatch.setattr(LaneStore, "acquire_many", slow)
    await worker.stop_arq_jobs()
    await worker.submit([origin.url()])
    worker.runtime.acquirer.look_soon()
    await acquired.wait()
    stopping = asyncio.create_task(worker.runtime.stop())
    await wait_until(lambda: worker.runtime.stopping, "the worker to stop")
    assert await state(redis, HOST) == "held"
    may_return.set()
    await stopping

    assert await state(redis, HOST) == "scheduled"
    assert origin.requests == []


async def test_a_stopped_worker_leaves_no_redis_command_running(
    origin: Origin, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The claim hangs. A fixture checks that no task is left."""
    claiming = asyncio.Event()
    run_many = runner.run_many

    async def claims_hang(redis: Redis, calls: Sequence[runner.Call]) -> list[Any]:
        if any(call.script == "claim" for call in calls):
            claiming.set()
            await asyncio.Event().wait()
        return await run_many(redis, calls)

    monkeypatch.setattr(runner, "run_many", claims_hang)
    monkeypatch.setattr(Acquirer, "_first_claims", lambda *_: 0)
    worker = await start(lease_s=1.0, grace_s=0.0)
    batch = await worker.submit([origin.url()])
    await claiming.wait()

    await worker.stop()
    monkeypatch.undo()

    assert not [task for task in asyncio.all_tasks() if "Redis" in task.get_name()]
    assert (await batch.counts()).done == 0


async def test_the_only_fetch_of_a_lane_needs_no_separate_claim_or_release(
    origin: Origin, worker: OneWorker, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The acquisition claims it, and its settlement releases the lane."""
    scripts: list[str] = []
    run_many = runner.run_many

    async def start_marked(redis: Redis, calls: Sequence[runner.Call]) -> list[Any]:
        scripts.extend(call.script for call in calls)
        return await run_many(redis, calls)

    monkeypatch.setattr(runner, "run_many", start_marked)
    batch = await worker.submit([origin.url()])
    [result] = await results_of(batch)
    await wait_until(lambda: not worker.runtime.lanes, "the lane to be released")

    assert Outcome.STORED == result.outcome
    assert await state(redis, HOST) == "idle"
    assert "take" in scripts
    assert not {"claim", "release"} & {*scripts}
