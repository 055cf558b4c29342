"""A rolling upgrade: producers are newer than the worker, until the worker is upgraded."""

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


async def test_i27_a_newer_message_waits_for_a_newer_worker(
    redis_url: str, redis: Redis, origin: Origin, start: Start, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message from the inbox or arq causes no request before, and no failure."""
    inbox = InboxTimings(unsupported_s=0.05)
    worker = await start(timings=replace(QUICK, unsupported_retry_s=0.05, inbox=inbox))
    batch_id = "00000000000000ff"
    message = {"v": 3, "batch": batch_id, "fetches": [origin.url("/inbox")]}
    await ask(redis, "RPUSH", keys.INBOX, json.dumps(message))
    async with plain_arq(redis_url) as pool:
        job = await enqueue(pool, "fetch", origin.url("/arq"), v=3)
        await wait_until(lambda: newer_at(lines) == {"inbox", "arq"}, "the old worker to log it")
        requests_before = len(origin.requests)
        monkeypatch.setattr(messages, "MESSAGE_VERSION", 3)
        went_well, receipt = await job_outcome(pool, job)
        await wait_until(lambda: ask(redis, "EXISTS", keys.batch(batch_id)), "the batch of the inbox")
    batches = [worker.fleet.batch(batch_id), worker.fleet.batch(receipt["batch"])]
    results = [result for batch in batches async for result in batch.results()]

    assert 0 == requests_before
    assert went_well
    assert [Outcome.STORED] * 2 == [result.outcome for result in results]
    assert 0 == await redis.xlen(keys.DEAD)


def newer_at(lines: Lines) -> set[str]:
    """Return the ingress paths at which a newer message was logged."""
    return {line["door"] for line in lines if line["event"] == "intake.newer"}
