"""Two workers with one name, as after copying a manifest, or in two containers with one host name."""

import asyncio
from dataclasses import replace

import pytest
from redis.asyncio import Redis

from fetchfleet import Outcome
from fetchfleet.jobs import keys
from fetchfleet.worker.inspect.fleet_status import fleet_status
from fetchfleet.worker.inspect.registration import registration_of
from fetchfleet.worker.inspect.workers.peers import Peers
from fetchfleet.worker.local.run import announce
from fetchfleet.worker.observability.log import get_logger
from fetchfleet.worker.runtime.heartbeat import FIRST_NAME_CHECK_BEATS, FleetCheck
from fetchfleet.worker.runtime.timings import WorkerTimings
from fetchfleet.worker.settings import Settings
from tests.component.conftest import QUICK, Lines, Start
from tests.support.waiting import wait_until
from tools.one_worker import results_of
from tools.origin.behaviours import held
from tools.origin.server import Origin

HEARTBEAT_S = 0.05


@pytest.fixture
def timings() -> WorkerTimings:
    """Frequent heartbeats and name checks."""
    return replace(QUICK, heartbeat_s=HEARTBEAT_S, name_check_s=2 * HEARTBEAT_S)


async def test_two_workers_with_one_name_both_work_and_each_warns_of_the_other(
    origin: Origin, other: Origin, start: Start, redis: Redis, lines: Lines
) -> None:
    """Each holds one of two hosts, status shows both, and their results have the shared name."""
    may_end = asyncio.Event()
    origin.behaviour = other.behaviour = held(may_end)
    one, two = await start(worker_id="double"), await start(worker_id="double")
    batch = await one.submit([origin.url("/1"), other.url("/2")])

    async def shared() -> bool:
        workers = (await fleet_status(redis)).workers
        return [("double", 1)] * 2 == [(worker.id, worker.in_flight) for worker in workers]

    def warned() -> dict[str, list[str]]:
        return {line["instance"]: line["others"] for line in lines if line["event"] == "worker.name_taken"}

    await wait_until(shared, "each worker to hold one of the two hosts")
    await wait_until(lambda: len(warned()) == 2, "both to warn")
    may_end.set()
    results = await results_of(batch)

    instances = [worker.runtime.registration.instance for worker in (one, two)]
    assert {instances[0]: [instances[1]], instances[1]: [instances[0]]} == warned()
    assert {(Outcome.STORED, "double")} == {(result.outcome, result.worker) for result in results}


async def test_a_worker_restarted_under_its_name_is_not_a_duplicate(
    start: Start, redis: Redis, lines: Lines
) -> None:
    """The entry of the dead worker is still present, and so is the name that a run announced."""
    died = await start(worker_id="phoenix")
    left = keys.worker(died.runtime.registration.instance)
    seen = await redis.zrange(keys.WORKERS, 0, -1, withscores=True)
    await died.stop()
    await redis.zadd(keys.WORKERS, dict(seen))
    await redis.set(left, b"{}", px=keys.WORKER_TTL_MS)
    await announce(redis, ["phoenix"])
    again = await start(worker_id="phoenix")
    due_ms = again.runtime.registration.started_ms + FIRST_NAME_CHECK_BEATS * HEARTBEAT_S * 1000
    await wait_until(lambda: again.runtime.services.clock.now_ms() > due_ms, "the check to be due")
    await again.runtime.heartbeat.send()

    assert [] == [line for line in lines if line["event"] == "worker.name_taken"]
    assert await redis.zscore(keys.WORKERS, "phoenix") is None


async def test_a_duplicate_name_is_logged_once_a_minute(redis: Redis, lines: Lines) -> None:
    """Six checks within 62 seconds log two lines."""
    own = registration_of(Settings(worker_id="double"), 0)
    await redis.zadd(keys.WORKERS, {"double": 500_000})
    log = get_logger()
    check = FleetCheck(redis, own, Peers(redis, own, log), log, WorkerTimings())
    for now_ms in (2_000, 3_000, 4_000, 62_000, 63_000, 64_000):
        await check.run(now_ms)

    assert [(own.instance, ["double"])] * 2 == [(line["instance"], line["others"]) for line in lines]
