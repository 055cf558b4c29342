"""What a worker's connections are at: opened, used again, closed, and how long each beginning took.

Connections are counted where they are dialled and where they are hung up, each once; how long a fetch
waited for one is told by httpcore2's trace (worker/http/base.py).
"""

import asyncio
from collections.abc import Iterable
from typing import Any

import httpcore2

from fetchfleet.worker.http.net.stream_wrapper import Over
from fetchfleet.worker.observability.percentiles import Recent
from fetchfleet.worker.util.clock import mono_s


class Traffic:
    """One for a worker process. opened, reused, closed: since it started.

    counted: whether the engine lets its connections be counted.
    """

    def __init__(self) -> None:
        self.counted = True
        self.opened = 0
        self.reused = 0
        self.closed = 0
        self.pool_wait_s = Recent()
        """From handing a request to its pool until it is dialled for, or sent."""
        self.tcp_s = Recent()
        """Until a connection is there, its name resolved."""
        self.tls_s = Recent()

    def waited(self, wait_s: float, *, reused: bool) -> None:
        """A request has its connection, or one is being made for it."""
        self.pool_wait_s.add(wait_s)
        self.reused += reused


class Watched(Over):
    """A connection that is counted as open until it is closed."""

    def __init__(self, stream: httpcore2.AsyncNetworkStream, traffic: Traffic) -> None:
        super().__init__(stream)
        self._traffic = traffic
        self._counts = True

    async def aclose(self) -> None:
        """Hang up; counted once."""
        self._traffic.closed += self._counts
        self._counts = False
        await super().aclose()

    async def start_tls(self, *how: Any, **named: Any) -> httpcore2.AsyncNetworkStream:
        """The same connection under TLS, counted on."""
        began_s = mono_s()
        under_tls = await super().start_tls(*how, **named)
        self._traffic.tls_s.add(mono_s() - began_s)
        self._counts = False
        return Watched(under_tls, self._traffic)


class WatchedNetwork(httpcore2.AsyncNetworkBackend):
    """Dials as the network below does, and counts."""

    def __init__(self, network: httpcore2.AsyncNetworkBackend, traffic: Traffic) -> None:
        self._network = network
        self._traffic = traffic

    async def connect_tcp(self, *where: Any, **how: Any) -> httpcore2.AsyncNetworkStream:
        """A connection; raises what the network below raises."""
        began_s = mono_s()
        stream = await self._network.connect_tcp(*where, **how)
        self._traffic.tcp_s.add(mono_s() - began_s)
        self._traffic.opened += 1
        return Watched(stream, self._traffic)

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,  # noqa: ASYNC109 httpcore2's signature
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """As the network below does."""
        return await self._network.connect_unix_socket(path, timeout, socket_options)

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await asyncio.sleep(seconds)
