"""The egress guard: resolves names, and dials only vetted numeric addresses.

Each new connection checks the very addresses that it dials. A check of the name alone would leave a gap in
which the name may change. Host header, SNI and certificate checks use the name in the request.
"""

import asyncio
import socket
from collections.abc import Collection, Sequence
from typing import TypeVar

from aiohappyeyeballs import AddrInfoType, start_connection

from fetchfleet.worker.errors import (
    ConnectError,
    ConnectTimeoutError,
    EgressRefusedError,
    NameTimeoutError,
)
from fetchfleet.worker.http.connection_stats import ConnectionStats
from fetchfleet.worker.http.net.dns import Resolver
from fetchfleet.worker.http.net.dns_cache import to_try
from fetchfleet.worker.http.net.redis_guard import RedisAddresses, is_own_address
from fetchfleet.worker.policy.egress import Egress, Refusal, effective_address, remedy
from fetchfleet.worker.util.aio import LoopBudget
from fetchfleet.worker.util.clock import mono_s

T = TypeVar("T")

MAX_ADDRESSES = 8
"""How many addresses of one name are tried."""

NEXT_ADDRESS_S = 0.25
"""The head start of an address before the next is tried beside it (RFC 8305 §5, Connection Attempt Delay)."""


class GuardedNetwork:
    """The network of a worker: the egress rule, the addresses of its own Redis, the resolver."""

    def __init__(self, egress: Egress, resolver: Resolver, own_redis: RedisAddresses) -> None:
        self.resolver = resolver
        self.loop_budget = LoopBudget()
        self._egress = egress
        self._own_redis = own_redis

    async def vetted_addresses(self, host: str, port: int, ports: Collection[int]) -> Sequence[str]:
        """Return the addresses of the host. ports: those allowed on public addresses.

        Raises EgressRefusedError if any of the addresses is refused, UnresolvedError if there is none.
        """
        literal = effective_address(host)
        addresses = [host] if literal is not None else await self.resolver.addresses(host)
        own_redis = await self._own_redis.at(port) if port == self._own_redis.port else None
        for address in addresses:
            parsed, refusal = literal or effective_address(address), None
            if own_redis is not None and parsed is not None:
                refusal = Refusal.OWN_REDIS if own_redis.is_at(parsed, port, is_own_address) else None
            refusal = refusal or self._egress.refusal(parsed or address, port, ports)
            if refusal is not None:
                raise EgressRefusedError(
                    f"{host} is at {address}, port {port} ({refusal.value}): {remedy(refusal)}"
                )
        return addresses

    async def aclose(self) -> None:
        """Cancel the resolver's queries."""
        await self.resolver.aclose()


class Dialler:
    """The network as one lane may use it: TCP connections to the lane's host."""

    def __init__(
        self, network: GuardedNetwork, host: str, ports: Collection[int], stats: ConnectionStats
    ) -> None:
        self.host = host
        self.ports = ports
        """The ports allowed on public addresses by the lane's policy of the moment."""
        self.loop_budget = network.loop_budget
        self._network = network
        self._stats = stats

    async def connect(self, protocol: asyncio.BaseProtocol, port: int, timeout_s: float) -> None:
        """Give the protocol a connected transport within `timeout_s`, name resolution included.

        Raises EgressRefusedError, UnresolvedError, ConnectError or ConnectTimeoutError.
        """
        began_s = mono_s()
        network, host = self._network, self.host
        await network.loop_budget.take()
        addresses: Sequence[str] = ()
        try:
            async with asyncio.timeout(timeout_s):
                addresses = await network.vetted_addresses(host, port, self.ports)
                await _connect(protocol, addresses, port)
        except TimeoutError:
            if not addresses:
                raise NameTimeoutError(f"{host}: no answer within {timeout_s} s") from None
            network.resolver.forget(host)
            raise ConnectTimeoutError(f"no connection within {timeout_s} s") from None
        except ConnectError:
            if addresses:
                network.resolver.forget(host)
            raise
        self._stats.tcp_s.add(mono_s() - began_s)


async def _connect(protocol: asyncio.BaseProtocol, addresses: Sequence[str], port: int) -> None:
    """Connect the protocol to the first of the addresses that accepts; raises ConnectError."""
    loop = asyncio.get_running_loop()
    if len(addresses) > 1:
        await loop.create_connection(lambda: protocol, sock=await _first_of(addresses, port))
        return
    try:  # the loop makes the socket of one address in half the time
        await loop.create_connection(lambda: protocol, addresses[0], port)
    except OSError as error:
        raise ConnectError(str(error)) from error


async def _first_of(addresses: Sequence[str], port: int) -> socket.socket:
    """Return a socket that is connected to the first of the addresses that accepts; raises ConnectError."""
    infos: list[AddrInfoType] = []
    for address in to_try(addresses, MAX_ADDRESSES):
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        infos.append((family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (address, port)))
    try:
        return await start_connection(infos, happy_eyeballs_delay=NEXT_ADDRESS_S, interleave=1)
    except (OSError, RuntimeError) as error:  # uvloop raises the latter, too
        raise ConnectError(str(error)) from error
