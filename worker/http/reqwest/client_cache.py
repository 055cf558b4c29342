"""A client for each host of a lane's stay, pinned to an address that was vetted; nothing else is dialled.

reqwest has no hook where it dials. So each request's host is resolved and vetted here first, and the client
that takes the request knows that one name at that one address: another name would be the system's to find,
so no client is ever given one. An address that is no more the name's gets no new request.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

from pyreqwest.client import ClientBuilder
from pyreqwest.http import Url

from fetchfleet.worker.errors import ForeignHostError, NameTimeoutError
from fetchfleet.worker.http.base import KEEPALIVE_EXPIRY_S, Pools
from fetchfleet.worker.http.net.dns_cache import to_try
from fetchfleet.worker.http.net.guard import MAX_ADDRESSES, GuardedNetwork
from fetchfleet.worker.http.reqwest.pinned_client import Bounds, Pinned
from fetchfleet.worker.http.reqwest.socket_marks import new_mark_ms
from fetchfleet.worker.policy.file import Policy
from fetchfleet.worker.policy.model import LanePolicy, Timeouts, Tls
from fetchfleet.worker.util.clock import mono_s

VETTED_S = 1.0
"""For so long a host's addresses count as vetted: many requests of a lane begin within it."""

WINDOW_BYTES = 1 << 20
"""Of an HTTP/2 stream; its own 64 KiB would hold up large bodies."""


class ClientKind(NamedTuple):
    """What a client is for. tls: for https; sends: for requests with a body, whose head may take long."""

    host: str
    tls: bool
    sends: bool


class Destination(NamedTuple):
    """Where a request goes: the URL's host at a vetted address, which has connect_s to take a connection."""

    lane: str
    url: Url
    address: str
    connect_s: float


@dataclass(slots=True)
class LaneClients:
    """A lane's stay: how its host is to be treated, and the clients of each kind."""

    host: str
    policy: LanePolicy
    pinned: dict[ClientKind, Pinned] = field(default_factory=dict)
    vetted: dict[tuple[str, int], tuple[float, Sequence[str]]] = field(default_factory=dict)
    """By host and port: its addresses, those that answer first, and until when they count."""
    dead: set[tuple[str, str]] = field(default_factory=set)
    """Hosts with addresses at which they took no connection: tried last."""


class Clients(Pools):
    """Clients by lane: `open` before the first request of a lane, `close` after the last."""

    def __init__(self, network: GuardedNetwork, policy: Policy) -> None:
        self._network = network
        # Read once, as the other engine does: what a table at run time changes needs no other.
        self._identities = {of.tls: _identity(of.tls) for _, of in policy.named() if of.tls.client_cert}
        self.loop_budget = network.loop_budget
        self._stays: dict[str, LaneClients] = {}

    def open(self, lane: str, host: str, policy: LanePolicy) -> None:
        """Begin the lane's stay."""
        self._stays[lane] = LaneClients(host, policy)

    def apply_policy(self, lane: str, policy: LanePolicy) -> None:
        """The lane's policy is another: requests from now on go by its ports."""
        if lane in self._stays:
            self._stays[lane].policy = policy
            self._stays[lane].vetted.clear()

    async def close(self, lane: str) -> None:
        """Close the lane's connections; nothing if it has none."""
        stay = self._stays.pop(lane, None)
        if stay is not None:
            for pinned in stay.pinned.values():
                await pinned.client.close()
            stay.pinned.clear()  # its connections end with the last who knows a client

    async def aclose(self) -> None:
        """Close every lane's connections."""
        for lane in list(self._stays):
            await self.close(lane)
        await self._network.aclose()

    async def addresses(self, lane: str, url: Url, timeouts: Timeouts) -> Sequence[str]:
        """Those of the URL's host, vetted, the one that is in use first.

        Raises ForeignHostError, EgressRefusedError or UnresolvedError.
        """
        stay, host, port = self._stays[lane], host_of(url), url.port_or_known_default or 0
        if host != stay.host:
            raise ForeignHostError(host, stay.host)
        until_s, vetted = stay.vetted.get((host, port), (0.0, ()))
        if mono_s() < until_s:
            return vetted
        try:
            async with asyncio.timeout(timeouts.connect_s):
                found = to_try(await self._network.vetted(host, port, stay.policy.ports), MAX_ADDRESSES)
        except TimeoutError:
            raise NameTimeoutError(f"{host}: no answer within {timeouts.connect_s} s") from None
        used = {pinned.address for kind, pinned in stay.pinned.items() if kind.host == host}
        found.sort(key=lambda address: ((host, address) in stay.dead, address not in used))
        stay.vetted[host, port] = mono_s() + VETTED_S, found
        return found

    def pinned(self, where: Destination, timeouts: Timeouts, *, sends: bool) -> Pinned:
        """The client for that place, which was vetted just now; sends: requests with a body."""
        stay, kind = self._stays[where.lane], _kind(where, sends=sends)
        pinned = stay.pinned.get(kind)
        fits = pinned is not None and not pinned.retired and pinned.address == where.address
        if pinned is None or not fits or pinned.bounds != _bounds(where, timeouts, sends=sends):
            pinned = stay.pinned[kind] = self.new(where, timeouts, sends=sends)
        return pinned

    def new(self, where: Destination, timeouts: Timeouts, *, sends: bool) -> Pinned:
        """A client that has no connection yet, for one request or to be kept."""
        kind, bounds = _kind(where, sends=sends), _bounds(where, timeouts, sends=sends)
        mark_ms = new_mark_ms()
        policy = self._stays[where.lane].policy
        builder = _builder(policy, kind, bounds).resolve(kind.host, where.address, 0)
        builder = builder.tcp_user_timeout(timedelta(milliseconds=mark_ms))
        identity = self._identities.get(policy.tls)
        client = (builder if identity is None else builder.identity_pem(identity)).build()
        return Pinned(client, where.address, bounds, mark_ms)

    def unreached(self, lane: str, url: Url, address: str) -> None:
        """The host takes no connection at that address: the others come first from now on."""
        host, stay = host_of(url), self._stays.get(lane)
        if stay is not None:
            stay.dead.add((host, address))
            stay.vetted.clear()

    def failed(self, lane: str, url: Url) -> None:
        """The host is not where its client looks for it: ask anew, and begin with another address."""
        host, stay = host_of(url), self._stays.get(lane)
        self._network.resolver.forget(host)
        if stay is not None:
            stay.vetted.clear()
            stay.pinned = {kind: pinned for kind, pinned in stay.pinned.items() if kind.host != host}


def _kind(where: Destination, *, sends: bool) -> ClientKind:
    return ClientKind(host_of(where.url), where.url.scheme == "https", sends)


def _bounds(where: Destination, timeouts: Timeouts, *, sends: bool) -> Bounds:
    """How long it takes to connect, and until a head comes; what is sent has its own bound, by the block."""
    return where.connect_s, None if sends else where.connect_s + timeouts.read_s


def _builder(policy: LanePolicy, kind: ClientKind, bounds: Bounds) -> ClientBuilder:
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
        .connect_timeout(timedelta(seconds=connect_s))
        .pool_idle_timeout(timedelta(seconds=KEEPALIVE_EXPIRY_S))
        .pool_max_idle_per_host(policy.most_at_once)
        .min_tls_version("TLSv1.2")
        # What speaks no TLS trusts nobody; to read whom the system trusts takes 3 ms a client.
        .danger_accept_invalid_certs(not (kind.tls and policy.verify))
        .http2(policy.http2)
        .http2_initial_stream_window_size(WINDOW_BYTES)
        .http2_initial_connection_window_size(WINDOW_BYTES)
    )
    return builder if read_s is None else builder.read_timeout(timedelta(seconds=read_s))


def host_of(url: Url) -> str:
    """The host as reqwest itself will look for it, an address without its brackets."""
    return (url.host_str or "").strip("[]")


def _identity(tls: Tls) -> bytes:
    """What shows who we are: certificate and key."""
    files = dict.fromkeys(path for path in (tls.client_cert, tls.client_key) if path)
    return b"\n".join(Path(file).read_bytes() for file in files)
