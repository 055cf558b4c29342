"""Redis outages: restart, kill, freeze, read-only, refused connections, failover and loading."""

import asyncio
import os
import socket
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from fetchfleet import Batch, Fleet, Outcome
from fetchfleet.jobs import keys
from fetchfleet.jobs import redis_connection as connecting
from fetchfleet.jobs.redis_connection import connect
from tests.support.named_workers import named_workers, results_of
from tests.support.own_redis import OwnRedis, own_redis
from tests.support.waiting import wait_until
from tests.support.workers import QUICK_POLICY, fetchfleet
from tools.chaos.collect import listed
from tools.origin.behaviours import OK, held, latency
from tools.origin.server import Origin

LEASE_S = 4.0
FAULT_S = 7.0
"""Longer than a lease, and than the time after which a sweep reclaims lanes without a renewal."""

RESUMED_S = 5.0
RECOVERY_S = 30.0
CONCURRENCY = 2
POLICY = f"{QUICK_POLICY}concurrency = {CONCURRENCY}\n"

Step = Callable[[OwnRedis, Redis], Awaitable[object]]
"""A change of a Redis; the client is already connected."""


async def _shut_down(server: OwnRedis, _: Redis) -> None:
    await asyncio.to_thread(server.shut_down)


async def _kill(server: OwnRedis, _: Redis) -> None:
    await asyncio.to_thread(server.kill)


async def _start(server: OwnRedis, _: Redis) -> None:
    server.start()
    await wait_until(server.responds, "Redis", RECOVERY_S)


async def _freeze(server: OwnRedis, _: Redis) -> None:
    server.freeze()


async def _thaw(server: OwnRedis, _: Redis) -> None:
    server.thaw()


async def _demote(_: OwnRedis, client: Redis) -> None:
    await client.replicaof("127.0.0.1", 1)


async def _promote(_: OwnRedis, client: Redis) -> None:
    await client.replicaof("NO", "ONE")


async def _refuse_connections(_: OwnRedis, client: Redis) -> None:
    """Close all other connections and refuse new ones."""
    await client.config_set("maxclients", 1)
    await client.client_kill_filter(_type="normal", skipme=True)


async def _accept_connections(_: OwnRedis, client: Redis) -> None:
    await client.config_set("maxclients", 1000)


FAULTS: dict[str, tuple[Step, Step]] = {
    "restarted": (_shut_down, _start),
    "killed": (_kill, _start),
    "frozen": (_freeze, _thaw),
    "read-only": (_demote, _promote),
    "refusing connections": (_refuse_connections, _accept_connections),
}
HOST = "127.0.1.60"


async def run_with_fault(fault: str, number: int, folder: Path) -> None:
    """Run two workers during a fault of Redis, and check that nothing is lost."""
    begin, end = FAULTS[fault]
    may_end = asyncio.Event()
    async with AsyncExitStack() as stack:
        busy, long = [
            await stack.enter_async_context(Origin.serving(f"127.0.1.{number}{n}", behaviour))
            for n, behaviour in enumerate((latency(0.04), held(may_end)))
        ]
        server = stack.enter_context(own_redis())
        await wait_until(server.responds, "Redis")
        client = await stack.enter_async_context(connect(server.url))
        fleet = await stack.enter_async_context(Fleet(server.url))
        workers = stack.enter_context(
            named_workers(server.url, folder / fault, POLICY, FETCHFLEET_LEASE_S=f"{LEASE_S}")
        )
        await workers.start_all("one", "two")
        batch = await fleet.submit(
            [*(busy.url(f"/{n}") for n in range(120)), *(long.url(f"/{n}") for n in range(CONCURRENCY))]
        )
        await wait_until(lambda: len(busy.requests) >= 20 and long.in_progress == CONCURRENCY, "the work")

        await begin(server, client)
        may_end.set()  # these bodies end while their results cannot be written
        await asyncio.sleep(FAULT_S)
        assert ["one", "two"] == workers.alive()
        seen = len(busy.requests)
        await end(server, client)
        await wait_until(lambda: len(busy.requests) > seen, f"work after {fault}", RESUMED_S)
        results = await results_of(fleet, batch.id)
        await server.wait_until_clean()

        assert {Outcome.STORED} == {result.outcome for result in results.values()}
        assert {1} == {result.attempts for result in results.values()}
        assert 122 == (await batch.counts()).done
        assert ["one", "two"] == workers.alive()
        assert any(member.events("redis.trouble") for member in workers.members.values())
        for origin in (busy, long):
            assert [] == completed_twice(origin)
            assert origin.high_water <= CONCURRENCY


def completed_twice(origin: Origin) -> list[str]:
    """Return the targets with more than one complete response."""
    complete = Counter(seen.target for seen in origin.requests if seen.status == 200 and not seen.aborted)
    return [target for target, times in complete.items() if times > 1]


async def test_i09_i10_a_redis_outage_ends_no_worker_and_repeats_no_complete_body(tmp_path: Path) -> None:
    """Redis is unusable for longer than a lease, in five ways: each fetch has one result."""
    ended = await asyncio.gather(
        *(run_with_fault(fault, number, tmp_path) for number, fault in enumerate(FAULTS, 1)),
        return_exceptions=True,
    )
    failed = {fault: error for fault, error in zip(FAULTS, ended, strict=True) if error is not None}
    if failed:
        raise ExceptionGroup(
            f"failed with Redis {', '.join(failed)}", [e for e in failed.values() if isinstance(e, Exception)]
        )


async def test_i10_a_frozen_redis_causes_a_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    """The socket has a timeout, so that callers need none of their own."""
    monkeypatch.setattr(connecting, "SOCKET_TIMEOUT_S", 0.2)
    with own_redis() as server:
        await wait_until(server.responds, "Redis")
        async with connect(server.url) as client:
            await client.ping()
            server.freeze()
            with pytest.raises(RedisTimeoutError):
                await client.ping()
            server.thaw()
            await wait_until(server.responds, "Redis again")


SYNC_AT_ONCE = ("--repl-diskless-sync-delay", "0")


def free_port() -> int:
    """Return a port without a listener."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def test_i09_a_worker_follows_a_failover_behind_the_same_address(tmp_path: Path) -> None:
    """The old primary keeps running as a read-only replica."""
    ports = free_port(), free_port()
    address = tmp_path / "redis.sock"
    async with AsyncExitStack() as stack:
        origin = await stack.enter_async_context(Origin.serving(HOST, OK))
        old, new = [stack.enter_context(own_redis("--port", str(port), *SYNC_AT_ONCE)) for port in ports]
        old_client, new_client = [
            await stack.enter_async_context(connect(server.url)) for server in (old, new)
        ]
        for server in (old, new):
            await wait_until(server.responds, "Redis")
        await new_client.replicaof("127.0.0.1", ports[0])
        await wait_until(lambda: _follows(new_client), "the replica", RECOVERY_S)
        address.symlink_to(old.socket)
        workers = stack.enter_context(named_workers(f"unix://{address}", tmp_path / "fleet", QUICK_POLICY))
        await workers.start_all("worker")

        await new_client.replicaof("NO", "ONE")
        await old_client.replicaof("127.0.0.1", ports[1])
        address.unlink()
        address.symlink_to(new.socket)
        fleet = await stack.enter_async_context(Fleet(f"unix://{address}"))
        batch = await fleet.submit([origin.url("/after")])
        results = await results_of(fleet, batch.id)

    assert [Outcome.STORED] == [result.outcome for result in results.values()]


async def _follows(client: Redis) -> bool:
    return bool((await client.info("replication")).get("master_link_status") == "up")


SLOW_LOADING = ("--key-load-delay", "50000", "--loading-process-events-interval-bytes", "1024")
"""Redis takes 50 ms for each key that it loads, and handles connections meanwhile."""
KEYS = 400


async def test_i09_a_worker_started_while_redis_is_loading_waits_for_it(tmp_path: Path) -> None:
    """It logs that once, and exits with 0 on SIGTERM. A worker that ran before continues."""
    async with AsyncExitStack() as stack:
        origin = await stack.enter_async_context(Origin.serving(HOST, OK))
        server = stack.enter_context(own_redis("--appendonly", "no"))
        await wait_until(server.responds, "Redis")
        async with connect(server.url) as client:
            await client.mset({f"filler:{n}": os.urandom(2048) for n in range(KEYS)})
            await client.save()
        async with Fleet(server.url) as fleet:
            workers = stack.enter_context(named_workers(server.url, tmp_path, QUICK_POLICY))
            await workers.start_all("before")
            server.kill()
            server.start(*SLOW_LOADING)
            await wait_until(lambda: _is_loading(server), "Redis to load")
            members = [workers.start("waiting"), workers.start("terminated")]
            for member in members:
                await wait_until(partial(member.events, "redis.loading"), "the worker to wait", RECOVERY_S)
            assert 0 == await members[1].terminated()
            assert [] == members[0].events("worker.started")
            await _send_raw(server, b"CONFIG SET key-load-delay 0\r\n")
            await members[0].started()
            batch = await fleet.submit([origin.url()])
            results = await results_of(fleet, batch.id)
            async with connect(server.url) as client:

                async def joined() -> bool:
                    return "before" in await listed(client)

                await wait_until(joined, "a heartbeat", RESUMED_S)

    assert [Outcome.STORED] == [result.outcome for result in results.values()]
    assert [1, 1] == [len(member.events("redis.loading")) for member in members]


async def _send_raw(server: OwnRedis, command: bytes) -> None:
    """Send a raw command; redis-py cannot connect while Redis is loading."""
    reader, writer = await asyncio.open_unix_connection(server.socket)
    writer.write(command)
    assert b"+OK\r\n" == await reader.readline()
    writer.close()
    await writer.wait_closed()


async def _is_loading(server: OwnRedis) -> bool:
    async with Redis.from_url(server.url) as client:
        try:
            await client.ping()
        except (RedisError, OSError) as error:
            return "loading" in repr(error).lower()
    return False


async def _acl(admin: Redis, *rules: str) -> None:
    await admin.execute_command("ACL", "SETUSER", "u", *rules)  # type: ignore[no-untyped-call]


async def test_a_command_that_redis_denies_is_reported_in_one_line(tmp_path: Path) -> None:
    """At startup the worker exits. Later it logs each error once, until the command is permitted."""
    async with AsyncExitStack() as stack:
        origin = await stack.enter_async_context(Origin.serving(HOST, OK))
        server = stack.enter_context(own_redis())
        await wait_until(server.responds, "Redis")
        admin = await stack.enter_async_context(connect(server.url))
        await _acl(admin, "on", ">pw", "~*", "&*", "+@all")
        url = server.url.replace("unix://", "unix://u:pw@")
        workers = stack.enter_context(named_workers(url, tmp_path / "fleet", QUICK_POLICY))
        [worker] = await workers.start_all("worker")

        await _acl(admin, "-@all")
        await wait_until(lambda: worker.events("redis.refusal"), "the refusal", RECOVERY_S)
        ended = await asyncio.to_thread(
            fetchfleet, "worker", "--redis", url, FETCHFLEET_OUT=str(tmp_path / "o")
        )
        assert (1, 1) == (ended.returncode, len(ended.stderr.splitlines())), ended.stderr
        assert "docs/security.md" in ended.stderr
        await _acl(admin, "+@all")
        async with Fleet(server.url) as fleet:
            batch = await fleet.submit([origin.url()])
            results = await results_of(fleet, batch.id)
        refusals = worker.events("redis.refusal")

        await admin.config_set("maxmemory-policy", "allkeys-lru")
        evicts = await asyncio.to_thread(
            fetchfleet, "worker", "--redis", url, FETCHFLEET_OUT=str(tmp_path / "o")
        )
        assert (1, 1) == (evicts.returncode, len(evicts.stderr.splitlines()))
        assert "CONFIG SET maxmemory-policy noeviction" in evicts.stderr

    assert [Outcome.STORED] == [result.outcome for result in results.values()]
    assert {"error"} == {line["level"] for line in refusals}
    assert [] == [text for text, times in Counter(line["error"] for line in refusals).items() if times > 1]
    assert all("NoPermissionError" in line["error"] for line in refusals)


async def test_i11_a_redis_that_always_syncs_loses_no_acknowledged_batch(tmp_path: Path) -> None:
    """Redis is killed in a burst of submits. Every fetch of an acknowledged batch still waits."""
    acknowledged: list[Batch] = []
    with own_redis("--appendfsync", "always") as server:
        await wait_until(server.responds, "Redis")

        async def produce(name: int) -> None:
            async with Fleet(server.url, redis_patience_s=0) as fleet:
                while True:
                    batch = await fleet.submit(f"http://host-{name}.example/{n}" for n in range(20))
                    acknowledged.append(batch)

        producers = [asyncio.create_task(produce(name)) for name in range(4)]
        await wait_until(lambda: len(acknowledged) >= 100, "a burst", RECOVERY_S)
        await asyncio.to_thread(server.kill)
        ended = await asyncio.gather(*producers, return_exceptions=True)
        server.start()
        await wait_until(server.responds, "Redis", RECOVERY_S)
        async with Fleet(server.url) as fleet, connect(server.url) as client:
            totals = [(await fleet.batch(batch.id).counts()).total for batch in acknowledged]
            waiting = [
                element[:16].decode()
                for name in range(4)
                for element in await client.lrange(keys.waiting_at(f"host-{name}.example", "normal"), 0, -1)  # type: ignore[misc]
            ]

    assert all(isinstance(error, RedisError | OSError) for error in ended)
    assert {20} == set(totals)
    waiting_in = Counter(waiting)
    assert [] == [batch.id for batch in acknowledged if waiting_in[batch.id] != 20]
