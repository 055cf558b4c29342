"""ops/users.acl, loaded: each user can do its work."""

import asyncio
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from arq.jobs import JobStatus
from redis.asyncio import Redis

from fetchfleet import BatchExistsError, Fetch, Fleet, FleetFullError, Outcome, Reason, Result
from fetchfleet.jobs import keys
from fetchfleet.jobs.client.submit import CHUNK_FETCHES
from fetchfleet.jobs.contract.entry import parse_entry
from fetchfleet.jobs.notify import arq_client
from fetchfleet.jobs.redis_connection import connect, connection_pool
from fetchfleet.worker.inspect.explain import explain_fetch, explain_lane
from fetchfleet.worker.inspect.fleet_status import fleet_status
from fetchfleet.worker.inspect.snapshot import snapshot
from fetchfleet.worker.lanes import settler
from fetchfleet.worker.lanes.reset import reset
from fetchfleet.worker.lanes.store import AcquiredLane, LaneStore
from fetchfleet.worker.local.output.progress import Progress
from fetchfleet.worker.policy import overrides
from fetchfleet.worker.policy.file import Policy
from fetchfleet.worker.redis_support import drains
from fetchfleet.worker.util import aio
from tests.support import guarded_redis, redis
from tests.support.guarded_redis import (
    PRODUCER_SCRIPTS,
    GuardedRedis,
    Refusal,
    ScriptsByUser,
    record_scripts,
    submit_more_than_fits,
)
from tests.support.lanes import (
    BATCH_ID,
    LANE,
    LEASE_MS,
    LaneHold,
    ask,
    ended,
    fields,
    retried,
    state,
    stored,
    url,
)
from tests.support.waiting import wait_until

WHY_NOT = guarded_redis.acl_skip_reason()
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=WHY_NOT or "")


@pytest.fixture
def guarded() -> Iterator[GuardedRedis]:
    """Start a Redis with the users of a fleet, in which the test may leave only keys of keys.py."""
    with guarded_redis.serve_guarded() as server:
        yield server


@pytest.fixture
async def worker(guarded: GuardedRedis) -> AsyncIterator[Redis]:
    """Return the worker's client."""
    async with connect(guarded.url("worker")) as client:
        yield client


@pytest.fixture
async def admin(guarded: GuardedRedis) -> AsyncIterator[Redis]:
    """Return a client with all rights."""
    async with connect(guarded.admin_url) as client:
        yield client


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> ScriptsByUser:
    """Return the scripts that each user has run."""
    return record_scripts(monkeypatch)


async def begin(worker: Redis, admin: Redis) -> LaneHold:
    """Acquire the lane as the worker's user."""
    store = LaneStore(worker, "owner", LEASE_MS)
    held = await store.acquire(LANE, int((await fields(admin))["generation"]))
    assert isinstance(held, AcquiredLane)
    return LaneHold(worker, store, LANE, held)


def test_redis_refuses_the_file_until_passwords_are_in_it(tmp_path: Path) -> None:
    """The file of the repository has no usable passwords."""
    file = str(guarded_redis.ROOT / "ops" / "users.acl")
    command = redis.command({"aclfile": file, "port": "0", "unixsocket": "redis.sock"})
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=30, check=False)
    assert 0 != ended.returncode
    assert b"password hash must be exactly 64 characters" in ended.stdout


async def test_a_producer_may_submit_follow_and_cancel(
    guarded: GuardedRedis, admin: Redis, worker: Redis, ran: ScriptsByUser
) -> None:
    """It may do so in every way, with each of their scripts."""
    async with Fleet(guarded.url("producer"), max_backlog=2000, max_lane_backlog=2000) as fleet:
        listed = await fleet.submit([Fetch(url=url("/1"), key="k"), Fetch(url=url("/2"))])
        await fleet.submit(url(f"/{i}") for i in range(CHUNK_FETCHES + 1))
        await fleet.submit([])
        again = await fleet.submit([Fetch(url=url("/1"), key="k")])
        assert listed.ids[:1] == again.ids
        named = await fleet.submit([url("/n")], batch_id=BATCH_ID)
        await fleet.submit([url("/n")], batch_id=BATCH_ID)
        with pytest.raises(BatchExistsError):
            await fleet.submit([url("/other")], batch_id=BATCH_ID)
        with pytest.raises(FleetFullError):
            await fleet.submit([url(f"/{i}") for i in range(2000)])

        hold = await begin(worker, admin)
        one, two = (await hold.claim(2)).serialized
        await hold.settle(stored(one), retried(two, 3600))
        assert [url("/1")] == [result.url async for result in listed.results(follow=False)]
        assert 3 == len(await fleet.batches())
        assert 1 == (await listed.counts()).stored
        await named.cancel()
        await hold.finish(2000)
        assert "scheduled" == await state(admin)
        await listed.cancel()
        await submit_more_than_fits(guarded.url("producer"), admin)

    assert ran["producer"] == PRODUCER_SCRIPTS
    assert set() == guarded.refused()


async def test_a_producer_without_the_right_to_trim_can_read(
    guarded: GuardedRedis, admin: Redis, worker: Redis
) -> None:
    """After one denial it no longer tries to trim."""
    async with Fleet(guarded.url("producer")) as fleet:
        batch = await fleet.submit([url("/1"), url("/2")])
        await (await begin(worker, admin)).finish()
        assert 2 == len([result async for result in batch.results(trim=True)])
    assert {Refusal("producer", "xtrim")} == guarded.refused()


async def test_a_producer_without_the_right_to_see_lanes_sees_its_progress(guarded: GuardedRedis) -> None:
    """The display omits the denied data, after one attempt."""
    async with Fleet(guarded.url("producer")) as fleet, connect(guarded.url("producer")) as client:
        progress = Progress(client, await fleet.submit([url("/1")]))
        for _ in range(2):
            counts, lanes, *_ = await progress._read()
            assert (1, []) == (counts.total, lanes)
    assert {Refusal("producer", "zrange")} == guarded.refused()


async def test_an_operator_sees_lanes_and_the_hosts_of_the_batch_in_its_progress(
    guarded: GuardedRedis,
) -> None:
    """The time left of a batch does not count the waits of hosts that have fetches of other batches only."""
    async with Fleet(guarded.url("operator")) as fleet, connect(guarded.url("operator")) as client:
        await fleet.submit(["http://other.example/"])
        progress = await Progress(client, await fleet.submit([url("/1")]))._read()
    assert ({LANE}, 2) == (progress.hosts, len(progress.lanes))
    assert set() == guarded.refused()


async def test_an_operator_may_count_the_fetches_at_every_door(guarded: GuardedRedis, admin: Redis) -> None:
    """Messages of the inbox and arq jobs are read to be counted."""
    await admin.rpush(keys.INBOX, url("/1"), '{"fetches": ["http://a.example/", "http://a.example/"]}')  # type: ignore[misc]
    arq = arq_client(connection_pool(guarded.url("producer")))
    await arq.enqueue_job("fetch", [url(f"/{i}") for i in range(5)])
    await arq.aclose(close_connection_pool=True)
    async with connect(guarded.url("operator")) as client:
        status = await fleet_status(client)
    await admin.delete(keys.INBOX)

    assert (3, 5, True) == (status.inbox_door.fetches, status.arq_door.fetches, status.backlog_exact)
    assert set() == guarded.refused()


async def test_plain_arq_may_produce(guarded: GuardedRedis) -> None:
    """It enqueues a job, and reads its status and its receipt."""
    arq = arq_client(connection_pool(guarded.url("producer")))
    job = await arq.enqueue_job("fetch", url("/1"))
    assert job is not None
    assert JobStatus.queued == await job.status()
    assert await job.result_info() is None
    with pytest.raises(TimeoutError):
        await job.result(timeout=0.01, poll_delay=0.001)
    await arq.aclose(close_connection_pool=True)
    assert set() == guarded.refused()


async def test_a_pusher_may_push(guarded: GuardedRedis, admin: Redis) -> None:
    """One message or many."""
    async with connect(guarded.url("pusher")) as client:
        assert 2 == await ask(client, "RPUSH", keys.INBOX, url("/1"), url("/2"))
    assert 1 == await admin.delete(keys.INBOX)
    assert set() == guarded.refused()


async def test_a_reader_may_have_each_result_handed_over(guarded: GuardedRedis, admin: Redis) -> None:
    """The client creates the group, reads, claims and acknowledges with the rights of the reader."""
    seen: list[str] = []

    async def handle(result: Result) -> None:
        seen.append(result.id)

    async with Fleet(guarded.url("producer")) as fleet:
        batch = await fleet.submit([url("/a")], notify="https://app.example/hooks")
    assert 1 == await admin.zcard(keys.WEBHOOKS)
    await (await LaneHold.begin(admin)).finish(1)
    async with Fleet(guarded.url("reader")) as fleet:
        task = asyncio.create_task(fleet.each(handle, group="billing"))
        await wait_until(lambda: seen or task.done(), "the result")
        await aio.end(task)

    assert seen == batch.ids
    assert (await admin.xpending(keys.ALL_RESULTS, "billing"))["pending"] == 0


async def test_a_reader_may_consume_all_results(guarded: GuardedRedis, admin: Redis) -> None:
    """The reader creates a group, claims pending results and inspects the stream."""
    async with connect(guarded.url("reader")) as client:
        await client.xgroup_create(keys.ALL_RESULTS, "g", "0", mkstream=True)
        await admin.xadd(keys.ALL_RESULTS, {"r": "{}"})
        [[_, [[position, _]]]] = await client.xreadgroup("g", "one", {keys.ALL_RESULTS: ">"}, 10, 1)
        _, taken, _ = await client.xautoclaim(keys.ALL_RESULTS, "g", "two", 0)
        assert [position] == [row for row, _ in taken]
        assert 1 == (await client.xpending(keys.ALL_RESULTS, "g"))["pending"]
        assert 1 == await client.xack(keys.ALL_RESULTS, "g", position)
        assert [0] == [group["pending"] for group in await client.xinfo_groups(keys.ALL_RESULTS)]
        assert 2 == len(await client.xinfo_consumers(keys.ALL_RESULTS, "g"))
        assert 1 == (await client.xinfo_stream(keys.ALL_RESULTS))["length"]
    assert set() == guarded.refused()


async def test_an_operator_may_inspect_everything_and_retry_dead_letters(
    guarded: GuardedRedis, admin: Redis, worker: Redis
) -> None:
    """The status, a batch with its results trimmed, dead letters retried and purged."""
    async with Fleet(guarded.url("operator")) as fleet, connect(guarded.url("operator")) as client:
        batch = await fleet.submit([url("/1"), url("/2")])
        await worker.set(keys.worker("w"), b"{}", px=keys.WORKER_TTL_MS)
        await worker.zadd(keys.WORKERS, {"w": 1})
        assert [LANE] == [lane.name for lane in (await snapshot(client)).lanes]
        hold = await begin(worker, admin)
        one, two = (await hold.claim()).serialized
        dead = settler.buried(parse_entry(two).id, Reason.DNS, "", lambda: None)
        await hold.settle(stored(one), dead, ended(two, Outcome.FAILED, reason=Reason.DNS))
        await hold.release()
        assert 2 == len([result async for result in batch.results(trim=True)])
        assert 0 == await admin.xlen(keys.results(batch.id))
        assert 1 == (await fleet.dead.retry()).fetches
        await worker.xadd(keys.DEAD, {"door": "inbox", "element": "x"})
        assert 1 == await fleet.dead.purge()
        assert 2 == len(await fleet.batches())
        await batch.cancel()
        await overrides.change(client, fleet.notify, LANE, {"paused": True})
        await overrides.change(client, fleet.notify, LANE, {"paused": None})
        await drains.drain(client, "w", 1)
        await drains.undrain(client, "w")
        await drains.forget(client, "w")
        await reset(client, fleet.notify, [LANE], "operator")
        assert LANE == (await explain_lane(client, Policy(), LANE)).lane
        assert "cancelled" not in (await explain_fetch(client, Policy(), batch.ids[0])).state
    assert set() == guarded.refused()
