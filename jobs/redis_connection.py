"""How every part of ours connects to Redis."""

import ssl
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection, Connection, ConnectionPool, SSLConnection
from redis.connection import HiredisRespSerializer
from redis.exceptions import ReadOnlyError, ResponseError

from fetchfleet.jobs.errors import RedisSetupError

CONNECT_TIMEOUT_S = 5.0
SOCKET_TIMEOUT_S = 10.0
HEALTH_CHECK_INTERVAL_S = 15

_CHECKS = {"ssl_cert_reqs": "required", "ssl_check_hostname": True}
_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")


_NO_WRITES = ("READONLY ", "MASTERDOWN ", "NOREPLICAS ", "MISCONF ")
"""A replica, a primary that misses its replicas, one that cannot save: as Redis 7 says it, and 6.2 too, which
puts it behind a general error when a script meets it."""


def takes_no_writes(error: ResponseError) -> bool:
    """Whether Redis, or the one that has become of it, takes no writes for the time being."""
    text = str(error)
    return isinstance(error, ReadOnlyError) or any(code in text for code in _NO_WRITES)


class _Pool(ConnectionPool):
    """A pool that lets go of a Redis that takes no writes.

    After a failover another Redis takes them behind the same address, and the connections to the one that
    was the primary stay up.
    """

    def __init__(self, connection_class: type[AbstractConnection] = Connection, **options: Any) -> None:
        heeding = type(f"Heeding{connection_class.__name__}", (_Heeding, connection_class), {})
        super().__init__(connection_class=heeding, **options)

    async def release(self, connection: AbstractConnection) -> None:
        """Take a connection back; if its Redis takes no writes, drop it and those that wait with it."""
        await super().release(connection)
        if getattr(connection, "takes_no_writes", False):
            for idle in list(self._available_connections):
                await idle.disconnect(nowait=True)


class _Heeding:
    """Remembers of a connection that its Redis took no write; what is sent is put together in C."""

    takes_no_writes = False
    _serializer = HiredisRespSerializer()

    async def connect(self) -> None:
        """Connect, perhaps to another Redis."""
        if not self.is_connected:  # type: ignore[attr-defined]
            self.takes_no_writes = False
        await super().connect()  # type: ignore[misc]

    def pack_command(self, *args: Any) -> list[bytes]:
        """A command as it is sent."""
        packed: list[bytes] = self._serializer.pack(*args)
        return packed

    async def read_response(self, *args: Any, **options: Any) -> Any:
        """What Redis says."""
        try:
            return await super().read_response(*args, **options)  # type: ignore[misc]
        except ResponseError as error:
            self.takes_no_writes = self.takes_no_writes or takes_no_writes(error)
            raise


def connection_pool(redis_url: str) -> ConnectionPool:
    """A pool for redis://, rediss:// (certificate and host name checked) or unix://.

    Connecting takes CONNECT_TIMEOUT_S at most and a reply SOCKET_TIMEOUT_S, so a frozen Redis is
    noticed. Nothing is sent twice by itself: the scripts' callers know what may be. Raises
    RedisSetupError, whose message holds nothing that may be a password.
    """
    try:
        _refuse_torn(redis_url)
        pool = _Pool.from_url(
            redis_url,
            socket_connect_timeout=CONNECT_TIMEOUT_S,
            socket_timeout=SOCKET_TIMEOUT_S,
            health_check_interval=HEALTH_CHECK_INTERVAL_S,
        )
    except ValueError:  # its message quotes what may be a password
        raise RedisSetupError(
            "not a Redis URL; use redis://HOST:PORT/DB, rediss://… or unix:///PATH, special characters"
            " of a password percent-encoded"
        ) from None
    _check_tls(pool)
    _check_parameters(pool)
    return pool


def connect(redis_url: str) -> Redis:
    """A client on a pool of its own; close it with `aclose()`."""
    return Redis.from_pool(connection_pool(redis_url))


async def redis_now_ms(redis: Redis) -> int:
    """Redis's Unix time in ms, the only clock that counts."""
    seconds, micros = await redis.time()
    return int(seconds * 1000 + micros // 1000)


def _refuse_torn(redis_url: str) -> None:
    """A raw / ? or # tears a password: what looks like the host, and would be dialled, is a part of it."""
    parts = urlsplit(redis_url)
    if parts.fragment or "@" in parts.path + parts.query:
        raise ValueError


def _check_tls(pool: ConnectionPool) -> None:
    """A TLS connection checks whom it speaks to, whatever the URL says."""
    options = pool.connection_kwargs
    given = {name for name in options if name.startswith("ssl_")}
    if not issubclass(pool.connection_class, SSLConnection):
        if given:
            raise RedisSetupError("the Redis URL has ssl_… parameters; they are for rediss:// only")
        return
    for name, value in _CHECKS.items():
        if options.setdefault(name, value) != value:
            raise RedisSetupError(
                f"{name} would leave Redis's certificate unchecked; leave it out, and for a CA of your own"
                " use ssl_ca_certs=/path/ca.pem"
            )
    if given - {*_CHECKS, *_FILES}:
        raise RedisSetupError(f"the Redis URL has ssl_… parameters other than {', '.join(_FILES)}")
    _check_files(options)


def _check_files(options: Mapping[str, Any]) -> None:
    """Now, and by name: the error of a connection would not say which file it is."""
    ca, certificate, key = (options.get(name) for name in _FILES)
    if bool(certificate) != bool(key):
        raise RedisSetupError("ssl_certfile and ssl_keyfile go together; give both or neither")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        name = f"ssl_ca_certs {ca}"
        if ca:
            context.load_verify_locations(ca)
        name = f"ssl_certfile {certificate}, ssl_keyfile {key}"
        if certificate:
            context.load_cert_chain(certificate, key, password="")
    except OSError as error:
        raise RedisSetupError(f"{name}: {error.strerror or 'cannot be used'}") from None


def _check_parameters(pool: ConnectionPool) -> None:
    """redis-py would tell at the first connection, and quote what may be a part of a password."""
    try:
        pool.connection_class(**pool.connection_kwargs)
    except TypeError:
        raise RedisSetupError(
            "the Redis URL has a parameter, behind its ?, that redis-py does not know"
        ) from None
