"""The parts of redis-py that this project uses or overrides beyond its documented interface.

A pool drops the connections to a Redis that takes no writes. After a failover another Redis takes them behind
the same address, and the connections to the former primary stay up. tests/unit/jobs/test_compat.py fails if a
release of redis-py changes one of these parts.
"""

from typing import Any

from redis.asyncio.connection import (
    AbstractConnection,
    Connection,
    ConnectionPool,
    SSLConnection,
    UnixDomainSocketConnection,
)
from redis.connection import HiredisRespSerializer
from redis.exceptions import ReadOnlyError, ResponseError

_NO_WRITES = ("READONLY ", "MASTERDOWN ", "NOREPLICAS ", "MISCONF ")
"""A replica, a primary that misses its replicas, one that cannot save. Redis 6.2 puts the code behind a
general error if a script meets it."""


def takes_no_writes(error: ResponseError) -> bool:
    """Return whether the error says that this Redis takes no writes at present."""
    text = str(error)
    return isinstance(error, ReadOnlyError) or any(code in text for code in _NO_WRITES)


class _WriteRefusals:
    """A connection that remembers whether its Redis has refused a write. It packs commands in C."""

    takes_no_writes = False
    _serializer = HiredisRespSerializer()

    async def connect(self) -> None:
        """Connect, perhaps to another Redis than before."""
        if not self.is_connected:  # type: ignore[attr-defined]
            self.takes_no_writes = False
        await super().connect()  # type: ignore[misc]

    def pack_command(self, *args: Any) -> list[bytes]:
        """Return the command as it is sent."""
        packed: list[bytes] = self._serializer.pack(*args)
        return packed

    async def read_response(self, *args: Any, **options: Any) -> Any:
        """Return the next reply."""
        try:
            return await super().read_response(*args, **options)  # type: ignore[misc]
        except ResponseError as error:
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
