"""The egress guard: names are resolved here, and only a vetted numeric address is ever dialled.

Checking a name first and connecting to it later would leave a gap in which it may change; so the
check is made on the very address that is dialled. Host, SNI and certificate keep the name, since they
come from the request above.
"""

import asyncio
import socket
from collections.abc import Iterable, Sequence

import httpcore2
from httpcore2 import AnyIOBackend

from worker.http.egress import Egress
from worker.http.errors import EgressRefusedError, NoSuchNameError, UnresolvedError
from worker.http.handshake import Shaken
from worker.http.head import Counted
from worker.http.wide import Wide

MAX_ADDRESSES = 8
"""How many addresses of one name are tried: a name with a thousand of them is not worth more."""

_NO_SUCH_NAME = frozenset({socket.EAI_NONAME, socket.EAI_NODATA})


class GuardedNetwork(httpcore2.AsyncNetworkBackend):
    """Dials what the egress rule lets through; all of httpcore2's connections are made here."""

    def __init__(self, egress: Egress) -> None:
        self._egress = egress
        self._backend = AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 httpcore2's signature
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """A connection within timeout seconds, resolving included.

        Raises EgressRefusedError, NoSuchNameError, UnresolvedError, httpcore2.ConnectError or ConnectTimeout.
        """
        try:
            async with asyncio.timeout(timeout):
                addresses = self._vetted(host, await _resolve(host, port))
                return Counted(Shaken(Wide(await self._dial(addresses, port, local_address, socket_options))))
        except TimeoutError:
            raise httpcore2.ConnectTimeout(f"no connection within {timeout} s") from None

    async def connect_unix_socket(
        self,
        path: str,  # noqa: ARG002
        timeout: float | None = None,  # noqa: ARG002, ASYNC109 httpcore2's signature
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,  # noqa: ARG002
    ) -> httpcore2.AsyncNetworkStream:
        """Never: a fetch goes over TCP."""
        raise EgressRefusedError("unix sockets are never dialled")

    async def sleep(self, seconds: float) -> None:
        """Wait, for httpcore2's own retries, which we do not use."""
        await asyncio.sleep(seconds)

    def _vetted(self, host: str, addresses: Sequence[str]) -> Sequence[str]:
        """All the addresses, or EgressRefusedError if any of them is refused."""
        for address in addresses:
            refusal = self._egress.refusal(address)
            if refusal is not None:
                raise EgressRefusedError(
                    f"{host} is at {address} ({refusal.value}); --allow-net would let it through"
                )
        return addresses[:MAX_ADDRESSES]

    async def _dial(
        self,
        addresses: Sequence[str],
        port: int,
        local_address: str | None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None,
    ) -> httpcore2.AsyncNetworkStream:
        for address in addresses[:-1]:
            try:
                return await self._backend.connect_tcp(address, port, None, local_address, socket_options)
            except httpcore2.ConnectError:
                continue
        return await self._backend.connect_tcp(addresses[-1], port, None, local_address, socket_options)


async def _resolve(host: str, port: int) -> Sequence[str]:
    """Every address of the host, in the resolver's order, each once."""
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        kind = NoSuchNameError if error.errno in _NO_SUCH_NAME else UnresolvedError
        raise kind(f"{host}: {error}") from None
    except UnicodeError as error:
        raise UnresolvedError(f"{host}: {error}") from None
    return list(dict.fromkeys(str(row[4][0]) for row in found))
