"""The parts of redis-py that jobs/compat.py relies on. A failure names a change of a release."""

import asyncio
import inspect
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from redis.asyncio.connection import AbstractConnection, Connection, ConnectionPool
from redis.connection import HiredisRespSerializer
from redis.exceptions import ReadOnlyError, ResponseError, TimeoutError  # noqa: A004

from fetchfleet.jobs.compat import CONNECTIONS, FailoverPool, unsupported_by
from fetchfleet.jobs.errors import UnsupportedRedisError

URLS = ["redis://h", "rediss://h", "unix:///run/redis.sock"]


def made_by(pool: ConnectionPool) -> Any:
    """Return a new connection of the pool, not connected."""
    return pool.make_connection()  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("url", URLS)
def test_from_url_chooses_a_connection_class_that_is_replaced(url: str) -> None:
    """ConnectionPool.from_url passes the class of the URL's scheme, or none for redis://."""
    chosen = ConnectionPool.from_url(url).connection_class
    pool = FailoverPool.from_url(url)

    assert chosen in CONNECTIONS, f"redis-py has a new connection class for {url}: {chosen}"
    assert issubclass(pool.connection_class, chosen)
    assert hasattr(pool.connection_class, "refuses_writes")


async def test_the_pool_keeps_its_idle_connections_in_available_connections() -> None:
    """They are in the list before their release ends, so that they can be disconnected there."""
    pool = FailoverPool.from_url("redis://h")
    assert pool._available_connections == []
    connection = made_by(pool)
    pool._in_use_connections.add(connection)

    await pool.release(connection)

    assert pool._available_connections == [connection]
    assert "nowait" in inspect.signature(AbstractConnection.disconnect).parameters


async def test_a_release_disconnects_idle_connections_after_a_refused_write(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The connection with the refusal, and the idle ones."""
    pool = FailoverPool.from_url("redis://h")
    idle, refused = made_by(pool), made_by(pool)
    pool._in_use_connections |= {idle, refused}
    await pool.release(idle)
    dropped: list[Any] = []

    async def disconnect(self: Any, *, nowait: bool = False) -> None:
        assert nowait
        dropped.append(self)

    async def read_only(*_: Any, **__: Any) -> None:
        raise ReadOnlyError("READONLY You can't write against a read only replica.")

    monkeypatch.setattr(Connection, "disconnect", disconnect)
    monkeypatch.setattr(Connection, "read_response", read_only)
    with pytest.raises(ReadOnlyError):
        await refused.read_response()
    await pool.release(refused)

    assert [idle, refused] == dropped


async def test_calls_at_the_same_time_connect_at_the_same_time() -> None:
    """A call on a frozen Redis waits for its own timeout only, not for those of all calls before it."""
    accepted: list[asyncio.StreamWriter] = []
    all_accepted = asyncio.Event()

    async def accept(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.append(writer)
        if len(accepted) == 3:
            all_accepted.set()

    server = await asyncio.start_server(accept, "127.0.0.1")
    async with server, asyncio.TaskGroup() as group:
        port = server.sockets[0].getsockname()[1]
        pool = FailoverPool.from_url(f"redis://127.0.0.1:{port}")  # waits for a reply to CLIENT SETINFO
        calls = [group.create_task(pool.get_connection("GET")) for _ in range(3)]
        async with asyncio.timeout(30):
            await all_accepted.wait()
        for call in calls:
            call.cancel()
        for end in accepted:
            end.close()

    assert not pool._in_use_connections


def test_hiredis_packs_commands_as_redis_py_does() -> None:
    """The same bytes, and a list of pieces as AbstractConnection.send_packed_command takes them."""
    command: list[Any] = ["EVALSHA", "0" * 40, 1, "key", b"\x00\xff", 3, "é"]
    own = b"".join(made_by(FailoverPool.from_url("redis://h")).pack_command(*command))

    assert own == b"".join(Connection().pack_command(*command))
    assert own == b"".join(HiredisRespSerializer().pack(*command))


@pytest.mark.parametrize(
    "name",
    ["can_read_destructive", "connect", "disconnect", "pack_command", "read_response", "send_packed_command"],
)
def test_the_overridden_methods_exist(name: str) -> None:
    """An override of a method that redis-py has renamed would not be called."""
    assert callable(getattr(AbstractConnection, name, None)), f"redis-py has no AbstractConnection.{name}"
    assert isinstance(AbstractConnection.is_connected, property)


@pytest.mark.parametrize(
    ("reply", "is_unsupported"),
    [
        ("MOVED 3999 127.0.0.1:6381", True),
        ("ASK 3999 127.0.0.1:6381", True),
        ("CROSSSLOT Keys in request don't hash to the same slot", True),
        ("CLUSTERDOWN Hash slot not served", True),
        ("TRYAGAIN Multiple keys request during rehashing of slot", True),
        ("ERR Script attempted to access a non local key in a cluster node", True),
        ("ERR Script attempted to access keys that do not hash to the same slot", True),
        ("SELECT is not allowed in cluster mode", True),
        ("DB index is out of range", True),
        ("ERR invalid DB index", True),
        ("unknown command 'EVALSHA', with args beginning with: 'x' ", True),
        ("ERR unknown command `evalsha`, with args beginning with: `x`, ", True),
        ("unknown command 'BLMOVE', with args beginning with: 'ff:inbox' ", False),
        ('WRONGTYPE at "ff:lane:MOVED ASK ": a list, not a hash', False),
        ("READONLY You can't write against a read only replica.", False),
        ("ERR unknown command 'FLY'", False),
    ],
)
def test_the_errors_of_an_unusable_server_are_classified(reply: str, *, is_unsupported: bool) -> None:
    """The error code or the reply of a script decides, and a key with such a name does not count."""
    assert is_unsupported == (unsupported_by(ResponseError(reply)) is not None)


@asynccontextmanager
async def connected_to(sent: bytes) -> AsyncIterator[Any]:
    """A connection to a server that has sent these bytes."""
    ends: list[asyncio.StreamWriter] = []

    async def send(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ends.append(writer)
        writer.write(sent)

    server = await asyncio.start_server(send, "127.0.0.1")
    async with server:
        port = server.sockets[0].getsockname()[1]
        pool = FailoverPool.from_url(f"redis://127.0.0.1:{port}", lib_name=None, lib_version=None)
        connection = made_by(pool)
        await connection.connect()
        yield connection
        await connection.disconnect(nowait=True)
        for end in ends:
            end.close()


async def test_a_reply_that_was_received_with_another_needs_no_timer() -> None:
    """Errors too, after which the connection is usable. The client waits for the rest of a reply."""
    async with connected_to(b":1\r\n$2\r\nab\r\n-WRONGTYPE no list\r\n*1\r\n:2\r\n$2\r\nc") as connection:
        assert await connection.read_response() == 1
        connection.socket_timeout = 0.0  # whatever has to be waited for times out
        assert await connection.read_response() == b"ab"
        with pytest.raises(ResponseError, match="no list"):
            await connection.read_response()
        assert await connection.read_response() == [2]
        with pytest.raises(TimeoutError):
            await connection.read_response()
        assert not connection.is_connected


async def test_bytes_that_are_not_a_reply_end_the_connection() -> None:
    """Bytes after them cannot be read."""
    async with connected_to(b":1\r\n?\r\n") as connection:
        assert await connection.read_response() == 1
        with pytest.raises(UnsupportedRedisError):
            await connection.read_response()
        assert not connection.is_connected
