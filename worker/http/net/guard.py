"""The egress guard: names are resolved here, and only a vetted numeric address is ever dialled.

Checking a name first and connecting to it later would leave a gap in which it may change; so the
check is made on the very addresses that are dialled, for each connection anew. Host, SNI and certificate
keep the name, since they come from the request above.
"""

import asyncio
import socket
from collections.abc import Collection, Iterable, Sequence

import httpcore2
from aiohappyeyeballs import AddrInfoType, start_connection

from fetchfleet.worker.errors import EgressRefusedError, NameTimeoutError
from fetchfleet.worker.http.httpx_engine.head_limit import Counted
from fetchfleet.worker.http.net.dns import Resolver
from fetchfleet.worker.http.net.dns_cache import to_try
from fetchfleet.worker.http.net.redis_guard import Whereabouts, is_ours
from fetchfleet.worker.http.net.socket_stream import READ_BYTES, Line
from fetchfleet.worker.http.net.turns import Turns
from fetchfleet.worker.policy.egress import Egress, OwnRedis, Refusal, reached, remedy

MAX_ADDRESSES = 8
"""How many addresses of one name are tried: a name with a thousand of them is not worth more."""

NEXT_ADDRESS_S = 0.25
"""How long an address has before the next is tried beside it (RFC 8305 §5, Connection Attempt Delay)."""

_Options = Iterable[httpcore2.SOCKET_OPTION]
_NO_DELAY: httpcore2.SOCKET_OPTION = (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


class GuardedNetwork:
    """What all lanes dial through: the egress rule, where our own Redis is, what is known of names."""

    def __init__(self, egress: Egress, resolver: Resolver, own_redis: Whereabouts) -> None:
        self.resolver = resolver
        self.turns = Turns()
        self.received = memoryview(bytearray(READ_BYTES))
        self._egress = egress
        self._own_redis = own_redis

    async def vetted(self, host: str, port: int, ports: Collection[int]) -> Sequence[str]:
        """The addresses of the host; EgressRefusedError if any of them may not be dialled.

        Raises UnresolvedError.
        """
        addresses = await self.resolver.addresses(host)
        own = await self._own_redis.at(port)
        for address in addresses:
            refusal = self._refusal(address, port, ports, own)
            if refusal is not None:
                raise EgressRefusedError(
                    f"{host} is at {address}, port {port} ({refusal.value}): {remedy(refusal)}"
                )
        return addresses

    def _refusal(
        self, address: str, port: int, ports: Collection[int], own: OwnRedis | None
    ) -> Refusal | None:
        parsed = reached(address)
        if own is not None and parsed is not None and own.is_at(parsed, port, is_ours):
            return Refusal.OWN_REDIS
        return self._egress.refusal(address, port, ports)

    async def aclose(self) -> None:
        """Ask for no more names."""
        await self.resolver.aclose()


class LaneNetwork(httpcore2.AsyncNetworkBackend):
    """The network as one lane may use it; ports: those of public addresses, as its policy has them now."""

    def __init__(self, network: GuardedNetwork, ports: Collection[int]) -> None:
        self.ports = ports
        self._network = network

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 httpcore2's signature
        local_address: str | None = None,  # noqa: ARG002 nobody has one
        socket_options: _Options | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """A connection within timeout seconds, resolving included.

        Raises EgressRefusedError, UnresolvedError, httpcore2.ConnectError or ConnectTimeout.
        """
        addresses: Sequence[str] = ()
        await self._network.turns.next()
        try:
            async with asyncio.timeout(timeout):
                addresses = await self._network.vetted(host, port, self.ports)
                connected = await _dialled(addresses, port, socket_options or ())
                return Counted(_line(connected, self._network.received), self._network.turns)
        except TimeoutError:
            if not addresses:
                raise NameTimeoutError(f"{host}: no answer within {timeout} s") from None
            self._network.resolver.forget(host)
            raise httpcore2.ConnectTimeout(f"no connection within {timeout} s") from None
        except httpcore2.ConnectError:
            self._network.resolver.forget(host)
            raise

    async def connect_unix_socket(
        self,
        path: str,  # noqa: ARG002
        timeout: float | None = None,  # noqa: ARG002, ASYNC109 httpcore2's signature
        socket_options: _Options | None = None,  # noqa: ARG002
    ) -> httpcore2.AsyncNetworkStream:
        """Never: a fetch goes over TCP."""
        raise EgressRefusedError("unix sockets are never dialled")

    async def sleep(self, seconds: float) -> None:
        """Wait, for httpcore2's own retries, which we do not use."""
        await asyncio.sleep(seconds)


async def _dialled(addresses: Sequence[str], port: int, options: _Options) -> socket.socket:
    """A connection to the first of the addresses that takes one; raises httpcore2.ConnectError."""
    options = (_NO_DELAY, *options)

    def made(info: AddrInfoType) -> socket.socket:
        dialling = socket.socket(*info[:3])
        for option in options:
            dialling.setsockopt(*option)
        return dialling

    infos = [_info(address, port) for address in to_try(addresses, MAX_ADDRESSES)]
    try:
        return await start_connection(
            infos, happy_eyeballs_delay=NEXT_ADDRESS_S, interleave=1, socket_factory=made
        )
    except (OSError, RuntimeError) as error:  # uvloop has the latter, too
        raise httpcore2.ConnectError(str(error)) from error


def _line(connected: socket.socket, into: memoryview) -> Line:
    try:
        return Line(connected, into)
    except OSError as error:  # the host has reset it meanwhile
        raise httpcore2.ConnectError(str(error)) from error


def _info(address: str, port: int) -> AddrInfoType:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (address, port)
