"""Failures of Redis cost a client a pause and two log lines. A denial raises an error."""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress

import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from fetchfleet import Fleet, FleetUnreachableError, Results
from fetchfleet.jobs import keys, patience, redis_connection
from fetchfleet.jobs.client import batch as batch_module
from fetchfleet.jobs.redis_connection import connect
from tests.support.lanes import LaneHold, ask, stored, url
from tests.support.own_redis import OwnRedis, own_redis
from tests.support.waiting import wait_until

REPLY_S = 0.4
PATIENCE_S = 30.0

AsyncFault = AsyncIterator[None]
Fault = Callable[[OwnRedis, Redis], AsyncFault]
"""A fault of Redis: up to its yield it begins, and then it ends."""


async def _killed(server: OwnRedis, _: Redis) -> AsyncFault:
    """Kill Redis, then start it from its append-only file."""
    await asyncio.to_thread(server.kill)
    yield
    server.start()


async def _frozen(server: OwnRedis, _: Redis) -> AsyncFault:
    """Stop Redis, with its connections open."""
    server.freeze()
    yield
    server.thaw()


async def _read_only(_: OwnRedis, admin: Redis) -> AsyncFault:
    """Make Redis a replica without a primary, then a primary again."""
    await admin.replicaof("127.0.0.1", 1)
    yield
    await admin.replicaof("NO", "ONE")


async def _refusing_connections(_: OwnRedis, admin: Redis) -> AsyncFault:
    """Fill Redis with clients, and disconnect all others."""
    await admin.config_set("maxclients", 1)
    await admin.client_kill_filter(_type="normal", skipme=True)
    yield
    await admin.config_set("maxclients", 1000)


async def _without_replicas(_: OwnRedis, admin: Redis) -> AsyncFault:
    """Take away the replicas that Redis requires for writes."""
    await admin.config_set("min-replicas-to-write", 1)
    yield
    await admin.config_set("min-replicas-to-write", 0)


async def _busy(server: OwnRedis, admin: Redis) -> AsyncFault:
    """Run an endless script."""
    await admin.config_set("lua-time-limit", 1)
    async with connect(server.url) as other:
        script = asyncio.create_task(ask(other, "EVAL", "while true do end", 0))
        await wait_until(lambda: is_busy(admin), "the script")
        yield
        await admin.script_kill()
        with suppress(RedisError):
            await script


async def _loading(server: OwnRedis, admin: Redis) -> AsyncFault:
    """Restart Redis with slow loading."""
    await admin.mset({f"filler:{n}": os.urandom(2048) for n in range(150)})
    await asyncio.to_thread(server.kill)
    server.start("--key-load-delay", "20000", "--loading-process-events-interval-bytes", "1024")
    yield
    reader, writer = await asyncio.open_unix_connection(server.socket)
    writer.write(b"CONFIG SET key-load-delay 0\r\n")
    assert b"+OK\r\n" == await reader.readline()
    writer.close()
    await writer.wait_closed()


ITEMS_HOST = "b.example"
FAULTS = [_killed, _frozen, _read_only, _refusing_connections, _without_replicas, _busy, _loading]
READS_GO_ON = {_read_only, _without_replicas}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use short timeouts and pauses."""
    monkeypatch.setattr(redis_connection, "SOCKET_TIMEOUT_S", REPLY_S)
    monkeypatch.setattr(patience, "MAX_PAUSE_S", 0.05)
    monkeypatch.setattr(batch_module, "READ_BLOCK_MS", 20)
    monkeypatch.setattr(batch_module, "POLL_S", 0.02)


@pytest.fixture
def server() -> Iterator[OwnRedis]:
    """Start a Redis of this test."""
    with own_redis() as running:
        yield running


async def all_of(server: OwnRedis, fleet: Fleet, fault: Fault, warnings: list[str]) -> None:
    """Let every call meet the fault."""
    half, resume = asyncio.Event(), asyncio.Event()

    async def items() -> AsyncIterator[str]:
        for number in range(1000):
            if number == 600:
                half.set()
                await resume.wait()
            yield url(f"/{number}", ITEMS_HOST)

    async with Redis.from_url(server.url) as admin:
        followed = await fleet.submit([url(f"/{number}") for number in range(5)])
        unwanted = await fleet.submit([url("/unwanted", "c.example")])
        hold = await LaneHold.begin(admin)
        await hold.settle(*(stored(one) for one in (await hold.claim(2)).serialized))
        reader = followed.results(trim=True)
        seen = [(await anext(reader)).url for _ in range(2)]
        submitting = asyncio.create_task(fleet.submit(items()))
        await half.wait()

        steps = fault(server, admin)
        await anext(steps)
        resume.set()
        reading = asyncio.create_task(rest_of(reader))
        waiting, counting = asyncio.create_task(followed.wait()), asyncio.create_task(followed.counts())
        listing, cancelling = asyncio.create_task(fleet.batches()), asyncio.create_task(unwanted.cancel())
        await wait_until(lambda: warnings, "the line", every_s=0.001)
        await asyncio.sleep(2 * REPLY_S)  # the fault itself: nothing is waited for
        assert not submitting.done()
        assert not cancelling.done()
        assert fault in READS_GO_ON or not (counting.done() or listing.done())
        assert await anext(steps, "over") == "over"
        await wait_until(server.responds, "Redis again", PATIENCE_S)
        await wait_until(lambda: reconnected(admin), "the connection")
        await hold.settle(*(stored(one) for one in (await hold.claim()).serialized))
        await hold.release()
        async with asyncio.timeout(PATIENCE_S):
            submitted = await (await submitting).counts()
            assert [url(f"/{number}") for number in range(5)] == seen + await reading
            assert (5, 5, True) == ((await waiting).total, (await waiting).stored, (await counting).sealed)
            assert (1000, True) == (submitted.total, submitted.sealed)
            assert (await cancelling).sealed
            assert {followed.id, unwanted.id} <= {batch.id for batch in await listing}


async def rest_of(reader: Results) -> list[str]:
    """Read to the end."""
    return [result.url async for result in reader]


async def is_busy(client: Redis) -> bool:
    """Return whether Redis refuses commands because a script runs."""
    try:
        await client.ping()
    except ResponseError as error:
        return str(error).startswith("BUSY")
    return False


async def reconnected(client: Redis) -> bool:
    """Return whether the client works, perhaps on a new connection."""
    with suppress(RedisError, OSError):
        return bool(await client.ping())
    return False


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__[1:])
async def test_every_call_waits_for_redis_and_continues(server: OwnRedis, fault: Fault) -> None:
    """A submit within its items, a reader, a wait, counts, a cancel and a list of batches."""
    warnings: list[str] = []
    await wait_until(server.responds, "Redis")
    async with Fleet(server.url, redis_patience_s=PATIENCE_S, warn=warnings.append) as fleet:
        await all_of(server, fleet, fault, warnings)

    assert warnings[0].startswith("Redis does not answer: ")
    assert ["Redis answers again"] == [line[:19] for line in warnings[1:]]


@pytest.mark.parametrize("fault", [_killed, _frozen, _read_only], ids=lambda fault: fault.__name__[1:])
async def test_the_error_names_the_batch_and_the_place(server: OwnRedis, fault: Fault) -> None:
    """The call raises after its patience. This reader and others can continue from the position."""
    await wait_until(server.responds, "Redis")
    async with (
        Fleet(server.url, redis_patience_s=0.8, warn=list[str]().append) as fleet,
        Redis.from_url(server.url) as admin,
    ):
        await admin.flushall()
        batch = await fleet.submit([url(f"/{number}") for number in range(3)])
        hold = await LaneHold.begin(admin)
        await hold.settle(*(stored(one) for one in (await hold.claim(2)).serialized))
        reader = batch.results()
        seen = [(await anext(reader)).url for _ in range(2)]
        steps = fault(server, admin)
        await anext(steps)
        with pytest.raises(FleetUnreachableError) as of_a_submit:
            await fleet.submit([url("/more")])
        if fault not in READS_GO_ON:
            with pytest.raises(FleetUnreachableError) as of_a_reader:
                await anext(reader)
            assert (batch.id, reader.position) == (of_a_reader.value.batch_id, of_a_reader.value.position)
        assert await anext(steps, "over") == "over"
        await wait_until(server.responds, "Redis again")
        await wait_until(lambda: reconnected(admin), "the connection")
        await hold.finish()
        after = batch.results(after=reader.position)
        assert [url("/2")] == await rest_of(after) == await rest_of(reader)
        assert [url(f"/{number}") for number in range(3)] == [*seen, url("/2")]
        error = of_a_submit.value
        more = await fleet.submit([url("/more")], batch_id=error.batch_id)
        assert 1 == (await more.counts()).total
    assert isinstance(error, RedisError)
    assert isinstance(error.__cause__, RedisError)
    assert error.batch_id in str(error)


async def test_a_denial_is_raised_at_once(server: OwnRedis) -> None:
    """A denied command, a wrong password, a missing database, a key of another type."""
    warnings: list[str] = []
    await wait_until(server.responds, "Redis")
    async with Redis.from_url(server.url) as admin:
        await admin.flushall()
        await ask(admin, "ACL", "SETUSER", "u", "on", ">pw", "~*", "&*", "+@all", "-hmget", "-evalsha")
        free, taken = "0" * 16, "1" * 16
        await ask(admin, "RPUSH", keys.batch(taken), "x")
        socket = server.url.removeprefix("unix://")
        for url_of, batch_id, refusal in (
            (f"unix://u:pw@{socket}", free, "no permissions"),
            (f"unix://u:wrong@{socket}", free, "invalid username-password"),
            (f"unix://{socket}?db=99", free, "does not have the database"),
            (server.url, taken, "another program has written it"),
        ):
            async with asyncio.timeout(5), Fleet(url_of, warn=warnings.append) as fleet:
                with pytest.raises(RedisError, match=refusal):
                    await fleet.submit([url("/x")], batch_id=batch_id)
                with pytest.raises(RedisError, match=refusal):
                    await anext(fleet.batch(batch_id).results(follow=False))
    assert [] == warnings


async def test_a_suspended_process_continues(server: OwnRedis) -> None:
    """A reader that was stopped for longer than a reply timeout yields each result once."""
    program = (
        "import asyncio, sys\n"
        "from fetchfleet import Fleet\n"
        "from fetchfleet.jobs import redis_connection\n"
        "redis_connection.SOCKET_TIMEOUT_S = 0.6\n"
        "async def main():\n"
        "    async with Fleet(sys.argv[1]) as fleet:\n"
        "        async for result in fleet.batch(sys.argv[2]).results():\n"
        "            print(result.url, flush=True)\n"
        "asyncio.run(main())\n"
    )
    await wait_until(server.responds, "Redis")
    async with Fleet(server.url) as fleet, Redis.from_url(server.url) as admin:
        await admin.flushall()
        batch = await fleet.submit([url(f"/{number}") for number in range(3)])
        hold = await LaneHold.begin(admin)
        reader = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", program, server.url, batch.id), stdout=PIPE, stderr=PIPE
        )
        assert reader.stdout
        assert reader.stderr
        await hold.settle(*(stored(one) for one in (await hold.claim(1)).serialized))
        first = await reader.stdout.readline()
        reader.send_signal(signal.SIGSTOP)
        await asyncio.sleep(1.2)  # the suspension
        await hold.finish()
        reader.send_signal(signal.SIGCONT)
        rest, warned = await asyncio.gather(reader.stdout.read(), reader.stderr.read())
        assert 0 == await reader.wait(), warned.decode()

    assert [url(f"/{number}") for number in range(3)] == [*first.decode().split(), *rest.decode().split()]
    assert 2 >= len(warned.splitlines())
