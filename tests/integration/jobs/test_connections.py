"""Connections to Redis send at once, and find unexpected input before a command."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from fetchfleet.jobs.redis_connection import connection_pool
from tests.support.lanes import ask


@pytest.fixture
async def connection(redis_url: str) -> AsyncIterator[Any]:
    """Return a connection that a pool has connected."""
    pool = connection_pool(redis_url)
    found = await pool.get_connection()
    yield found
    await pool.release(found)
    await pool.aclose()


async def unread(connection: Any) -> None:
    """Return once a reply has arrived."""
    async with asyncio.timeout(5):
        while not await connection.can_read_destructive():  # noqa: ASYNC110 the reply is in transit
            await asyncio.sleep(0)


async def test_an_unsolicited_reply_is_detected(connection: Any) -> None:
    """The pool would pass it to the next command, read or still unread."""
    assert not await connection.can_read_destructive()

    await connection.send_command("ECHO", "a")
    await unread(connection)
    await connection.send_command("ECHO", "b")
    assert await connection.read_response() == b"a"
    assert await connection.can_read_destructive() or await connection.read_response() == b"b"


async def test_a_connection_closed_by_redis_is_detected(connection: Any, redis: Redis) -> None:
    """The client detects it before it sends a command."""
    await connection.send_command("CLIENT", "ID")
    await ask(redis, "CLIENT", "KILL", "ID", await connection.read_response())

    with pytest.raises(RedisConnectionError):
        await unread(connection)


async def test_a_command_larger_than_the_socket_buffer_is_sent(connection: Any) -> None:
    """The connection waits for the socket then."""
    size_bytes = 8 << 20
    await connection.send_packed_command(connection.pack_command("ECHO", b"x" * size_bytes))

    assert len(await connection.read_response()) == size_bytes


async def test_one_pool_serves_many_calls_at_once(redis_url: str) -> None:
    """No reply goes to another call."""
    client = Redis.from_pool(connection_pool(redis_url))
    replies = await asyncio.gather(*(ask(client, "ECHO", f"{n}") for n in range(50)))
    await client.aclose()

    assert replies == [f"{n}".encode() for n in range(50)]
