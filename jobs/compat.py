"""The parts of redis-py that this project uses or overrides beyond its documented interface.

A pool drops the connections to a Redis that takes no writes. After a failover another Redis takes them behind
the same address, and the connections to the former primary stay up. Some replies show that a server can
never be used. tests/unit/jobs/test_compat.py fails if a release of redis-py changes one of these parts.
"""

import asyncio
import re
from typing import Any

from redis._parsers.hiredis import NOT_ENOUGH_DATA
from redis.asyncio.connection import (
    AbstractConnection,
    Connection,
    ConnectionPool,
    SSLConnection,
    UnixDomainSocketConnection,
)
from redis.connection import HiredisRespSerializer
from redis.exceptions import ConnectionError, InvalidResponse, ReadOnlyError, ResponseError  # noqa: A004

from fetchfleet.jobs.errors import UnsupportedRedisError

_NO_WRITES = ("READONLY ", "MASTERDOWN ", "NOREPLICAS ", "MISCONF ")
"""A replica, a primary that misses its replicas, one that cannot save. Redis 6.2 puts the code behind a
general error if a script meets it."""


def takes_no_writes(error: Exception) -> bool:
    """Return whether the error says that this Redis takes no writes at present."""
    text = str(error)
    return isinstance(error, ReadOnlyError) or any(code in text for code in _NO_WRITES)


_OF_A_CLUSTER = re.compile(
    r"^(MOVED|ASK|CROSSSLOT|CLUSTERDOWN|TRYAGAIN) |non local key in a cluster|do not hash to the same slot"
    r"|SELECT is not allowed in cluster mode"
)
"""The errors of a Redis in cluster mode, of a command and within a script."""

CLUSTER_MODE = (
    "Redis runs in cluster mode (cluster-enabled yes), which fetchfleet does not support: its scripts change"
    " keys of several slots at once; use a Redis without cluster mode, with replicas for failover"
)


_NO_SCRIPTS = re.compile(r"^(ERR )?unknown command ['`]?eval(sha)?\b", re.IGNORECASE)
"""The error of a Redis whose scripts are turned off (rename-command), and of a Sentinel."""

_NO_SUCH_DATABASE = re.compile(r"^(ERR )?(DB index is out of range|invalid DB index)")
"""The error of SELECT for a database beyond the `databases` of the configuration."""


def unsupported_by(error: ResponseError | InvalidResponse) -> UnsupportedRedisError | None:
    """Return the error of a server that can never be used, None if the reply is no sign of one."""
    text = str(error)
    if isinstance(error, ResponseError):
        if _OF_A_CLUSTER.search(text):
            return UnsupportedRedisError(CLUSTER_MODE)
        if _NO_SCRIPTS.match(text):
            return UnsupportedRedisError(
                "the server at the Redis URL runs no scripts, for it lacks the command EVALSHA: if it is a"
                " Sentinel, give the URL of the primary; else remove rename-command from its configuration"
            )
        if _NO_SUCH_DATABASE.match(text):
            return UnsupportedRedisError(
                "Redis does not have the database of the Redis URL, the number after its last slash: give one"
                " below `databases` of its configuration, such as 0"
            )
        return None
    remedy = "use rediss:// if it speaks TLS" if r"\x15" in text else "check host and port"
    return UnsupportedRedisError(f"the server at the Redis URL is no Redis ({text}): {remedy}")


MAX_UNSENT_BYTES = 64 << 10
"""The most that waits for a slow socket. It is also the limit above which asyncio pauses writers."""


class _WriteRefusals:
    """A connection that remembers whether its Redis has refused a write.

    It packs commands in C, and spares what redis-py does around each that is seldom needed.
    """

    takes_no_writes = False
    _serializer = HiredisRespSerializer()

    async def connect(self) -> None:
        """Connect, perhaps to another Redis than before."""
        if not self.is_connected:  # type: ignore[attr-defined]
            self.takes_no_writes = False
        try:
            await super().connect()  # type: ignore[misc]
        except BaseException:
            # On a Unix socket redis-py keeps a connection that was refused a password or a database: the next
            # command would go to database 0.
            await self.disconnect(nowait=True)  # type: ignore[attr-defined]
            raise

    def pack_command(self, *args: Any) -> list[bytes]:
        """Return the command as it is sent."""
        packed: list[bytes] = self._serializer.pack(*args)
        return packed

    async def send_packed_command(self, command: Any, check_health: bool = True) -> None:  # noqa: FBT001, FBT002 redis-py's
        """Send commands; wait, which costs redis-py a task, only for a socket that is slow to take them."""
        own: Any = self
        is_checked = check_health and asyncio.get_running_loop().time() > own.next_health_check
        if own.is_connected and not is_checked and isinstance(command, list):
            own._writer.writelines(command)
            if own._writer.transport.get_write_buffer_size() <= MAX_UNSENT_BYTES:
                return
            command = []
        await super().send_packed_command(command, check_health)  # type: ignore[misc]

    async def can_read_destructive(self) -> bool:
        """Return whether an idle connection has a reply that is not of the next command.

        redis-py finds that out by a read that it cancels.
        """
        own: Any = self
        reader = own._reader
        if reader is None or reader.at_eof() or reader.exception() is not None:
            found: bool = await super().can_read_destructive()  # type: ignore[misc]
            return found
        return bool(reader._buffer) or own._parser._reader.has_data()

    async def _received(self) -> Any:
        """Return the next reply if all of it has been received, else NOT_ENOUGH_DATA."""
        own: Any = self
        try:
            reply = own._parser._reader.gets()
            first = reply[0] if isinstance(reply, list) and reply else reply
            if isinstance(first, ConnectionError):
                raise first  # noqa: TRY301 handled as an error of the reader
        except BaseException:
            await own.disconnect(nowait=True)
            raise
        if isinstance(reply, ResponseError):
            raise reply
        return reply

    async def read_response(self, *args: Any, **options: Any) -> Any:
        """Return the next reply. Raises UnsupportedRedisError for one of a server that can never be used.

        redis-py sets a timer for each reply, also for one that has been received with those before it.
        """
        own: Any = self
        try:
            if own.is_connected and not args and not options:
                reply = await self._received()
                if reply is not NOT_ENOUGH_DATA:
                    return reply
            return await super().read_response(*args, **options)  # type: ignore[misc]
        except (ResponseError, InvalidResponse) as error:
            if unsupported := unsupported_by(error):
                raise unsupported from error
            self.takes_no_writes = self.takes_no_writes or takes_no_writes(error)
            raise


class _TcpConnection(_WriteRefusals, Connection):
    """For redis://."""


class _TlsConnection(_WriteRefusals, SSLConnection):
    """For rediss://."""


class _UnixConnection(_WriteRefusals, UnixDomainSocketConnection):
    """For unix://."""


CONNECTIONS: dict[type[AbstractConnection], type[AbstractConnection]] = {
    Connection: _TcpConnection,
    SSLConnection: _TlsConnection,
    UnixDomainSocketConnection: _UnixConnection,
}
"""The classes that ConnectionPool.from_url may choose, each with the one used in its place."""


class FailoverPool(ConnectionPool):
    """A connection pool that drops connections to a Redis that takes no writes."""

    def __init__(self, connection_class: type[AbstractConnection] = Connection, **options: Any) -> None:
        super().__init__(connection_class=CONNECTIONS[connection_class], **options)

    async def release(self, connection: AbstractConnection) -> None:
        """Take a connection back; if its Redis takes no writes, disconnect it and all idle ones."""
        await super().release(connection)
        if getattr(connection, "takes_no_writes", False):
            for idle in list(self._available_connections):
                await idle.disconnect(nowait=True)
