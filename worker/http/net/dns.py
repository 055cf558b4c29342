"""Name resolution by c-ares: one query at a time for each name, cached for its TTL.

c-ares returns TTLs, and distinguishes a name that does not exist from a failed query. It is imported for the
first name. Names from /etc/hosts have no TTL and are not cached, so that a change takes effect at once.
"""

import asyncio
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from ipaddress import ip_address
from typing import Any

from fetchfleet.worker.errors import (
    NameServerError,
    NameTimeoutError,
    NoSuchNameError,
    UnresolvedError,
)
from fetchfleet.worker.http.net.dns_cache import NO_SUCH_NAME_S, DnsCache, DnsFailure, Resolution, valid_s
from fetchfleet.worker.util import aio
from fetchfleet.worker.util.clock import mono_s

LIMIT_S = 5.0
"""The maximum time to resolve a name, over all nameservers and tries."""

FIRST_TRY_S = 1.0
TRIES = 3

CHANNEL_S = NO_SUCH_NAME_S
"""The lifetime of a c-ares channel: its cache keeps replies for up to an hour and cannot be switched off."""

_ERRORS = {
    DnsFailure.NO_SUCH_NAME: NoSuchNameError,
    DnsFailure.NOT_SENT: UnresolvedError,
    DnsFailure.SERVER_FAILED: NameServerError,
    DnsFailure.TIMED_OUT: NameTimeoutError,
}


class Resolver:
    """The resolver of a worker. nameservers: ADDRESS:PORT each; if empty, those of the system."""

    def __init__(
        self,
        nameservers: Sequence[str] = (),
        now_s: Callable[[], float] = mono_s,
        limit_s: float = LIMIT_S,
    ) -> None:
        self.limit_s = limit_s
        """The maximum time of one query."""
        self._nameservers = nameservers
        self._now_s = now_s
        self._cache = DnsCache()
        self._queries: dict[str, asyncio.Task[Resolution]] = {}
        self._channel: _Channel | None = None

    async def addresses(self, host: str) -> Sequence[str]:
        """Return the distinct addresses of the host, preferred ones first; an address literal unchanged.

        Raises NoSuchNameError, NameServerError, NameTimeoutError or UnresolvedError, within `limit_s`.
        """
        try:
            ip_address(host)
        except ValueError:
            pass
        else:
            return [host]
        resolution = self._cache.get(host, self._now_s())
        if resolution is None:
            query = self._queries.get(host)
            if query is None:
                query = asyncio.create_task(self._resolve(host), name=f"name {host}")
                self._queries[host] = query
                query.add_done_callback(lambda _: self._queries.pop(host, None))
            resolution = await asyncio.shield(query)  # other callers may share the query
        if isinstance(resolution, DnsFailure):
            raise resolution_error(host, resolution)
        return resolution

    def forget(self, host: str) -> None:
        """Drop the cached addresses of the host, as none of them accepted a connection."""
        if self._cache.forget(host):
            self._expire_channel()

    async def aclose(self) -> None:
        """Cancel the queries."""
        await aio.end(*self._queries.values())
        if self._channel is not None:
            await self._channel.aclose()

    async def _resolve(self, host: str) -> Resolution:
        """Query the nameservers for a host, and cache the addresses or the failure."""
        resolution: Resolution
        ttls_s: Sequence[int] = ()
        channel, now_s = self._channel, self._now_s()
        if channel is None or now_s >= channel.ends_s:
            old, channel = channel, _open_channel(self._nameservers, now_s)
            if channel is not None:
                self._channel = channel
                if old is not None:
                    await self._close_if_old(old)
        if channel is None:
            resolution = DnsFailure.NOT_SENT
        else:
            reply: Any = DnsFailure.TIMED_OUT
            try:
                with suppress(TimeoutError):
                    async with asyncio.timeout(self.limit_s):
                        reply = await channel.query(host)
            finally:
                await self._close_if_old(channel)
            if isinstance(reply, DnsFailure):
                resolution = reply
            else:
                addresses: list[str] = []
                for node in reply.nodes:
                    address = node.addr[0].decode()
                    zone = node.addr[3] if node.addr[3:] else 0
                    # Kept for the egress rule, which refuses an address with a zone.
                    addresses.append(f"{address}%{zone}" if zone else address)
                resolution = tuple(dict.fromkeys(addresses)) or DnsFailure.NO_SUCH_NAME
                ttls_s = [alias.ttl for alias in reply.cnames] + [node.ttl for node in reply.nodes]
        self._cache.put(host, resolution, valid_s(resolution, ttls_s), self._now_s())
        if isinstance(resolution, DnsFailure):
            self._expire_channel()
        return resolution

    async def _close_if_old(self, channel: "_Channel") -> None:
        if channel is not self._channel and not channel.queries:
            await channel.aclose()

    def _expire_channel(self) -> None:
        """Make the next query use a new channel, whose cache is empty."""
        if self._channel is not None:
            self._channel.ends_s = self._now_s()


class _Channel:
    """A c-ares channel with its cache."""

    def __init__(self, resolver: Any, ends_s: float) -> None:
        self._resolver = resolver
        self.ends_s = ends_s
        """The time when a new channel replaces it, by the resolver's clock."""
        self.queries = 0
        """The number of queries under way."""

    async def query(self, host: str) -> Any:
        """Return the AddrInfoResult of c-ares, or a DnsFailure."""
        from aiodns.error import DNSError  # noqa: PLC0415

        self.queries += 1
        try:
            return await self._resolver.getaddrinfo(host, type=socket.SOCK_STREAM)
        except DNSError as error:
            return _failure(error.args[0])
        finally:
            self.queries -= 1

    async def aclose(self) -> None:
        """Close the channel, and cancel its queries."""
        await self._resolver.close()


def _open_channel(nameservers: Sequence[str], now_s: float) -> _Channel | None:
    """Return a new channel; None if c-ares cannot make one."""
    import aiodns  # noqa: PLC0415
    from pycares import AresError  # noqa: PLC0415

    try:
        resolver = aiodns.DNSResolver(nameservers or None, timeout=FIRST_TRY_S, tries=TRIES)
    except AresError:
        return None
    return _Channel(resolver, now_s + CHANNEL_S)


def _failure(code: int) -> DnsFailure:
    """Return the failure for an error code of c-ares. Unlisted codes are errors of this machine."""
    from aiodns import error as ares  # noqa: PLC0415

    match code:
        case ares.ARES_ENOTFOUND | ares.ARES_ENODATA | ares.ARES_EBADNAME:
            return DnsFailure.NO_SUCH_NAME
        case ares.ARES_ESERVFAIL | ares.ARES_EREFUSED | ares.ARES_EFORMERR | ares.ARES_ENOTIMP:
            return DnsFailure.SERVER_FAILED
        case ares.ARES_EBADRESP | ares.ARES_ECONNREFUSED:
            return DnsFailure.SERVER_FAILED
        case ares.ARES_ETIMEOUT:
            return DnsFailure.TIMED_OUT
    return DnsFailure.NOT_SENT


def resolution_error(host: str, failure: DnsFailure) -> UnresolvedError:
    """Return the exception for a name that could not be resolved."""
    return _ERRORS[failure](f"{host}: {failure.value}")
