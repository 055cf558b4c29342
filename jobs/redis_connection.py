"""Connections to Redis, and decoding of values in Redis, which are not trusted."""

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
"""Longest path of a Unix socket on Linux (unix(7))."""

_CHECKS = {"ssl_cert_reqs": "required", "ssl_check_hostname": True}
_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")


def connection_pool(redis_url: str, reply_within_s: float | None = None) -> ConnectionPool:
    """Return a pool for redis://, rediss:// (which checks certificate and host name) or unix://.

    Connecting takes at most CONNECT_TIMEOUT_S and a reply SOCKET_TIMEOUT_S; reply_within_s shortens both.
    redis-py repeats no command, because only callers know which may be repeated. Raises RedisSetupError,
    whose message never contains the password.
    """
    reply_s = SOCKET_TIMEOUT_S if reply_within_s is None else min(reply_within_s, SOCKET_TIMEOUT_S)
    try:
        parts = urlsplit(redis_url)
        if parts.fragment or "@" in parts.path + parts.query:
            # A raw / ? or # in a password splits it, and part of it would be resolved as the host.
            raise ValueError  # noqa: TRY301 reported like any malformed URL
        database = parts.path.strip("/")
        if parts.scheme != "unix" and database and not (database.isascii() and database.isdecimal()):
            raise ValueError  # noqa: TRY301 redis-py would use database 0
        pool = FailoverPool.from_url(
            redis_url,
            socket_connect_timeout=min(reply_s, CONNECT_TIMEOUT_S),
            socket_timeout=reply_s,
            health_check_interval=HEALTH_CHECK_INTERVAL_S,
        )
    except ValueError:  # its message may quote the password
        raise RedisSetupError(
            "not a Redis URL; use redis://HOST:PORT/DB, rediss://… or unix:///PATH, with special characters"
            " of the password percent-encoded"
        ) from None
    _check_tls(pool)
    socket_bytes = len(os.fsencode(pool.connection_kwargs.get("path", "")))
    if socket_bytes > MAX_SOCKET_BYTES:
        raise RedisSetupError(
            f"the Unix socket of the Redis URL has a path of {socket_bytes} bytes; the system's limit is"
            f" {MAX_SOCKET_BYTES}; use a shorter path, such as a symbolic link to its folder"
        )
    try:
        pool.connection_class(**pool.connection_kwargs)
    except TypeError:  # its message may quote the password
        raise RedisSetupError(
            "the Redis URL has a query parameter that redis-py does not know; leave it out"
        ) from None
    return pool


def connect(redis_url: str, reply_within_s: float | None = None) -> Redis:
    """Return a client with its own pool; close it with `aclose()`. Raises RedisSetupError."""
    return Redis.from_pool(connection_pool(redis_url, reply_within_s))


def inbox_of(redis_url: str, name: str | None = None) -> str:
    """Return `name`, or the user of the URL, if it is an inbox name; else raise RedisSetupError."""
    inbox = name or str(connection_pool(redis_url).connection_kwargs.get("username") or "default")
    if not is_inbox_name(inbox) or inbox == "default":  # the user of a URL without a user name
        raise RedisSetupError(
            f"{inbox!r} is not the name of an inbox; set inbox, or use the Redis user of an inbox"
        )
    return inbox


async def redis_now_ms(redis: Redis) -> int:
    """Return the Unix ms of Redis's clock, the reference for every deadline and lease."""
    seconds, micros = await redis.time()
    return int(seconds * 1000 + micros // 1000)


def _check_tls(pool: ConnectionPool) -> None:
    """Require that TLS checks the certificate, and that the files of the URL can be read."""
    options = pool.connection_kwargs
    tls_options = {name for name in options if name.startswith("ssl_")}
    if not issubclass(pool.connection_class, SSLConnection):
        if tls_options:
            raise RedisSetupError("the Redis URL has ssl_… parameters, which need rediss://")
        return
    for name, value in _CHECKS.items():
        if options.setdefault(name, value) != value:
            raise RedisSetupError(
                f"{name} in the Redis URL would disable certificate checks; leave it out, and for a private"
                " CA use ssl_ca_certs=/path/ca.pem"
            )
    if tls_options - {*_CHECKS, *_FILES}:
        raise RedisSetupError(
            f"the Redis URL has ssl_… parameters other than {', '.join(_FILES)}; leave them out"
        )
    ca, certificate, key = (options.get(name) for name in _FILES)
    if bool(certificate) != bool(key):
        raise RedisSetupError("ssl_certfile and ssl_keyfile belong together; set both or neither")
    # Load the files now: the error of a connection would not name the file.
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


def text_of(value: bytes) -> str:
    """Decode UTF-8; invalid bytes become U+FFFD."""
    return value.decode(errors="replace")


def is_text(value: bytes) -> bool:
    """Return whether the bytes are UTF-8."""
    return text_of(value).encode() == value


def number_of(value: bytes | None) -> int | None:
    """Decode a whole number of at most 18 characters; None for any other value."""
    if value is None or len(value) > _NUMBER_CHARS or not value.removeprefix(b"-").isdigit():
        return None
    return int(value)
