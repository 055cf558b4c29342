"""A worker as the Redis user of ops/users.acl: all of its work is permitted."""

import json
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
from redis.asyncio import Redis

from fetchfleet import Batch, Fleet, Outcome, Reason, UnknownBatchError
from fetchfleet.jobs import keys
from fetchfleet.jobs.contract.ids import fetch_id
from fetchfleet.jobs.notify import arq_client
from fetchfleet.jobs.redis_connection import connect, connection_pool
from fetchfleet.jobs.scripts import runner
from fetchfleet.worker.lanes.store import AcquiredLane, LaneStore
from tests.component.conftest import HOST, Lines, Start
from tests.support import guarded_redis
from tests.support.guarded_redis import (
    ALONE_SCRIPTS,
    OPERATOR_SCRIPTS,
    WORKER_SCRIPTS,
    GuardedRedis,
    ScriptsByUser,
    record_scripts,
)
from tests.support.lanes import BATCH_ID, LEASE_MS, ask, fields, lapse, now_ms, orphan_claim, state
from tests.support.waiting import wait_until
from tools.one_worker import OneWorker, results_of
from tools.origin import behaviours as o
from tools.origin.server import Origin

WHY_NOT = guarded_redis.acl_skip_reason()
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=WHY_NOT or "")


@pytest.fixture
def guarded() -> Iterator[GuardedRedis]:
    """A Redis with the users of ops/users.acl; the test may leave only keys that keys.py allows."""
    with guarded_redis.serve_guarded() as server:
        yield server


@pytest.fixture
async def admin(guarded: GuardedRedis) -> AsyncIterator[Redis]:
    """A client with all permissions."""
    async with connect(guarded.admin_url) as client:
        yield client


@pytest.fixture
async def producer(guarded: GuardedRedis) -> AsyncIterator[Fleet]:
    """A client of the user producer."""
    async with Fleet(guarded.url("producer")) as fleet:
        yield fleet


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> ScriptsByUser:
    """The scripts that each user has run."""
    return record_scripts(monkeypatch)


async def swept(worker: OneWorker, batch: Batch) -> bool:
    """Sweep; return whether the batch has ended."""
    await worker.runtime.sweep.once()
    return (await batch.counts()).ended


async def die_with_a_claim(guarded: GuardedRedis, admin: Redis) -> None:
    """Acquire the lane, claim its fetch and disappear, as a worker that dies."""
    async with connect(guarded.url("worker")) as client:
        store = LaneStore(client, "dead", LEASE_MS)
        held = await store.acquire(HOST, int((await fields(admin, HOST))["generation"]))
        assert isinstance(held, AcquiredLane)
        assert 1 == len((await store.claim(HOST, held.token, 10)).serialized)
    await lapse(admin, HOST)


async def cancels_a_batch(producer: Fleet, origin: Origin) -> None:
    """Cancel a batch with fetches in flight and waiting."""
    cancelled = await producer.submit([origin.url(f"/stall/{i}") for i in range(20)])
    await wait_until(lambda: origin.in_progress, "a request")
    await cancelled.cancel()
    assert {Outcome.CANCELLED} == {result.outcome for result in await results_of(cancelled)}


async def finds_an_unknown_claim(producer: Fleet, origin: Origin, admin: Redis, ran: ScriptsByUser) -> None:
    """Claim a fetch whose reply the worker never receives; the worker finds the claim."""
    half = o.HalfBody()
    origin.behaviour, before = half, origin.behaviour
    batch = await producer.submit([origin.url(f"/{number}") for number in range(20)])
    await wait_until(lambda: origin.in_progress, "a request")
    await orphan_claim(admin, HOST)
    await wait_until(lambda: "claims" in ran["worker"], "the claims to be compared")
    half.resume.set()
    assert {Outcome.STORED} == {result.outcome for result in await results_of(batch)}
    origin.behaviour = before


async def ends_a_late_fetch(producer: Fleet, origin: Origin) -> None:
    """Submit a fetch whose deadline passes in a cool-down."""
    await results_of(await producer.submit([{"url": origin.url("/429"), "deadline_s": 5}]))
    late = await producer.submit([{"url": origin.url("/ok"), "deadline_s": 0.5}])
    assert [Reason.THROTTLED] == [result.reason for result in await results_of(late)]


async def takes_from_the_inbox(guarded: GuardedRedis, producer: Fleet, origin: Origin) -> None:
    """Push a batch, an empty batch, an invalid message, and one that only a newer worker can read."""
    named = {"batch": BATCH_ID, "fetches": [origin.url("/inbox")]}
    empty = {"batch": BATCH_ID[::-1], "fetches": []}
    async with connect(guarded.url("pusher")) as client:
        newer = json.dumps({"v": 3})
        await ask(client, "RPUSH", keys.INBOX, "nonsense", newer, json.dumps(empty), json.dumps(named))
    await wait_until(partial(_has_ended, producer, BATCH_ID), "the batch of the inbox")
    await wait_until(partial(_has_ended, producer, BATCH_ID[::-1]), "the empty batch")


async def _has_ended(producer: Fleet, batch_id: str) -> bool:
    with suppress(UnknownBatchError):
        return (await producer.batch(batch_id).counts()).ended
    return False


async def takes_from_plain_arq(guarded: GuardedRedis, producer: Fleet, origin: Origin) -> None:
    """Enqueue an arq job and read its receipt; another one is refused with a reason."""
    arq = arq_client(connection_pool(guarded.url("producer")))
    good, bad = await arq.enqueue_job("fetch", origin.url("/arq")), await arq.enqueue_job("other")
    assert good is not None
    assert bad is not None
    receipt: Any = await good.result(timeout=20, poll_delay=0.02)
    await wait_until(lambda: bad.result_info(), "the refusal")  # noqa: PLW0108 - a new coroutine each time
    assert [fetch_id(receipt["batch"], 0)] == receipt["ids"]
    assert [Outcome.STORED] == [
        result.outcome for result in await results_of(producer.batch(receipt["batch"]))
    ]
    await arq.aclose(close_connection_pool=True)


async def quarantines_a_foreign_value(admin: Redis, worker: OneWorker, ran: ScriptsByUser) -> None:
    """Overwrite the backlog with a foreign value; the worker counts the backlog again."""
    await admin.set(keys.BACKLOG, "no number")
    worker.runtime.services.key_repair.check_soon()
    await wait_until(
        lambda: {"quarantine", "repair_lane", "recount"} <= ran["worker"], "the backlog to be counted"
    )


async def waits_for_a_lane_that_is_not_due(guarded: GuardedRedis, admin: Redis) -> None:
    """Notify the worker of a lane too early; it acquires the lane once it is due."""
    name = "early.example"
    lane = {"state": "scheduled", "generation": "1", "due_ms": str(await now_ms(admin) + 300)}
    await admin.hset(keys.lane(name), mapping=lane)  # type: ignore[misc]
    arq = arq_client(connection_pool(guarded.url("producer")))
    await arq.enqueue_job("take_lane", name, 1, _job_id=keys.notification_job_id(name, 1))
    await arq.aclose(close_connection_pool=True)
    await wait_until(partial(_is_idle, admin, name), "the lane to be taken and released")


async def _is_idle(admin: Redis, name: str) -> bool:
    return await state(admin, name) == "idle"


async def ends_a_lost_fetch(producer: Fleet, admin: Redis, worker: OneWorker) -> None:
    """Remove the entry of a fetch whose deadline has passed."""
    batch = await producer.submit([{"url": "http://lost.invalid/", "deadline_s": 3600}])
    await admin.delete(keys.lane("lost.invalid"), *keys.waiting("lost.invalid"))
    await admin.zrem(keys.ATTENTION, "lost.invalid")
    await ask(admin, "HSET", keys.batch(batch.id), "last_deadline_ms", 1, "taken_ms", 1)
    await worker.runtime.housekeeping.run()
    await worker.runtime.fleet_status.once()
    assert [Reason.DEADLINE] == [result.reason for result in await results_of(batch)]


async def test_all_work_of_a_worker_is_permitted_to_its_redis_user(
    guarded: GuardedRedis,
    admin: Redis,
    producer: Fleet,
    start: Start,
    origin: Origin,
    other: Origin,
    ran: ScriptsByUser,
    lines: Lines,
) -> None:
    """Every ingress path, retries, dead letters, a redirect, cancellation, a dead worker, housekeeping."""
    origin.behaviour = o.by_path(
        {
            "/500": o.fail_times(1, 500),
            "/302": o.redirect(other.url("/there")),
            "/stall": o.stall_headers(60),
            "/404": o.NOT_FOUND,
            "/429": o.retry_after(60),
            "/": o.OK,
        }
    )
    async with connect(guarded.url("reader")) as reader:
        await reader.xgroup_create(keys.ALL_RESULTS, "late", "0", mkstream=True)
    await admin.zadd(keys.BATCHES, {"f" * 16: 1})
    await admin.incr(keys.POLICY_VERSION)
    orphaned = await producer.submit([origin.url("/orphan")])
    await die_with_a_claim(guarded, admin)

    worker = await start(redis_url=guarded.url("worker"), lease_s=1.0, results_length=2)
    await wait_until(partial(swept, worker, orphaned), "the orphan's result", every_s=0.1)
    batch = await producer.submit(origin.url(path) for path in ("/ok", "/500", "/302", "/404"))
    outcomes = [result.outcome for result in await results_of(batch)]
    assert [Outcome.STORED, Outcome.STORED, Outcome.STORED, Outcome.FAILED] == outcomes
    await takes_from_the_inbox(guarded, producer, origin)
    await takes_from_plain_arq(guarded, producer, origin)
    await cancels_a_batch(producer, origin)
    await finds_an_unknown_claim(producer, origin, admin, ran)
    await waits_for_a_lane_that_is_not_due(guarded, admin)
    await ends_a_late_fetch(producer, origin)
    await quarantines_a_foreign_value(admin, worker, ran)
    await ends_a_lost_fetch(producer, admin, worker)
    await worker.runtime.housekeeping.run()
    await worker.runtime.fleet_status.once()
    assert 2 == await admin.xlen(keys.ALL_RESULTS)
    await worker.stop()
    await admin.delete(keys.INBOX, keys.TAKEN, keys.INTAKE)  # messages for newer workers stay
    await guarded_redis.submit_more_than_fits(guarded.url("worker"), admin)

    assert set() == guarded.refused()
    assert {"redis.trouble"} & {line["event"] for line in lines} == set()
    assert WORKER_SCRIPTS == ran["worker"]


def test_every_script_belongs_to_a_redis_user() -> None:
    """A new script must be run by a producer, an operator, a worker, or several of them."""
    assert set(runner.scripts()) == OPERATOR_SCRIPTS | WORKER_SCRIPTS | ALONE_SCRIPTS


def test_a_workers_redis_user_may_run_every_command_of_its_scripts() -> None:
    """Commands in rare branches too."""
    calls = [
        call
        for name in WORKER_SCRIPTS
        for call in re.findall(r"redis\.call\(([^,)]*)", runner.source_of(name))
    ]
    used = {command.lower() for call in calls for command in re.findall(r"'([A-Z]+)'", call)}
    file = (guarded_redis.ROOT / "ops" / "users.acl").read_text()
    (rules,) = re.findall(r"^user worker (.*)", file, re.MULTILINE)
    granted = {rule.partition("|")[0] for rule in re.findall(r"\+(\S+)", rules)}
    assert {"xadd", "zadd", "hset"} <= used
    assert set() == used - granted
