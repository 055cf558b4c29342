"""The backlog of a fleet, at every door."""

import io
from collections.abc import AsyncIterator
from datetime import timedelta

import msgspec
import pytest
from arq.connections import ArqRedis
from redis.asyncio import Redis
from redis.exceptions import NoPermissionError
from rich.console import Console

from fetchfleet import Fleet
from fetchfleet.jobs import keys
from fetchfleet.jobs.notify import arq_client
from fetchfleet.jobs.redis_connection import connection_pool, redis_now_ms
from fetchfleet.worker.cli.render import status_of
from fetchfleet.worker.inspect import doors
from fetchfleet.worker.inspect.explain import explain_lane
from fetchfleet.worker.inspect.fleet_status import FleetStatus, fleet_status
from fetchfleet.worker.policy.file import Policy

HOUR_MS = 3600 * 1000
ENVELOPE = msgspec.json.encode({"fetches": [f"http://a.example/{i}" for i in range(7)]})


@pytest.fixture
async def arq(redis_url: str) -> AsyncIterator[ArqRedis]:
    """Return a producer with plain arq."""
    client = arq_client(connection_pool(redis_url))
    yield client
    await client.aclose(close_connection_pool=True)


@pytest.fixture
async def inbox(redis: Redis) -> AsyncIterator[str]:
    """Return the key of the inbox, which the test may leave full."""
    yield keys.INBOX
    await redis.delete(keys.INBOX, keys.TAKEN)


def printed(status: FleetStatus) -> str:
    """Return the text of `status` on a terminal of 80 columns."""
    screen = io.StringIO()
    Console(file=screen, width=80).print(status_of(status))
    return screen.getvalue()


async def enqueue(arq: ArqRedis, jobs: int, fetches: int) -> None:
    """Enqueue arq jobs with that many fetches each."""
    for job in range(jobs):
        await arq.enqueue_job("fetch", [f"http://a.example/{job}/{i}" for i in range(fetches)])


async def test_the_backlog_includes_every_door(redis: Redis, fleet: Fleet, arq: ArqRedis, inbox: str) -> None:
    """Jobs and messages are counted in fetches. Notifications and cron jobs in the same queue are not."""
    await fleet.submit(["http://b.example/"])
    await enqueue(arq, 40, 25)
    await arq.enqueue_job("fetch", "http://a.example/one", batch="0123456789abcdef")
    await arq.enqueue_job("fetch", {"url": "http://a.example/two"})
    await arq.enqueue_job("sweep", _job_id="sweep:1700000000000")
    await redis.rpush(inbox, "http://a.example/", '{"url": "http://a.example/", "fetches": null}', ENVELOPE)  # type: ignore[misc]
    await redis.rpush(keys.TAKEN, "http://a.example/taken")  # type: ignore[misc]
    status = await fleet_status(redis)
    text = printed(status)

    assert (1, 1002, 10) == (status.in_lanes, status.arq_door.fetches, status.inbox_door.fetches)
    assert (42, 4, 4) == (status.arq_door.messages, status.inbox_door.messages, status.inbox)
    assert (1013, True) == (status.backlog, status.backlog_exact)
    assert "1,013 fetches to do, the oldest has waited" in text
    assert "the age of inbox messages is unknown" in " ".join(text.split())
    assert "1 of them in 1 lane, 1,002 in 42 arq jobs, 10 in 4 inbox messages" in text
    assert "start one: fetchfleet worker" in text


async def test_explain_mentions_messages_that_may_concern_an_idle_host(
    redis: Redis, fleet: Fleet, arq: ArqRedis, inbox: str
) -> None:
    """The explanation of a lane with waiting fetches does not mention them."""
    await fleet.submit(["http://b.example/"])
    quiet = await explain_lane(redis, Policy(), "a.example")
    await enqueue(arq, 2, 25)
    await redis.rpush(inbox, "http://a.example/")  # type: ignore[misc]
    idle, waiting = [await explain_lane(redis, Policy(), name) for name in ("a.example", "b.example")]

    assert ("idle", "no fetch waits for this host") == (quiet.state, quiet.why)
    assert ("idle", True) == (idle.state, idle.why.endswith("for any host: 3"))
    assert "any host" not in waiting.why


async def test_the_age_of_the_backlog_is_that_of_its_oldest_arq_job(redis: Redis, arq: ArqRedis) -> None:
    """The age counts from its enqueueing, with any deferrals, or for an invalid job from its score."""
    await arq.enqueue_job("fetch", "http://a.example/", _job_id="old", _defer_by=timedelta(days=1))
    job = msgspec.json.decode(await redis.get(keys.arq_job("old")))
    await redis.set(
        keys.arq_job("old"), msgspec.json.encode({**job, "et": job["et"] - HOUR_MS}), keepttl=True
    )
    await arq.enqueue_job("fetch", "http://a.example/", _job_id="new")
    put_off = await fleet_status(redis)
    await redis.set(keys.arq_job("old"), b"\x80\x04pickle", keepttl=True)
    await redis.zadd(keys.QUEUE, {"old": await redis_now_ms(redis) - 2 * HOUR_MS})
    invalid = await fleet_status(redis)

    assert put_off.oldest_s == pytest.approx(3600, abs=60)
    assert invalid.oldest_s == pytest.approx(7200, abs=60)
    assert (2, 2) == (put_off.backlog, invalid.backlog)


async def test_an_unreadable_report_leaves_a_worker_without_facts(redis: Redis) -> None:
    """Written by another program, or by another version."""
    now_ms = await redis_now_ms(redis)
    for name, text in (("a", b"\xff"), ("b", b'{"lanes": 3}'), ("c", b'{"finished": 1, "new": {}}')):
        await redis.zadd(keys.WORKERS, {name: now_ms})
        await redis.set(keys.worker(name), text, px=keys.WORKER_TTL_MS)
    workers = (await fleet_status(redis)).workers

    assert [("a", None), ("b", None), ("c", None)] == [(worker.id, worker.version) for worker in workers]


async def test_a_full_inbox_alone_is_a_backlog_of_unknown_age(redis: Redis, inbox: str) -> None:
    """Without a worker the output names the remedy."""
    await redis.rpush(inbox, "http://a.example/")  # type: ignore[misc]
    status = await fleet_status(redis)

    assert (1, None) == (status.backlog, status.oldest_s)
    assert "start one: fetchfleet worker" in printed(status)


async def test_unread_messages_count_as_one_fetch_each(
    redis: Redis, arq: ArqRedis, inbox: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The status marks the figure as a minimum."""
    monkeypatch.setattr(doors, "READ_BYTES", 1000)
    monkeypatch.setattr(doors, "JOBS_LOOKED_AT", 4)
    await enqueue(arq, 1, 1)
    await enqueue(arq, 5, 100)
    await redis.rpush(inbox, *[ENVELOPE] * 20)  # type: ignore[misc]
    status = await fleet_status(redis)

    assert (6, 6, False) == (status.arq_door.messages, status.arq_door.fetches, status.arq_door.exact)
    assert (20, 20, False) == (status.inbox, status.inbox_door.fetches, status.inbox_door.exact)
    assert "at least 26 fetches to do" in printed(status)


async def test_an_inbox_of_unknown_size_counts_in_messages(
    redis: Redis, inbox: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A managed Redis may deny MEMORY USAGE."""

    async def denied(*_: object, **__: object) -> int:
        raise NoPermissionError("no permissions to run the 'memory|usage' command")

    await redis.rpush(inbox, ENVELOPE)  # type: ignore[misc]
    monkeypatch.setattr(redis, "memory_usage", denied)
    door = await doors.inbox_door(redis)

    assert (1, 1, False) == (door.messages, door.fetches, door.exact)


async def test_named_inboxes_and_messages_for_newer_workers_are_counted(redis: Redis, inbox: str) -> None:
    """Deferred messages have a count of their own: perhaps no live worker can read them."""
    await redis.sadd(keys.INBOXES, "bob", "Not a name")  # type: ignore[misc]
    lists = [inbox, keys.inbox("bob"), keys.taken("bob"), keys.NEWER, keys.newer("bob")]
    for key in lists:
        await redis.rpush(key, "http://a.example/")  # type: ignore[misc]
    status = await fleet_status(redis)
    at_doors = sum(await doors.waiting_at_doors(redis))
    await redis.delete(*lists)

    assert (3, 3, 2) == (status.inbox, status.inbox_door.fetches, status.inbox_door.for_newer)
    assert 3 == at_doors
    assert "3 messages in the inbox, 2 messages for a newer worker, 0 dead letters" in " ".join(
        printed(status).split()
    )
