"""Forged data of Redis users does not disturb a working fleet."""

import json
from collections import Counter
from collections.abc import AsyncIterator, Iterator

import pytest
from redis.asyncio import Redis
from redis.exceptions import NoPermissionError

from fetchfleet import Fetch, Fleet, Outcome
from fetchfleet.jobs import keys
from fetchfleet.jobs.contract.ids import inbox_prefix
from fetchfleet.jobs.redis_connection import connect
from tests.component.conftest import HOST, OTHER_HOST, Lines, Start
from tests.support import forgeries, guarded_redis
from tests.support.guarded_redis import GuardedRedis
from tests.support.lanes import ask, backlog
from tests.support.waiting import wait_until
from tools.one_worker import results_of
from tools.origin import behaviours as o
from tools.origin.server import Origin

WHY_NOT = guarded_redis.acl_skip_reason()
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=WHY_NOT or "")

FETCHES = 24
WHY = {"unreadable", "wrong_lane", "unknown_batch"}
USERS = ("pusher", "reader", "operator", "producer")


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


async def test_forged_entries_do_not_change_the_results_of_a_working_fleet(
    guarded: GuardedRedis, admin: Redis, start: Start, origin: Origin, other: Origin, lines: Lines
) -> None:
    """Redis refuses untrusted users. Forgeries of the others are quarantined, without a request."""
    half = o.HalfBody()
    origin.behaviour = half
    worker = await start(redis_url=guarded.url("worker"), policy={"concurrency": 2, "attempts": 1})
    async with Fleet(guarded.url("producer")) as fleet:
        fetches = [Fetch(url=at.url(f"/{place}")) for place in range(FETCHES) for at in (origin, other)]
        after = [at.url("/after") for at in (origin, other)]
        batch = await fleet.submit(fetches)
        await wait_until(lambda: origin.in_progress, "a request")

        lanes = [OTHER_HOST, "localhost"]
        forged = forgeries.forged_in_lanes(HOST, origin.url("/forged"), batch.id, lanes)
        tried = Counter[str]()
        for user in USERS:
            async with connect(guarded.url(user)) as client:
                for command in forged.values():
                    try:
                        await ask(client, *command)
                    except NoPermissionError:
                        continue
                    tried[user] += 1
        async with connect(guarded.url("producer")) as client:
            for command in forgeries.SERIALS.values():
                await ask(client, *command)
        half.resume.set()
        results = await results_of(batch)
        await results_of(await fleet.submit([*after, "http://localhost:1/after"]))
        counts = await batch.counts()

    assert {"operator": len(forged), "producer": len(forged)} == tried
    assert [fetch.url for fetch in fetches] == [result.url for result in results]
    assert {Outcome.STORED} == {result.outcome for result in results}
    assert (len(fetches), len(fetches)) == (counts.total, counts.stored)
    for at in (origin, other):
        wanted = {f"/{place}" for place in range(FETCHES)} | {"/after"}
        assert dict.fromkeys(wanted, 1) == Counter(request.target for request in at.requests)
        assert at.high_water <= 2
    await wait_until(lambda: quiet(admin), "an empty queue")
    assert 0 == await backlog(admin)
    letters = [letter for _, letter in await ask(admin, "XRANGE", keys.DEAD, "-", "+")]
    by_lane = Counter(letter.get(b"lane") for letter in letters if letter[b"reason"] == b"invalid")
    elements = {HOST: 10, OTHER_HOST: 4, "localhost": 4}
    assert {lane.encode(): 2 * count for lane, count in elements.items()}.items() <= by_lane.items()
    assert WHY <= {line["why"] for line in lines if line["event"] == "lane.invalid"}
    await worker.stop()


async def test_a_pusher_can_write_only_its_own_batches(
    guarded: GuardedRedis, admin: Redis, start: Start, origin: Origin
) -> None:
    """The batch of a producer ends as if nothing had been pushed."""
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
        half.resume.set()
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


async def quiet(admin: Redis) -> bool:
    """Return whether arq's queue has no foreign member, and no lane is at work."""
    return not await admin.zcard(keys.QUEUE) and not await admin.zcard(keys.ATTENTION)
