"""Where the fleet's own Redis is: whoever could have it fetched could have the whole fleet."""

import asyncio
import socket
from contextlib import suppress
from ipaddress import IPv6Address
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError

from fetchfleet.worker.errors import UnresolvedError
from fetchfleet.worker.policy.egress import Address, OwnRedis, reached
from fetchfleet.worker.util.clock import mono_s

LOOK_AGAIN_S = 30.0
DEFAULT_PORT = 6379


class Whereabouts:
    """Finds our Redis again as its name moves; host None: on this machine, by a unix socket."""

    def __init__(self, host: str | None, port: int) -> None:
        self._host = host
        self._port = port
        self._seen: set[Address] = set()
        self._until_s = 0.0

    async def at(self, port: int) -> OwnRedis | None:
        """Where it is, if it may listen on that port: at whatever its name has led to so far.

        Raises UnresolvedError while that is not known: then it may be anywhere.
        """
        if port != self._port:
            return None
        if self._host is not None and mono_s() >= self._until_s:
            await self._look(self._host)
        if self._host is not None and not self._seen:
            raise UnresolvedError("where our own Redis is, which listens on this port, is not known now")
        here = self._host is None or any(map(_is_here, self._seen))
        return OwnRedis(port, frozenset(self._seen), here)

    async def _look(self, host: str) -> None:
        """By the system's resolver, as redis-py does it; where that fails, what was seen counts on."""
        with suppress(OSError, UnicodeError):
            rows = await asyncio.get_running_loop().getaddrinfo(host, self._port, type=socket.SOCK_STREAM)
            found = (reached(str(row[4][0]).partition("%")[0]) for row in rows)
            self._seen |= {address for address in found if address is not None}
            self._until_s = mono_s() + LOOK_AGAIN_S


async def whereabouts(redis: Redis) -> Whereabouts:
    """Those of the Redis that this client speaks to, looked up once."""
    where: dict[str, Any] = redis.connection_pool.connection_kwargs
    if where.get("path") is not None:
        return Whereabouts(None, await _tcp_port(redis))
    port = int(where.get("port", DEFAULT_PORT))
    found = Whereabouts(where.get("host", "localhost"), port)
    with suppress(UnresolvedError):
        await found.at(port)
    return found


def is_ours(address: Address) -> bool:
    """Whether the address is one of this machine's: then Linux would call from it. Nothing is sent."""
    family = socket.AF_INET6 if isinstance(address, IPv6Address) else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe, suppress(OSError):
        probe.connect((str(address), 9))
        return reached(probe.getsockname()[0]) == address
    return False


def _is_here(address: Address) -> bool:
    return address.is_loopback or address.is_unspecified or is_ours(address)


async def _tcp_port(redis: Redis) -> int:
    """The port on which it listens besides its unix socket; 0: on none, or it does not say."""
    try:
        return int((await redis.info("server")).get("tcp_port", 0))
    except (RedisError, ValueError):
        return 0
