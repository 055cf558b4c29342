"""Servers that cannot serve a fleet: workers and producers end at once, with the reason."""

import asyncio
import os
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import structlog

from fetchfleet import Fleet, UnsupportedRedisError
from fetchfleet.jobs.redis_connection import connect
from fetchfleet.worker.errors import BAD_USE, FAILED, CommandError
from fetchfleet.worker.lanes.store import LaneStore
from fetchfleet.worker.local.process import die_with_parent
from fetchfleet.worker.redis_support.startup import await_usable_redis, startup_permissions
from tests.support.own_redis import own_redis
from tests.support.redis import serve, server_binary
from tests.support.waiting import wait_until
from tests.support.workers import fetchfleet


async def start_on(url: str) -> None:
    """Check Redis as a worker does at its start."""
    async with connect(url) as redis:
        with startup_permissions():
            await await_usable_redis(redis, url, structlog.get_logger())
            store = LaneStore(redis, "worker", 8000)
            try:
                await store.renew([])
            finally:
                await store.aclose()


async def test_in_cluster_mode_workers_producers_and_commands_end_at_once() -> None:
    """It holds with and without assigned slots. The message names the remedy."""
    with TemporaryDirectory(prefix="ff-") as folder:
        url = f"unix://{folder}/redis.sock"
        address = f"127.84.{os.getpid() // 250 % 250}.{os.getpid() % 250 + 1}"  # of this process alone
        options = {"port": "6379", "bind": address, "unixsocket": "redis.sock", "cluster-enabled": "yes"}
        with serve(Path(folder), options, url):
            for assigned in (False, True):
                if assigned:
                    async with connect(url) as redis:
                        await redis.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)  # type: ignore[no-untyped-call]
                with pytest.raises(CommandError, match="cluster mode") as refused:
                    await start_on(url)
                assert BAD_USE == refused.value.exit_code
                async with Fleet(url) as fleet:
                    with pytest.raises(UnsupportedRedisError, match=r"cluster mode.*use a Redis without"):
                        await fleet.submit(["http://host.example/"])
            worker = await asyncio.to_thread(fetchfleet, "worker", "--redis", url, "--out", folder)
            submit = await asyncio.to_thread(
                fetchfleet, "submit", "-", "--redis", url, stdin="http://host.example/"
            )

    for ended in (worker, submit):
        assert (BAD_USE, 1) == (ended.returncode, len(ended.stderr.splitlines())), ended.stderr
        assert "cluster mode" in ended.stderr


async def test_a_replica_is_refused_with_the_address_of_its_primary() -> None:
    """It may become a primary, so a process manager may try again."""
    with own_redis("--replicaof", "127.0.0.1 1") as server:
        await wait_until(server.responds, "Redis")
        with pytest.raises(
            CommandError, match=r"replica: give the URL of the primary, 127\.0\.0\.1:1"
        ) as refused:
            await start_on(server.url)

    assert FAILED == refused.value.exit_code


@pytest.mark.parametrize("command", ["EVALSHA", "MULTI"])
async def test_a_redis_without_a_needed_command_is_refused(command: str) -> None:
    """The command was renamed: without EVALSHA no script can run."""
    with own_redis("--rename-command", command, "") as server:
        await wait_until(server.responds, "Redis")
        async with connect(server.url) as redis:
            with startup_permissions():
                await await_usable_redis(redis, server.url, structlog.get_logger())
        if command == "EVALSHA":
            with pytest.raises(UnsupportedRedisError, match=r"EVALSHA.*rename-command"):
                await start_on(server.url)
            async with Fleet(server.url) as fleet:
                with pytest.raises(UnsupportedRedisError, match=r"EVALSHA.*rename-command"):
                    await fleet.submit(["http://host.example/"])
        else:
            with pytest.raises(CommandError, match=r"unknown command.*rename-command") as refused:
                await without(command, server.url)
            assert BAD_USE == refused.value.exit_code


async def without(command: str, url: str) -> None:
    """Use a command that the Redis lacks, as a worker does at its start."""
    async with connect(url) as redis:
        with startup_permissions():
            await redis.execute_command(command)  # type: ignore[no-untyped-call]


async def test_a_sentinel_is_refused() -> None:
    """Workers use its INFO, producers its missing commands."""
    with TemporaryDirectory(prefix="ff-") as folder:
        url = f"unix://{folder}/redis.sock"
        (Path(folder) / "sentinel.conf").touch()
        arguments = [server_binary(), f"{folder}/sentinel.conf", "--sentinel", "--port", "0"]
        with subprocess.Popen(  # noqa: ASYNC220 it only starts it
            [*arguments, "--unixsocket", f"{folder}/redis.sock"],
            stdout=subprocess.DEVNULL,
            preexec_fn=die_with_parent,  # noqa: PLW1509 no threads hold locks here
        ) as server:
            try:
                await wait_until(Path(folder, "redis.sock").exists, "the Sentinel")
                with pytest.raises(CommandError, match="URL of a Sentinel") as refused:
                    await start_on(url)
                async with Fleet(url) as fleet:
                    with pytest.raises(UnsupportedRedisError, match="if it is a Sentinel, use"):
                        await fleet.submit(["http://host.example/"])
            finally:
                server.kill()

    assert BAD_USE == refused.value.exit_code


@pytest.mark.parametrize(
    ("banner", "message"),
    [
        (b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n", "is not Redis .*check host and port"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "is not Redis .*check host and port"),
        (b"220 mail.example ESMTP\r\n", "is not Redis .*check host and port"),
        (b"\x15\x03\x03\x00\x02\x02\x46", "is not Redis .*rediss://"),
    ],
    ids=["http", "ssh", "smtp", "tls"],
)
async def test_a_server_that_is_not_redis_is_refused(banner: bytes, message: str) -> None:
    """Workers and producers refuse it."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(banner)
        await reader.read()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        url = f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        with pytest.raises(UnsupportedRedisError, match=message):
            await start_on(url)
        async with Fleet(url) as fleet:
            with pytest.raises(UnsupportedRedisError, match=message):
                await fleet.submit(["http://host.example/"])
