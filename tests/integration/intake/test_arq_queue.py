"""arq's queue: with any foreign content, the jobs in it run."""

import json
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest
from arq import func
from arq.worker import Worker
from redis.asyncio import Redis

from fetchfleet.jobs import keys
from fetchfleet.jobs.contract.messages import MAX_INPUT_BYTES
from fetchfleet.jobs.redis_connection import connection_pool
from fetchfleet.worker.intake.arq_jobs import REFUSED, read_job, write_result
from fetchfleet.worker.intake.arq_queue import VettedQueue, vetted_queue
from tests.support.lanes import ask, now_ms

PAST_MS = 1_000
FLOOD = 20_000


@pytest.fixture
async def queue(redis_url: str) -> AsyncIterator[VettedQueue]:
    """Return the queue as arq's worker reads it."""
    client = vetted_queue(connection_pool(redis_url))
    yield client
    await client.aclose(close_connection_pool=True)


async def due(queue: VettedQueue) -> list[bytes]:
    """Return the jobs that arq gets, read as it reads them."""
    found: list[bytes] = await queue.zrangebyscore(
        keys.QUEUE, min=float("-inf"), start=0, num=320, max=await now_ms(queue)
    )
    return found


async def put(redis: Redis, name: str | bytes, score: float | str = PAST_MS, job: bytes = b"{}") -> None:
    """Enqueue a job."""
    await ask(redis, "ZADD", keys.QUEUE, str(score), name)
    await redis.set(
        keys.arq_job("").encode() + (name.encode() if isinstance(name, str) else name), job, px=60_000
    )


@pytest.mark.parametrize("score", ["0", "-inf", "1", "-1e300"])
async def test_members_without_a_job_hide_no_job(redis: Redis, queue: VettedQueue, score: str) -> None:
    """They are removed when the first job behind them is read."""
    reported: list[tuple[str, int]] = []

    async def on_foreign(key: str, _: str, count: int, __: bytes) -> None:
        reported.append((key, count))

    queue.on_foreign = on_foreign
    await put(redis, "mine")
    for first in range(0, FLOOD, 5000):
        flood = (word for i in range(first, first + 5000) for word in (score, f"a{i}"))
        await ask(redis, "ZADD", keys.QUEUE, *flood)
    while not (found := await due(queue)):
        assert reported
    assert found == [b"mine"]
    assert await redis.zcard(keys.QUEUE) == 1
    assert sum(count for _, count in reported) == FLOOD


@pytest.mark.parametrize(
    "name", [b"\xff", b"\xed\xa0\x80", b"\xc3", b"ok\xf5\x80\x80\x80", b"x" * 1025], ids=ascii
)
async def test_an_id_that_is_not_text_or_too_long_is_removed(
    redis: Redis, queue: VettedQueue, name: bytes
) -> None:
    """It is removed even if it has a job. Text in any alphabet stays."""
    await put(redis, name)
    await put(redis, "éÖ😀")
    assert await due(queue) == ["éÖ😀".encode()]
    assert await redis.zscore(keys.QUEUE, name) is None
    await redis.delete(keys.arq_job("").encode() + name)


@pytest.mark.parametrize("score", ["0", "-inf", "0.5", "-5"])
async def test_a_job_with_a_score_that_arq_skips_gets_another(
    redis: Redis, queue: VettedQueue, score: str
) -> None:
    """It runs at once."""
    await put(redis, "mine", score)
    assert await due(queue) == [b"mine"]
    assert await redis.zscore(keys.QUEUE, "mine") == 1


async def test_jobs_in_progress_hide_no_job(redis: Redis, queue: VettedQueue) -> None:
    """They are not listed, and an endless mark is bounded. A mark of arq stays."""
    busy = [f"busy{i:03}" for i in range(400)]
    await redis.zadd(keys.QUEUE, dict.fromkeys(busy, PAST_MS))
    await redis.mset({keys.arq_job(name): b"{}" for name in busy})
    await redis.mset({keys.arq_in_progress(name): b"1" for name in busy})
    await redis.pexpire(keys.arq_in_progress("busy000"), 50_000)
    await put(redis, "mine", PAST_MS + 1)
    assert await due(queue) == [b"mine"]
    assert 0 < await redis.pttl(keys.arq_in_progress("busy000")) <= 50_000
    assert 100_000 < await redis.pttl(keys.arq_in_progress("busy001")) <= 150_000
    await redis.flushall()


async def test_a_job_that_is_too_large_is_refused_unread(redis: Redis, queue: VettedQueue) -> None:
    """A few bytes replace it: the refusing function and the reason."""
    await put(redis, "large", job=b"\x80\x04" + b"x" * MAX_INPUT_BYTES)
    assert await due(queue) == [b"large"]
    raw = await redis.get(keys.arq_job("large"))
    assert raw is not None
    job = read_job(frozenset({REFUSED}), raw)
    assert job["f"] == REFUSED
    note, found = job["a"]
    assert f"has {MAX_INPUT_BYTES + 2} bytes" in note
    assert found == "??" + "x" * 198
    assert await redis.pttl(keys.arq_job("large")) > 0


@pytest.mark.parametrize("tries", [b"no number", b"9223372036854775807", b"-1", None])
async def test_a_job_runs_with_any_value_in_place_of_its_tries(
    redis: Redis, queue: VettedQueue, tries: bytes | None
) -> None:
    """Its tries count from one again."""
    key = keys.arq_tries("mine")
    await (redis.set(key, tries) if tries else redis.rpush(key, "x"))  # type: ignore[misc]
    await put(redis, "mine")
    assert await due(queue) == [b"mine"]
    assert not await redis.exists(key)


async def test_arqs_own_worker_runs_every_job_of_such_a_queue(redis: Redis, queue: VettedQueue) -> None:
    """It reads its queue as this project assumes."""
    ran: list[str] = []

    async def note(_: Any, *args: Any, **__: Any) -> None:
        ran.extend(args)

    job = json.dumps({"t": None, "f": "note", "a": ["mine"], "k": {}, "et": 1}).encode()
    await put(redis, "mine", PAST_MS + 1, job)
    await ask(redis, "ZADD", keys.QUEUE, *(word for i in range(500) for word in ("0", f"a{i}")))
    await ask(redis, "ZADD", keys.QUEUE, "-inf", "end", "1", b"\xff", "1", "list")
    await redis.rpush(keys.arq_job("list"), "x")  # type: ignore[misc]
    worker = Worker(
        [func(note, name="note", keep_result=0)],  # type: ignore[arg-type]
        redis_pool=queue,
        queue_name=keys.QUEUE,
        burst=True,
        handle_signals=False,
        poll_delay=0.01,
        keep_result=0,
        job_serializer=write_result,
        job_deserializer=lambda raw: read_job(frozenset({"note"}), raw),
    )
    with suppress(Exception):
        await worker.async_run()
    assert ran == ["mine"]
    assert await redis.zcard(keys.QUEUE) == 0
    await redis.delete(f"{keys.QUEUE}:health-check")
