"""The egress guard: resolves names, and dials only vetted numeric addresses.

Each new connection checks the very addresses that it dials. A check of the name alone would leave a gap in
which the name may change. Host header, SNI and certificate checks use the name in the request.
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Collection, Sequence
from functools import partial
from typing import TypeVar

from aiohappyeyeballs import start_connection

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
from fetchfleet.worker.policy.egress import Egress, Refusal, reached, remedy
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

    async def vetted(self, host: str, port: int, ports: Collection[int]) -> Sequence[str]:
        """Return the addresses of the host. ports: those allowed on public addresses.

        Raises EgressRefusedError if any of the addresses is refused, UnresolvedError if there is none.
        """
        addresses = [host] if reached(host) is not None else await self.resolver.addresses(host)
        own_redis = await self._own_redis.at(port) if port == self._own_redis.port else None
        for address in addresses:
            refusal = None
            if own_redis is not None and (parsed := reached(address)) is not None:
                refusal = Refusal.OWN_REDIS if own_redis.is_at(parsed, port, is_own_address) else None
            refusal = refusal or self._egress.refusal(address, port, ports)
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

    async def dial(self, port: int, timeout_s: float) -> socket.socket:
        """Return a connected socket; see `connect`."""
        return await self._dialled(_socket, port, timeout_s)

    async def connect(self, protocol: asyncio.BaseProtocol, port: int, timeout_s: float) -> None:
        """Give the protocol a connected transport within `timeout_s`, name resolution included.

        Raises EgressRefusedError, UnresolvedError, ConnectError or ConnectTimeoutError.
        """
        await self._dialled(partial(_transport, protocol), port, timeout_s)

    async def _dialled(
        self, connect: Callable[[Sequence[str], int], Awaitable[T]], port: int, timeout_s: float
    ) -> T:
        """Vet the addresses of the host and connect to one of them."""
        began_s = mono_s()
        network, host = self._network, self.host
        await network.loop_budget.take()
        addresses: Sequence[str] = ()
        try:
            async with asyncio.timeout(timeout_s):
                addresses = await network.vetted(host, port, self.ports)
                connected = await connect(addresses, port)
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
        return connected


async def _transport(protocol: asyncio.BaseProtocol, addresses: Sequence[str], port: int) -> None:
    """Connect the protocol to the first of the addresses that accepts; raises ConnectError."""
    loop = asyncio.get_running_loop()
    if len(addresses) > 1:
        await loop.create_connection(lambda: protocol, sock=await _socket(addresses, port))
        return
    try:  # the loop makes the socket of one address in half the time
        await loop.create_connection(lambda: protocol, addresses[0], port)
    except OSError as error:
        raise ConnectError(str(error)) from error


async def _socket(addresses: Sequence[str], port: int) -> socket.socket:
    """Connect to the first of the addresses that accepts; raises ConnectError."""
    try:
        if len(addresses) == 1:
            return await _connect_to(addresses[0], port)
        infos = [
            (_family(address), socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (address, port))
            for address in to_try(addresses, MAX_ADDRESSES)
        ]
        return await start_connection(
            infos,
            happy_eyeballs_delay=NEXT_ADDRESS_S,
            interleave=1,
            socket_factory=lambda info: _new_socket(info[0]),
        )
    except (OSError, RuntimeError) as error:  # uvloop raises the latter, too
        raise ConnectError(str(error)) from error


async def _connect_to(address: str, port: int) -> socket.socket:
    connected = _new_socket(_family(address))
    try:
        await asyncio.get_running_loop().sock_connect(connected, (address, port))
    except BaseException:
        connected.close()
        raise
    return connected


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _new_socket(family: int) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK, socket.IPPROTO_TCP)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return made
