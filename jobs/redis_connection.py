"""Connections to Redis, and the plain values that are found there: nothing in Redis is trusted."""

import os
import ssl
from urllib.parse import urlsplit

from redis.asyncio import Redis
from redis.asyncio.connection import ConnectionPool, SSLConnection

from fetchfleet.jobs.compat import FailoverPool
from fetchfleet.jobs.contract.ids import is_inbox_name
from fetchfleet.jobs.errors import RedisSetupError

CONNECT_TIMEOUT_S = 5.0
SOCKET_TIMEOUT_S = 10.0
HEALTH_CHECK_INTERVAL_S = 15

MAX_SOCKET_BYTES = 107
"""The longest path of a unix socket on Linux (unix(7))."""

_CHECKS = {"ssl_cert_reqs": "required", "ssl_check_hostname": True}
_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")


def connection_pool(redis_url: str, reply_within_s: float | None = None) -> ConnectionPool:
    """Return a pool for redis://, rediss:// (certificate and host name checked) or unix://.

    Connecting takes CONNECT_TIMEOUT_S at most and a reply SOCKET_TIMEOUT_S, so a frozen Redis is noticed;
    reply_within_s shortens both.
    Nothing is sent again automatically: the callers of the scripts know what may be repeated. Raises
    RedisSetupError, whose message contains nothing that may be a password.
    """
    reply_s = SOCKET_TIMEOUT_S if reply_within_s is None else min(reply_within_s, SOCKET_TIMEOUT_S)
    try:
        parts = urlsplit(redis_url)
        if parts.fragment or "@" in parts.path + parts.query:
            # A raw / ? or # splits a password, and a part of it would be dialled as the host.
            raise ValueError  # noqa: TRY301 reported as any other malformed URL
        database = parts.path.strip("/")
        if parts.scheme != "unix" and database and not (database.isascii() and database.isdecimal()):
            raise ValueError  # noqa: TRY301 redis-py would use database 0
        pool = FailoverPool.from_url(
            redis_url,
            socket_connect_timeout=min(reply_s, CONNECT_TIMEOUT_S),
            socket_timeout=reply_s,
            health_check_interval=HEALTH_CHECK_INTERVAL_S,
        )
    except ValueError:  # its message quotes what may be a password
        raise RedisSetupError(
            "not a Redis URL; use redis://HOST:PORT/DB, rediss://… or unix:///PATH, special characters"
            " of a password percent-encoded"
        ) from None
    _check_tls(pool)
    socket_bytes = len(os.fsencode(pool.connection_kwargs.get("path", "")))
    if socket_bytes > MAX_SOCKET_BYTES:
        raise RedisSetupError(
            f"the unix socket of the Redis URL has a path of {socket_bytes} bytes, and the system takes"
            f" {MAX_SOCKET_BYTES} at most; give a shorter path, such as that of a symbolic link to its folder"
        )
    try:
        pool.connection_class(**pool.connection_kwargs)
    except TypeError:  # redis-py would raise it at the first connection and quote what may be a password
        raise RedisSetupError(
            "the Redis URL has a parameter, behind its ?, that redis-py does not know"
        ) from None
    return pool


def connect(redis_url: str, reply_within_s: float | None = None) -> Redis:
    """Return a client on a pool of its own; close it with `aclose()`."""
    return Redis.from_pool(connection_pool(redis_url, reply_within_s))


def inbox_of(redis_url: str, name: str | None = None) -> str:
    """Return the name, or that of the URL's user, if an inbox may have it; else raise RedisSetupError."""
    found = name or str(connection_pool(redis_url).connection_kwargs.get("username") or "default")
    if not is_inbox_name(found) or found == "default":  # the user of a URL without one has no inbox
        raise RedisSetupError(
            f"{found!r} is not the name of an inbox: give inbox=…, or a Redis user with an inbox in the URL"
        )
    return found


async def redis_now_ms(redis: Redis) -> int:
    """Return Redis's Unix time in ms, the reference for every deadline and lease."""
    seconds, micros = await redis.time()
    return int(seconds * 1000 + micros // 1000)


def _check_tls(pool: ConnectionPool) -> None:
    """Require that a TLS connection checks the certificate, and that the files of the URL can be read."""
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
    ca, certificate, key = (options.get(name) for name in _FILES)
    if bool(certificate) != bool(key):
        raise RedisSetupError("ssl_certfile and ssl_keyfile go together; give both or neither")
    # The error of a connection would not say which file is at fault.
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


_NUMBER_CHARS = 18


def text_of(found: bytes) -> str:
    """The text; what is none becomes a name that nothing has."""
    return found.decode(errors="replace")


def is_text(found: bytes) -> bool:
    """Return whether the bytes are valid text."""
    return text_of(found).encode() == found


def number_of(found: bytes | None) -> int | None:
    """The whole number, None where there is none."""
    if found is None or len(found) > _NUMBER_CHARS or not found.removeprefix(b"-").isdigit():
        return None
    return int(found)
