"""The parts of redis-py that this project uses or overrides beyond its documented interface.

The pool drops connections to a Redis that refuses writes: after a failover, connections to the former primary
stay open while the same address leads to the new one. Concurrent calls connect concurrently. Replies of a
server that can never be used become UnsupportedRedisError. tests/unit/jobs/test_compat.py fails if a redis-py
release changes one of these parts.
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
"""Codes of a replica, of a primary without its replicas, and of one that cannot save.

In errors of scripts, Redis 6.2 puts other text before the code."""


def refuses_writes(error: Exception) -> bool:
    """Return whether the error says that this Redis currently refuses writes."""
    text = str(error)
    return isinstance(error, ReadOnlyError) or any(code in text for code in _NO_WRITES)


_CLUSTER_ERROR = re.compile(
    r"^(MOVED|ASK|CROSSSLOT|CLUSTERDOWN|TRYAGAIN) |non local key in a cluster|do not hash to the same slot"
    r"|SELECT is not allowed in cluster mode"
)
"""Errors of a Redis in cluster mode, for a command and in a script."""

CLUSTER_MODE = (
    "Redis runs in cluster mode (cluster-enabled yes), which fetchfleet does not support: its scripts change"
    " keys of several slots at once; use a Redis without cluster mode, with replicas for failover"
)

_NO_SCRIPTS = re.compile(r"^(ERR )?unknown command ['`]?eval(sha)?\b", re.IGNORECASE)
"""The error of a Sentinel, and of a Redis without EVALSHA (rename-command)."""

_NO_SUCH_DATABASE = re.compile(r"^(ERR )?(DB index is out of range|invalid DB index)")
"""The error of SELECT for a database beyond `databases` of the configuration."""


def unsupported_by(error: ResponseError | InvalidResponse) -> UnsupportedRedisError | None:
    """Return an error if the reply shows that the server can never be used, else None."""
    text = str(error)
    if isinstance(error, ResponseError):
        if _CLUSTER_ERROR.search(text):
            return UnsupportedRedisError(CLUSTER_MODE)
        if _NO_SCRIPTS.match(text):
            return UnsupportedRedisError(
                "the server at the Redis URL does not have the command EVALSHA: if it is a Sentinel, use the"
                " URL of the primary; otherwise remove rename-command from its configuration"
            )
        if _NO_SUCH_DATABASE.match(text):
            return UnsupportedRedisError(
                "Redis does not have the database of the Redis URL, the number after its last slash: use one"
                " below `databases` of its configuration, such as 0"
            )
        return None
    remedy = "use rediss:// if it uses TLS" if r"\x15" in text else "check host and port"
    return UnsupportedRedisError(f"the server at the Redis URL is not Redis ({text}): {remedy}")


MAX_UNSENT_BYTES = 64 << 10
"""The maximum amount of data that waits for a slow socket; also the limit at which asyncio pauses writers."""


class _WriteRefusals:
    """A connection that records whether its Redis has refused a write.

    It packs commands in C, and skips work that redis-py does for each command but is rarely needed.
    """

    refuses_writes = False
    _serializer = HiredisRespSerializer()

    async def connect(self) -> None:
        """Connect; after a failover this may be another Redis."""
        if not self.is_connected:  # type: ignore[attr-defined]
            self.refuses_writes = False
        try:
            await super().connect()  # type: ignore[misc]
        except BaseException:
            # On a Unix socket redis-py keeps the connection although Redis refused the password or database:
            # the next command would use database 0.
            await self.disconnect(nowait=True)  # type: ignore[attr-defined]
            raise

    def pack_command(self, *args: Any) -> list[bytes]:
        """Return the serialized command."""
        packed: list[bytes] = self._serializer.pack(*args)
        return packed

    async def send_packed_command(self, command: Any, check_health: bool = True) -> None:  # noqa: FBT001, FBT002 redis-py's
        """Send commands; wait only if the socket is slow, because redis-py creates a task to wait."""
        own: Any = self
        is_checked = check_health and asyncio.get_running_loop().time() > own.next_health_check
        if own.is_connected and not is_checked and isinstance(command, list):
            own._writer.writelines(command)
            if own._writer.transport.get_write_buffer_size() <= MAX_UNSENT_BYTES:
                return
            command = []
        await super().send_packed_command(command, check_health)  # type: ignore[misc]

    async def can_read_destructive(self) -> bool:
        """Return whether an idle connection has unread data, without redis-py's cancelled read."""
        own: Any = self
        reader = own._reader
        if reader is None or reader.at_eof() or reader.exception() is not None:
            can_read: bool = await super().can_read_destructive()  # type: ignore[misc]
            return can_read
        return bool(reader._buffer) or own._parser._reader.has_data()

    async def _received(self) -> Any:
        """Return the next reply if it has been received completely, else NOT_ENOUGH_DATA."""
        own: Any = self
        try:
            reply = own._parser._reader.gets()
            first = reply[0] if isinstance(reply, list) and reply else reply
            if isinstance(first, ConnectionError):
                raise first  # noqa: TRY301 handled like an error of the reader
        except BaseException:
            await own.disconnect(nowait=True)
            raise
        if isinstance(reply, ResponseError):
            raise reply
        return reply

    async def read_response(self, *args: Any, **options: Any) -> Any:
        """Return the next reply. Raises UnsupportedRedisError if the server can never be used.

        redis-py sets a timer for each reply, even for one that has been received already.
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
            self.refuses_writes = self.refuses_writes or refuses_writes(error)
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
"""The connection classes of ConnectionPool.from_url, each with its replacement."""


class FailoverPool(ConnectionPool):
    """A connection pool that drops connections to a Redis that refuses writes, and connects concurrently."""

    def __init__(self, connection_class: type[AbstractConnection] = Connection, **options: Any) -> None:
        super().__init__(connection_class=CONNECTIONS[connection_class], **options)

    async def get_connection(self, *_: Any, **__: Any) -> AbstractConnection:
        """Return a connected connection.

        That of redis-py connects under a lock. A frozen Redis would delay each concurrent call by the
        timeouts of all calls before it.
        """
        connection: AbstractConnection = self.get_available_connection()  # type: ignore[no-untyped-call]
        try:
            await self.ensure_connection(connection)
        except BaseException:
            await self.release(connection)
            raise
        return connection

    async def release(self, connection: AbstractConnection) -> None:
        """Release a connection; if its Redis refuses writes, disconnect it and all idle ones."""
        await super().release(connection)
        if getattr(connection, "refuses_writes", False):
            for idle in list(self._available_connections):
                await idle.disconnect(nowait=True)
