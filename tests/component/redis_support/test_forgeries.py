"""What users of Redis may write, they may also forge: a fleet under way is not disturbed by it."""

import json
from collections.abc import AsyncIterator, Iterator

import pytest
from redis.asyncio import Redis
from redis.exceptions import NoPermissionError

from fetchfleet import Fleet, Outcome
from fetchfleet.jobs import keys
from fetchfleet.jobs.contract.ids import inbox_prefix
from fetchfleet.jobs.redis_connection import connect
from tests.component.conftest import Start
from tests.support import forgeries, guarded_redis
from tests.support.guarded_redis import GuardedRedis
from tests.support.lanes import ask
from tests.support.waiting import wait_until
from tools.one_worker import results_of
from tools.origin import behaviours as o
from tools.origin.server import Origin

WHY_NOT = guarded_redis.why_unguarded()
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=WHY_NOT or "")


@pytest.fixture
def guarded() -> Iterator[GuardedRedis]:
    """A Redis with our users, in which the test may leave only what keys.py allows."""
    with guarded_redis.serve_guarded() as server:
        yield server


@pytest.fixture
async def admin(guarded: GuardedRedis) -> AsyncIterator[Redis]:
    """A client that may do anything."""
    async with connect(guarded.admin_url) as client:
        yield client


async def test_a_pusher_has_its_own_batches_and_reaches_no_others(
    guarded: GuardedRedis, admin: Redis, start: Start, origin: Origin
) -> None:
    """Whatever it pushes: the batch of a producer ends as if nothing had been pushed."""
    await ask(admin, "SADD", keys.INBOXES, "pusher")
    origin.behaviour = half = o.HalfBody()
    worker = await start(redis_url=guarded.url("worker"))
    own = inbox_prefix("pusher") + "00000001"
    async with Fleet(guarded.url("producer")) as fleet, connect(guarded.url("pusher")) as pusher:
        batch = await fleet.submit([origin.url("/kept")])
        await wait_until(lambda: origin.in_progress, "a request")
        pushed = forgeries.pushed(own, batch.id, origin.url("/forged"))
        good = json.dumps({"batch": own, "fetches": [origin.url("/own")]})
        await ask(pusher, "RPUSH", keys.inbox("pusher"), *pushed, good)
        await wait_until(lambda: ask(pusher, "HGET", keys.batch(own), "sealed"), "the batch of the pusher")
        half.go_on.set()
        [kept] = await results_of(batch)
        rows = await wait_until(lambda: ask(pusher, "XRANGE", keys.results(own), "-", "+"), "its result")
        with pytest.raises(NoPermissionError):
            await ask(pusher, "XRANGE", keys.results(batch.id), "-", "+")

    assert Outcome.STORED == kept.outcome
    assert [origin.url("/own")] == [json.loads(fields[b"r"])["url"] for _, fields in rows]
    assert ["/kept", "/own"] == [request.target for request in origin.requests]
    assert [keys.receipt(own).encode()] == await admin.keys(keys.receipt("*") + "*")
    await worker.stop()
    await admin.delete(keys.newer("pusher"), keys.intake("pusher"))  # messages for newer workers stay
