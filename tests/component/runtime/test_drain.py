"""A drained worker hands its lanes to the others, and takes in nothing until the drain ends."""

from dataclasses import replace

import pytest
from redis.asyncio import Redis

from fetchfleet import Outcome
from fetchfleet.jobs import keys
from fetchfleet.jobs.notify import arq_client
from fetchfleet.jobs.redis_connection import connection_pool
from fetchfleet.worker.inspect.explain import explain_lane
from fetchfleet.worker.inspect.fleet_status import fleet_status
from fetchfleet.worker.inspect.snapshot import instances_named, is_alive
from fetchfleet.worker.intake.inbox import InboxTimings
from fetchfleet.worker.policy.file import Policy
from fetchfleet.worker.redis_support import drains
from fetchfleet.worker.runtime.timings import WorkerTimings
from tests.component.conftest import HOST, Lines, Start, tuned
from tests.support.lanes import now_ms
from tests.support.waiting import wait_until
from tools.one_worker import OneWorker, results_of
from tools.origin import behaviours as o
from tools.origin.server import Origin


@pytest.fixture
def timings() -> WorkerTimings:
    """Return timings: drains are read many times a second, and fetches are stopped after 0.1 s."""
    inbox = InboxTimings(other_owner_s=0.02)
    return replace(tuned(release_within_s=0.1), heartbeat_s=0.05, inbox=inbox)


async def is_drained(worker: OneWorker) -> None:
    """Wait until the worker holds no lane and takes none."""
    live = worker.runtime.live_lanes
    await wait_until(lambda: live.drained.is_set() and not worker.runtime.lanes, "the worker to be drained")


async def test_a_drained_worker_hands_its_lanes_to_the_others(
    origin: Origin, other: Origin, start: Start, redis: Redis, lines: Lines
) -> None:
    """A fetch that does not end soon returns to the queue, uncharged. Status shows the drain."""
    one = await start(worker_id="one")
    origin.behaviour = o.stall_headers(60)
    batch = await one.submit([origin.url("/slow")])
    await wait_until(lambda: origin.in_progress, "the slow fetch")
    origin.behaviour = o.OK
    two = await start(worker_id="two")
    instance = one.runtime.registration.instance
    await drains.drain(redis, instance, await now_ms(redis))
    await is_drained(one)
    [handed_back] = await results_of(batch)
    later = await results_of(await one.submit([origin.url("/2"), other.url("/2")]))

    status = {worker.id: worker.draining for worker in (await fleet_status(redis)).workers}
    assert {"one": True, "two": False} == status
    assert ("two", Outcome.STORED) == (handed_back.worker, handed_back.outcome)
    assert (1, 1) == (handed_back.attempts, handed_back.interruptions)
    assert {"two"} == {result.worker for result in later}
    assert [instance] == await instances_named(redis, "one")
    assert await is_alive(redis, "one")
    assert [two.runtime.registration.instance.encode()] == await redis.zrange(keys.WORKERS, 0, -1)
    assert ["is drained"] == [*one.runtime.not_ready()]
    await wait_until(lambda: "worker.drained" in {line["event"] for line in lines}, "its next look")
    events = [line["event"] for line in lines if line["event"].startswith("worker.")]
    assert events.index("worker.draining") < events.index("worker.drained")

    await drains.undrain(redis, instance)
    await wait_until(lambda: not one.runtime.live_lanes.drained.is_set(), "the drain to end")
    await two.stop()
    [result] = await one.results([origin.url("/3")])
    assert "one" == result.worker
    assert not await redis.exists(keys.DRAINS)
    assert "worker.undrained" in {line["event"] for line in lines}


async def test_everything_waits_while_the_only_worker_is_drained(
    origin: Origin, worker: OneWorker, redis: Redis, redis_url: str
) -> None:
    """Lanes, inbox messages and arq jobs wait. Explain shows the reason, and all continue afterwards."""
    instance = worker.runtime.registration.instance
    await drains.drain(redis, instance, await now_ms(redis))
    await is_drained(worker)
    batch = await worker.submit([origin.url("/lane")])
    arq = arq_client(connection_pool(redis_url))
    job = await arq.enqueue_job("fetch", origin.url("/arq"))
    assert job is not None
    await redis.rpush(keys.INBOX, origin.url("/inbox"))  # type: ignore[misc]
    await redis.hdel(keys.DRAINS, instance)  # type: ignore[misc]
    await wait_until(lambda: drains.drained(redis), "the worker to write its drain again")

    explained = await explain_lane(redis, Policy(), HOST)
    assert ("no worker", 0) == (explained.state, explained.in_flight)
    assert f"fetchfleet undrain {instance}" in explained.why
    assert (1, 1) == (await redis.llen(keys.INBOX), await redis.exists(f"arq:job:{job.job_id}"))  # type: ignore[misc]
    assert [] == origin.requests

    await drains.undrain(redis, instance)
    assert {Outcome.STORED} == {result.outcome for result in await results_of(batch)}
    await wait_until(lambda: len(origin.requests) == 3, "all three intake paths")
    await job.result(timeout=5)
    await arq.aclose(close_connection_pool=True)


async def test_the_drain_of_an_ended_worker_is_removed_from_redis(worker: OneWorker, redis: Redis) -> None:
    """A normal end removes it at once. The drain of a killed worker is removed after an hour."""
    await drains.drain(redis, worker.runtime.registration.instance, 1)
    await is_drained(worker)
    await worker.stop()
    assert {} == await drains.drained(redis)

    await drains.drain(redis, "killed", 1)
    await drains.drain(redis, "alive", 1)
    await drains.drain(redis, "cut-off", drains.KEPT_MS)
    await drains.forget_ended(redis, ["alive"], 2 * drains.KEPT_MS - 1)
    assert {"alive", "cut-off"} == (await drains.drained(redis)).keys()
    await redis.delete(keys.DRAINS)
