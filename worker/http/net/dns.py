"""Names become addresses here: asked for once at a time each, and remembered for as long as they may be.

Over c-ares, which says how long an answer counts, and what went wrong from what is not there. What the
machine itself knows (/etc/hosts, localhost) is never remembered, so that a change counts at once.
"""

import asyncio
import socket
from collections.abc import Callable, Sequence
from ipaddress import ip_address
from typing import Any

import aiodns
from aiodns import error as ares
from aiodns.error import DNSError
from pycares import AddrInfoResult, AresError

from fetchfleet.worker.errors import (
    NameServerError,
    NameTimeoutError,
    NoSuchNameError,
    UnresolvedError,
)
from fetchfleet.worker.http.net.dns_cache import NO_SUCH_NAME_S, Failure, NameCache, Said, keep_s
from fetchfleet.worker.util import aio
from fetchfleet.worker.util.clock import mono_s

LIMIT_S = 5.0
"""A name that has not been found by then is not waited for, however many nameservers there are."""

FIRST_TRY_S = 1.0
TRIES = 3
CHANNEL_S = NO_SUCH_NAME_S
"""c-ares has a memory of its own, for up to an hour, and no switch for it: so long a channel is used."""


class _Channel:
    """c-ares with a memory of its own; `asking` questions are under way."""

    def __init__(self, nameservers: Sequence[str], now_s: float) -> None:
        self._resolver = aiodns.DNSResolver(nameservers or None, timeout=FIRST_TRY_S, tries=TRIES)
        self.ends_s = now_s + CHANNEL_S
        self.asking = 0

    async def ask(self, host: str) -> AddrInfoResult:
        """What c-ares finds; raises DNSError."""
        self.asking += 1
        try:
            return await self._resolver.getaddrinfo(host, type=socket.SOCK_STREAM)
        finally:
            self.asking -= 1

    async def aclose(self) -> None:
        """Let go of it; what is under way is given up."""
        await self._resolver.close()


class Resolver:
    """The addresses of names. nameservers: ADDRESS:PORT each; none: those of the system."""

    def __init__(self, nameservers: Sequence[str] = (), now_s: Callable[[], float] = mono_s) -> None:
        self._nameservers = nameservers
        self._now_s = now_s
        self._cache = NameCache()
        self._asking: dict[str, asyncio.Task[Said]] = {}
        self._channel: _Channel | None = None

    async def addresses(self, host: str) -> Sequence[str]:
        """Every address of the host, each once, those to be preferred first; a literal is its own.

        Raises NoSuchNameError, NameServerError, NameTimeoutError or UnresolvedError, within LIMIT_S.
        """
        if _is_literal(host):
            return [host]
        said = self._cache.get(host, self._now_s())
        if said is None:
            said = await asyncio.shield(self._question(host))  # others may wait for it too
        if isinstance(said, Failure):
            raise unresolved(host, said)
        return said

    def forget(self, host: str) -> None:
        """What is known of the host led nowhere: ask anew next time."""
        if self._cache.forget(host):
            self._renew()

    async def aclose(self) -> None:
        """Give up what is asked for."""
        await aio.end(*self._asking.values())
        if self._channel is not None:
            await self._channel.aclose()

    def _question(self, host: str) -> asyncio.Task[Said]:
        """The one question for the host, of all who wait for its answer."""
        asking = self._asking.get(host)
        if asking is None:
            asking = asyncio.create_task(self._ask(host), name=f"name {host}")
            self._asking[host] = asking
            asking.add_done_callback(lambda _: self._asking.pop(host, None))
        return asking

    async def _ask(self, host: str) -> Said:
        said, ttls_s = await self._found(host)
        self._cache.put(host, said, keep_s(said, ttls_s), self._now_s())
        if isinstance(said, Failure):
            self._renew()
        return said

    async def _found(self, host: str) -> tuple[Said, Sequence[int]]:
        try:
            channel = await self._current()
        except AresError:
            return Failure.NOT_ASKED, ()
        try:
            async with asyncio.timeout(LIMIT_S):
                found = await channel.ask(host)
        except TimeoutError:
            return Failure.TIMED_OUT, ()
        except DNSError as error:
            return name_failure(error), ()
        finally:
            await self._close_if_old(channel)
        return _addresses_in(found), _ttls_in(found)

    async def _current(self) -> _Channel:
        """The channel of the moment, which may be a new one."""
        old, now_s = self._channel, self._now_s()
        if old is None or now_s >= old.ends_s:
            self._channel = _Channel(self._nameservers, now_s)
            if old is not None:
                await self._close_if_old(old)
        assert self._channel is not None
        return self._channel

    async def _close_if_old(self, channel: _Channel) -> None:
        if channel is not self._channel and not channel.asking:
            await channel.aclose()

    def _renew(self) -> None:
        """Whatever c-ares remembers counts no more."""
        if self._channel is not None:
            self._channel.ends_s = self._now_s()


def _is_literal(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _addresses_in(found: AddrInfoResult) -> Said:
    addresses = tuple(dict.fromkeys(_address_of(node.addr) for node in found.nodes))
    return addresses or Failure.NO_SUCH_NAME


def _address_of(node: tuple[Any, ...]) -> str:
    """The address, with its zone if it has one: that is for the egress rule to refuse."""
    text: str = node[0].decode()
    return f"{text}%{node[3]}" if node[3:] and node[3] else text


def _ttls_in(found: AddrInfoResult) -> Sequence[int]:
    return [alias.ttl for alias in found.cnames] + [node.ttl for node in found.nodes]


_NAME_FAILURES = {
    ares.ARES_ENOTFOUND: Failure.NO_SUCH_NAME,
    ares.ARES_ENODATA: Failure.NO_SUCH_NAME,
    ares.ARES_EBADNAME: Failure.NO_SUCH_NAME,
    ares.ARES_ESERVFAIL: Failure.SERVER_FAILED,
    ares.ARES_EREFUSED: Failure.SERVER_FAILED,
    ares.ARES_EFORMERR: Failure.SERVER_FAILED,
    ares.ARES_ENOTIMP: Failure.SERVER_FAILED,
    ares.ARES_EBADRESP: Failure.SERVER_FAILED,
    ares.ARES_ECONNREFUSED: Failure.SERVER_FAILED,
    ares.ARES_ETIMEOUT: Failure.TIMED_OUT,
}
"""What c-ares says, by its codes; whatever else it says is about this machine."""


_UNRESOLVED = {
    Failure.NO_SUCH_NAME: NoSuchNameError,
    Failure.NOT_ASKED: UnresolvedError,
    Failure.SERVER_FAILED: NameServerError,
    Failure.TIMED_OUT: NameTimeoutError,
}


def name_failure(error: ares.DNSError) -> Failure:
    """What c-ares' error says of the name."""
    return _NAME_FAILURES.get(error.args[0], Failure.NOT_ASKED)


def unresolved(host: str, failure: Failure) -> UnresolvedError:
    """The error for a name that has no address for us."""
    return _UNRESOLVED[failure](f"{host}: {failure.value}")
