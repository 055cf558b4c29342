"""Fleet(via="inbox"): the same API for a Redis user that may push to its inbox and read its own batches."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Self

import msgspec
import pytest
from redis.asyncio import Redis
from redis.exceptions import NoPermissionError

from fetchfleet import (
    Accept,
    BatchCancelledError,
    BatchExistsError,
    Fetch,
    Fleet,
    FleetFullError,
    FleetUnreachableError,
    InvalidFetchError,
    RedisFullError,
    RedisSetupError,
    RoleError,
    UnknownBatchError,
    batch_id_for,
)
from fetchfleet.jobs import keys
from fetchfleet.jobs.client import inbox as client_module
from fetchfleet.jobs.client.submit import Limits, Submitter
from fetchfleet.jobs.contract.ids import inbox_prefix
from fetchfleet.jobs.notifications import LaneNotification
from fetchfleet.jobs.redis_connection import connect
from fetchfleet.worker.intake.inbox import InboxReader, InboxTimings
from fetchfleet.worker.observability.log import get_logger
from fetchfleet.worker.redis_support.health import RedisErrorReporter
from fetchfleet.worker.util import aio
from tests.support import guarded_redis
from tests.support.guarded_redis import GuardedRedis, Refusal
from tests.support.lanes import LaneHold, ask, paths, url, waiting
from tests.support.waiting import wait_until

WHY_NOT = guarded_redis.acl_skip_reason()
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=WHY_NOT or "")

PUSHER = "pusher"
OWN = batch_id_for("own", PUSHER)


@pytest.fixture(scope="module")
def server() -> Iterator[GuardedRedis]:
    """Start a Redis with the users of a fleet."""
    with guarded_redis.serve_guarded() as guarded:
        yield guarded


@pytest.fixture
async def worker(server: GuardedRedis) -> AsyncIterator[Redis]:
    """Return the worker's client, on an empty Redis with the registered inbox of the pusher."""
    async with connect(server.admin_url) as admin:
        await admin.flushall()
        await admin.acl_log_reset()
        await admin.sadd(keys.INBOXES, PUSHER)  # type: ignore[misc]
        await admin.config_set("maxmemory", 0)
        async with connect(server.url("worker")) as client:
            yield client
        await admin.flushall()


@pytest.fixture
async def fleet(server: GuardedRedis) -> AsyncIterator[Fleet]:
    """Return the client of an untrusted producer."""
    async with Fleet(server.url(PUSHER), via="inbox") as door:
        yield door


class Intake:
    """A worker that empties the inboxes. limit: of the backlog."""

    def __init__(self, server: GuardedRedis, worker: Redis, limit: int = 0) -> None:
        log = get_logger()
        timings = InboxTimings(full_s=0.02, failed_s=0.02, other_owner_s=0.02)
        submitter = Submitter(worker, self.nothing, Limits(limit))
        report = RedisErrorReporter(log)
        self._reader = InboxReader(server.url("worker"), "w", submitter, report, log, timings)

    async def nothing(self, _: Iterable[LaneNotification]) -> None:
        """Wake no lane."""

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._reader.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        await aio.end(self._task)
        await self._reader.lease.end()
        await self._reader.aclose()


async def test_a_pusher_may_submit_read_and_cancel(server: GuardedRedis, worker: Redis, fleet: Fleet) -> None:
    """Redis denies none of the commands that the client sends."""
    async with Intake(server, worker):
        batch = await fleet.submit([Fetch(url=url("/1"), key="k"), url("/2"), {"url": url("/3")}])
        again = await fleet.submit([Fetch(url=url("/1"), key="k"), url("/4")])
        named = await fleet.submit([url("/n")], batch_id=OWN)
        assert OWN == (await fleet.submit([url("/n")], batch_id=OWN)).id == named.id
        with pytest.raises(BatchExistsError, match="holds other fetches"):
            await fleet.submit([url("/other")], batch_id=OWN)
        assert (await named.cancel()).sealed
        with pytest.raises(BatchCancelledError):
            await fleet.submit([url("/n")], batch_id=OWN)
        with pytest.raises(UnknownBatchError):
            await fleet.batch(batch_id_for("none", PUSHER)).cancel()
        empty = await fleet.submit([])
        await (await LaneHold.begin(worker)).finish()
        results = [result async for result in fleet.batch(batch.id).results()]

        assert batch.ids == [result.id for result in results]
        assert batch.ids[0] == again.ids[0]
        assert 3 == (await batch.wait()).stored
        assert (await empty.counts()).ended
        assert [] == await batch.retried_as()
        assert {inbox_prefix(PUSHER)} == {of.id[:8] for of in (batch, again, named, empty)}
    assert set() == server.refused()


async def test_an_iterator_and_a_long_list_are_sent_in_parts(
    server: GuardedRedis, worker: Redis, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their IDs are the same as without an inbox. Submitted again, they are enqueued once."""
    monkeypatch.setattr(client_module, "MAX_FETCHES_BYTES", 10_000)
    urls = [url(f"/{i}") for i in range(1003)]

    async def stream() -> AsyncIterator[str]:
        for text in urls:
            yield text

    async with Intake(server, worker):
        listed = await fleet.submit(urls, batch_id=OWN)
        in_before = paths(await waiting(worker))
        again = await fleet.submit(stream(), batch_id=OWN)
        nothing = await fleet.submit(iter([]))
        assert (await nothing.counts()).sealed
        assert (1003, True) == ((await listed.counts()).total, (await listed.counts()).sealed)
        in_after = paths(await waiting(worker))
        await (await LaneHold.begin(worker)).finish(1003)
        assert listed.ids == [result.id async for result in listed.results()]

    assert [f"/{i}" for i in range(1003)] == in_before == in_after
    assert [f"{OWN}-{place:08x}" for place in range(1003)] == listed.ids == again.ids


async def test_an_invalid_fetch_sends_nothing(worker: Redis, fleet: Fleet) -> None:
    """A list is checked as a whole, two fetches of one dest are refused, IDs of others are an error."""
    with pytest.raises(InvalidFetchError, match="item 1: url"):
        await fleet.submit([url("/1"), "no URL"])
    with pytest.raises(InvalidFetchError, match="item 1"):
        await fleet.submit([Fetch(url=url("/1"), dest="a"), Fetch(url=url("/2"), dest="a")])
    for call in (fleet.batch, lambda of: fleet.submit([], batch_id=of)):
        with pytest.raises(ValueError, match=f"begin with {inbox_prefix(PUSHER)}"):
            await call("0123456789abcdef")  # type: ignore[misc]

    assert not await worker.exists(keys.inbox(PUSHER))


async def test_a_full_fleet_refuses_or_waits(server: GuardedRedis, worker: Redis, fleet: Fleet) -> None:
    """The argument `when_full` decides. A waiting submit does not report missing workers."""
    async with Intake(server, worker, limit=1):
        await fleet.submit([url("/1")])
        with pytest.raises(FleetFullError, match="the limit is 1; nothing was enqueued"):
            await fleet.submit([url("/2")])
        waits = asyncio.create_task(fleet.submit([url("/3")], when_full="wait"))
        await wait_until(lambda: worker.exists(keys.taken(PUSHER)), "the message to be taken")
        await (await LaneHold.begin(worker)).finish()
        await waits
    assert ["/3"] == paths(await waiting(worker))


async def test_a_submit_without_a_worker_raises_and_may_be_repeated(
    server: GuardedRedis, worker: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The submit raises after its patience, and the messages of both calls are one batch."""
    monkeypatch.setattr(client_module, "MIN_PATIENCE_S", 0.3)
    async with Fleet(server.url(PUSHER), via="inbox", redis_patience_s=0.3) as fleet:
        with pytest.raises(FleetUnreachableError, match="fetchfleet inbox add pusher") as caught:
            await fleet.submit([url("/1")], batch_id=OWN)
        assert (OWN, 0) == (caught.value.batch_id, caught.value.enqueued)
        assert 1 == await worker.llen(keys.inbox(PUSHER))  # type: ignore[misc]
        async with Intake(server, worker):
            await fleet.submit([url("/1")], batch_id=OWN)
    assert ["/1"] == paths(await waiting(worker))


async def test_a_message_states_the_version_that_it_needs(
    server: GuardedRedis, worker: Redis, fleet: Fleet
) -> None:
    """A worker of an older version then leaves the message to a newer one. A webhook needs it too."""
    versions = []
    for accept, notify in ((None, None), (Accept(types=("image/*",)), None), (None, url("/hook"))):
        fetches = [Fetch(url=url("/old")), Fetch(url=url("/new"), accept=accept)]
        submit = asyncio.create_task(fleet.submit(fetches, notify=notify))
        [message] = await wait_until(lambda: ask(worker, "LRANGE", keys.inbox(PUSHER), 0, -1), "a message")
        versions.append(msgspec.json.decode(message)["v"])
        async with Intake(server, worker):
            await submit

    assert [1, 2, 2] == versions
    assert ["/old", "/new"] * 3 == paths(await waiting(worker))


async def test_a_redis_without_memory_raises(server: GuardedRedis, worker: Redis, fleet: Fleet) -> None:
    """Redis refuses the push, so the inbox stays empty."""
    async with connect(server.admin_url) as admin:
        await admin.config_set("maxmemory", 1)
        with pytest.raises(RedisFullError, match="nothing was enqueued"):
            await fleet.submit([url("/1")])
        await admin.config_set("maxmemory", 0)
    assert not await worker.exists(keys.inbox(PUSHER))


async def test_a_denied_method_names_the_required_role(
    server: GuardedRedis, worker: Redis, fleet: Fleet
) -> None:
    """The client raises before it sends a command. Redis itself denies an inbox of another name."""
    with pytest.raises(RoleError, match="cannot list batches"):
        await fleet.batches()
    with pytest.raises(RoleError, match="cannot read dead letters"):
        fleet.dead  # noqa: B018 it raises
    assert set() == server.refused()
    async with Fleet(server.url(PUSHER), via="inbox", inbox="other") as other:
        with pytest.raises(NoPermissionError):
            await other.submit([url("/1")])
    assert {Refusal(PUSHER, keys.inbox("other"))} == server.refused()
    with pytest.raises(RedisSetupError, match="is not the name of an inbox"):
        Fleet("redis://Upper@localhost", via="inbox")
    with pytest.raises(ValueError, match="the workers limit an inbox"):
        Fleet("redis://bob@localhost", via="inbox", max_backlog=1)
    assert not await worker.exists(keys.inbox(PUSHER))
