"""The egress guard: name resolution, and connections to vetted addresses only.

Each new connection checks the addresses that it dials. A check of the name alone would leave a gap in which
the name may change (DNS rebinding). Host header, SNI and certificate checks use the name in the request.
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
from fetchfleet.worker.http.net.dns_cache import dial_order
from fetchfleet.worker.http.net.redis_guard import RedisAddresses, is_own_address
from fetchfleet.worker.policy.egress import Egress, Refusal, effective_address, remedy
from fetchfleet.worker.util.aio import LoopBudget
from fetchfleet.worker.util.clock import mono_s

T = TypeVar("T")

MAX_ADDRESSES = 8
"""The maximum number of addresses of one name that are dialled."""

NEXT_ADDRESS_S = 0.25
"""The Connection Attempt Delay (RFC 8305 §5): the time before the next address is dialled in parallel."""


class GuardedNetwork:
    """The network of a worker: its resolver, and the egress rules that vet every address."""

    def __init__(self, egress: Egress, resolver: Resolver, own_redis: RedisAddresses) -> None:
        self.resolver = resolver
        self.loop_budget = LoopBudget()
        self._egress = egress
        self._own_redis = own_redis

    async def vetted_addresses(self, host: str, port: int, ports: Collection[int]) -> Sequence[str]:
        """Return the addresses of the host, all of them allowed. ports: those allowed on public addresses.

        Raises EgressRefusedError if any address is refused, UnresolvedError if the host has none.
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
    """The TCP connections of one lane: to its host only, at vetted addresses."""

    def __init__(
        self, network: GuardedNetwork, host: str, ports: Collection[int], stats: ConnectionStats
    ) -> None:
        self.host = host
        self.ports = ports
        """The ports that the lane's current policy allows on public addresses."""
        self.loop_budget = network.loop_budget
        self._network = network
        self._stats = stats

    async def connect(self, protocol: asyncio.BaseProtocol, port: int, timeout_s: float) -> float | None:
        """Connect the protocol to the host, within `timeout_s` with the name resolution.

        Returns the time that the name resolution took, in seconds; None if the host is an address.

        Raises EgressRefusedError, UnresolvedError, ConnectError or ConnectTimeoutError.
        """
        began_s = mono_s()
        network, host = self._network, self.host
        await network.loop_budget.take()
        addresses: Sequence[str] = ()
        resolving_s, dns_s = mono_s(), None
        try:
            async with asyncio.timeout(timeout_s):
                addresses = await network.vetted_addresses(host, port, self.ports)
                if addresses[0] != host:
                    dns_s = mono_s() - resolving_s
                await _connect(protocol, addresses, port)
        except TimeoutError:
            if not addresses:
                raise NameTimeoutError(f"{host}: not resolved within {timeout_s} s") from None
            network.resolver.forget(host)
            raise ConnectTimeoutError(f"{host}: not connected within {timeout_s} s") from None
        except ConnectError:
            if addresses:
                network.resolver.forget(host)
            raise
        self._stats.tcp_s.add(mono_s() - began_s)
        return dns_s


async def _connect(protocol: asyncio.BaseProtocol, addresses: Sequence[str], port: int) -> None:
    """Connect the protocol to the first address that accepts. Raises ConnectError."""
    loop = asyncio.get_running_loop()
    if len(addresses) > 1:
        await loop.create_connection(lambda: protocol, sock=await _first_of(addresses, port))
        return
    try:  # takes half the time of aiohappyeyeballs
        await loop.create_connection(lambda: protocol, addresses[0], port)
    except OSError as error:
        raise ConnectError(str(error)) from error


async def _first_of(addresses: Sequence[str], port: int) -> socket.socket:
    """Return a socket connected to the first address that accepts. Raises ConnectError."""
    infos: list[AddrInfoType] = []
    for address in dial_order(addresses, MAX_ADDRESSES):
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        infos.append((family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (address, port)))
    try:
        return await start_connection(infos, happy_eyeballs_delay=NEXT_ADDRESS_S, interleave=1)
    except (OSError, RuntimeError) as error:  # uvloop raises RuntimeError for some failures
        raise ConnectError(str(error)) from error
