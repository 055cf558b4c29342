"""A client for each host of a lane's stay, pinned to an address that was vetted; nothing else is dialled.

reqwest has no hook where it dials. So each request's host is resolved and vetted here first, and the client
that takes the request knows that one name at that one address: another name would be the system's to find,
so no client is ever given one. An address that is no more the name's gets no new request.
"""

import asyncio
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from pyreqwest.client import Client, ClientBuilder
from pyreqwest.http import Url

from worker.http.errors import NameTimeoutError
from worker.http.names import to_try
from worker.http.network import MAX_ADDRESSES, GuardedNetwork
from worker.policy import LanePolicy, Timeouts, Tls

KEEPALIVE_EXPIRY_S = 30.0
WINDOW_BYTES = 1 << 20
"""Of an HTTP/2 stream; its own 64 KiB would hold up large bodies."""


@dataclass(slots=True)
class Pinned:
    """A client that knows its host at this address alone."""

    client: Client
    address: str
    bounds: tuple[float, float | None]
    answered: bool = False
    """Whether an answer came over it: then there may be connections that the host has closed since."""


@dataclass(slots=True)
class Stay:
    """A lane's stay: how its host is to be treated, and the clients by host and kind."""

    ports: Collection[int]
    tls: Tls
    identity: bytes | None
    http2: bool
    most_at_once: int
    pinned: dict[tuple[str, bool], Pinned] = field(default_factory=dict)


class Clients:
    """Clients by lane: `open` before the first request of a lane, `close` after the last."""

    def __init__(self, network: GuardedNetwork, user_agent: str) -> None:
        self._network = network
        self._user_agent = user_agent
        self._stays: dict[str, Stay] = {}

    def open(self, lane: str, policy: LanePolicy) -> None:
        """Begin the lane's stay."""
        tls = policy.tls
        identity = _identity(tls) if tls.client_cert else None
        self._stays[lane] = Stay(policy.ports, tls, identity, policy.http2, policy.most_at_once)

    def heed(self, lane: str, policy: LanePolicy) -> None:
        """The lane's policy is another: requests from now on go by its ports."""
        if lane in self._stays:
            self._stays[lane].ports = policy.ports

    async def close(self, lane: str) -> None:
        """Close the lane's connections; nothing if it has none."""
        stay = self._stays.pop(lane, None)
        if stay is not None:
            for pinned in stay.pinned.values():
                await pinned.client.close()
            stay.pinned.clear()  # its connections end with the last who knows a client

    @asynccontextmanager
    async def opened(self, lane: str, policy: LanePolicy) -> AsyncIterator[str]:
        """A stay for the length of a block."""
        self.open(lane, policy)
        try:
            yield lane
        finally:
            await self.close(lane)

    async def aclose(self) -> None:
        """Close every lane's connections."""
        for lane in list(self._stays):
            await self.close(lane)
        await self._network.aclose()

    async def addresses(self, lane: str, url: Url, timeouts: Timeouts) -> Sequence[str]:
        """Those of the URL's host, vetted, the one that is in use first.

        Raises EgressRefusedError or UnresolvedError.
        """
        stay, host = self._stays[lane], host_of(url)
        try:
            async with asyncio.timeout(timeouts.connect_s):
                port = url.port_or_known_default or 0
                found = to_try(await self._network.vetted(host, port, stay.ports), MAX_ADDRESSES)
        except TimeoutError:
            raise NameTimeoutError(f"{host}: no answer within {timeouts.connect_s} s") from None
        used = stay.pinned.get((host, False)) or stay.pinned.get((host, True))
        return sorted(found, key=lambda address: used is None or address != used.address)

    def pinned(self, lane: str, url: Url, address: str, timeouts: Timeouts, *, sends: bool) -> Pinned:
        """The client for that host at that address, which was vetted just now; sends: a body."""
        stay, host = self._stays[lane], host_of(url)
        bounds = (timeouts.connect_s, None if sends else timeouts.connect_s + timeouts.read_s)
        pinned = stay.pinned.get((host, sends))
        if pinned is None or (pinned.address, pinned.bounds) != (address, bounds):
            pinned = Pinned(self._build(stay, host, address, bounds), address, bounds)
            stay.pinned[host, sends] = pinned
        return pinned

    def failed(self, lane: str, url: Url) -> None:
        """The host is not where its client looks for it: ask anew, and begin with another address."""
        host = host_of(url)
        self._network.resolver.forget(host)
        stay = self._stays.get(lane)
        for sends in (False, True):
            if stay is not None:
                stay.pinned.pop((host, sends), None)

    def _build(self, stay: Stay, host: str, address: str, bounds: tuple[float, float | None]) -> Client:
        """Nothing from the environment, no cookie, no redirect, no proxy, bodies as they are sent."""
        connect_s, read_s = bounds
        builder = (
            ClientBuilder()
            .no_proxy()
            .follow_redirects(enable=False)
            .referer(enable=False)
            .default_cookie_store(enable=False)
            .gzip(enable=False)
            .brotli(enable=False)
            .zstd(enable=False)
            .deflate(enable=False)
            .user_agent(self._user_agent)
            .default_headers({"Accept": "*/*", "Accept-Encoding": "identity"})
            .connect_timeout(timedelta(seconds=connect_s))
            .pool_idle_timeout(timedelta(seconds=KEEPALIVE_EXPIRY_S))
            .pool_max_idle_per_host(stay.most_at_once)
            .min_tls_version("TLSv1.2")
            .danger_accept_invalid_certs(not stay.tls.verify)
            .http2(stay.http2)
            .http2_initial_stream_window_size(WINDOW_BYTES)
            .http2_initial_connection_window_size(WINDOW_BYTES)
            .resolve(host, address, 0)
        )
        if stay.identity is not None:
            builder = builder.identity_pem(stay.identity)
        if read_s is not None:
            builder = builder.read_timeout(timedelta(seconds=read_s))
        return builder.build()


def host_of(url: Url) -> str:
    """The host as reqwest itself will look for it, an address without its brackets."""
    return (url.host_str or "").strip("[]")


def _identity(tls: Tls) -> bytes:
    """What shows who we are: certificate and key."""
    files = dict.fromkeys(path for path in (tls.client_cert, tls.client_key) if path)
    return b"\n".join(Path(file).read_bytes() for file in files)
