"""A deploy in the middle: producers are newer than the worker, then the worker is as new as they are."""

import json
from dataclasses import replace

import pytest
from redis.asyncio import Redis

from fetchfleet import Outcome
from fetchfleet.jobs import keys
from fetchfleet.jobs.contract import messages
from fetchfleet.worker.intake.inbox import InboxTimings
from tests.component.conftest import QUICK, Lines, Start
from tests.support.lanes import ask
from tests.support.plain_arq import enqueue, job_outcome, plain_arq
from tests.support.waiting import wait_until
from tools.origin.server import Origin


async def test_i27_what_is_for_a_newer_worker_is_done_once_there_is_one(
    redis_url: str, redis: Redis, origin: Origin, start: Start, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the inbox and by arq: nothing of it is asked for before, nothing fails."""
    inbox = InboxTimings(unsupported_s=0.05)
    worker = await start(timings=replace(QUICK, unsupported_retry_s=0.05, inbox=inbox))
    batch_id = "00000000000000ff"
    message = {"v": 2, "batch": batch_id, "fetches": [origin.url("/inbox")]}
    await ask(redis, "RPUSH", keys.INBOX, json.dumps(message))
    async with plain_arq(redis_url) as pool:
        job = await enqueue(pool, "fetch", origin.url("/arq"), v=2)
        await wait_until(lambda: newer_at(lines) == {"inbox", "arq"}, "the old worker to say so")
        asked_before = len(origin.requests)
        monkeypatch.setattr(messages, "MESSAGE_VERSION", 2)
        went_well, receipt = await job_outcome(pool, job)
        await wait_until(lambda: ask(redis, "EXISTS", keys.batch(batch_id)), "the batch of the inbox")
    batches = [worker.fleet.batch(batch_id), worker.fleet.batch(receipt["batch"])]
    results = [result for batch in batches async for result in batch.results()]

    assert 0 == asked_before
    assert went_well
    assert [Outcome.STORED] * 2 == [result.outcome for result in results]
    assert 0 == await redis.xlen(keys.DEAD)


def newer_at(lines: Lines) -> set[str]:
    """The doors at which something was for a newer worker."""
    return {line["door"] for line in lines if line["event"] == "intake.newer"}
