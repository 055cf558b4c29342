"""The addresses of the fleet's own Redis, which no fetch may reach: it holds the state of the whole fleet."""

import asyncio
import socket
from contextlib import suppress
from ipaddress import IPv6Address
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError

from fetchfleet.worker.errors import UnresolvedError
from fetchfleet.worker.policy.egress import Address, OwnRedis, effective_address
from fetchfleet.worker.util.clock import mono_s

REFRESH_S = 30.0
DEFAULT_PORT = 6379


class RedisAddresses:
    """All addresses that the Redis host has resolved to.

    host: None if the worker connects by a Unix socket; Redis is then on this machine.
    """

    def __init__(self, host: str | None, port: int, refresh_s: float = REFRESH_S) -> None:
        self.port = port
        self._host = host
        self._refresh_s = refresh_s
        self._seen: set[Address] = set()
        self._until_s = 0.0

    async def at(self, port: int) -> OwnRedis | None:
        """Return the addresses of Redis if it uses this port, else None.

        Raises UnresolvedError if its name was never resolved, since any address may then be its own.
        """
        if port != self.port:
            return None
        if self._host is not None and mono_s() >= self._until_s:
            # Like redis-py, use the system's resolver. If it fails, the addresses seen so far stay valid.
            with suppress(OSError, UnicodeError):
                loop = asyncio.get_running_loop()
                rows = await loop.getaddrinfo(self._host, self.port, type=socket.SOCK_STREAM)
                resolved = (effective_address(str(row[4][0]).partition("%")[0]) for row in rows)
                self._seen |= {address for address in resolved if address is not None}
                self._until_s = mono_s() + self._refresh_s
        if self._host is not None and not self._seen:
            raise UnresolvedError(f"port {port} is used by the fleet's own Redis, whose host is not resolved")
        on_this_machine = self._host is None or any(
            address.is_loopback or address.is_unspecified or is_own_address(address) for address in self._seen
        )
        return OwnRedis(port, frozenset(self._seen), on_this_machine)


async def redis_addresses(redis: Redis) -> RedisAddresses:
    """Return the addresses of the Redis that this client uses, already resolved if possible."""
    options: dict[str, Any] = redis.connection_pool.connection_kwargs
    if options.get("path") is not None:
        try:
            # The TCP port on which Redis listens besides its Unix socket; 0 if none.
            port = int((await redis.info("server")).get("tcp_port", 0))
        except (RedisError, ValueError):
            port = 0
        return RedisAddresses(None, port)
    port = int(options.get("port", DEFAULT_PORT))
    addresses = RedisAddresses(options.get("host", "localhost"), port)
    with suppress(UnresolvedError):
        await addresses.at(port)
    return addresses


def is_own_address(address: Address) -> bool:
    """Return whether the address is this machine's: Linux would then use it as the source address.

    No packet is sent.
    """
    family = socket.AF_INET6 if isinstance(address, IPv6Address) else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe, suppress(OSError):
        probe.connect((str(address), 9))
        return effective_address(probe.getsockname()[0]) == address
    return False
