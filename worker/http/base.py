"""The interfaces of an engine: it makes exchanges, on connections that it keeps by lane."""

from abc import abstractmethod
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol

from fetchfleet.jobs.contract.entry import Hop
from fetchfleet.worker.http.exchange import Answer, Trace
from fetchfleet.worker.policy.model import LanePolicy, Timeouts

KEEPALIVE_EXPIRY_S = 30.0
"""An idle connection is closed after this time."""


class Engine(Protocol):
    """Makes exchanges."""

    async def open(self, request: Hop, lane: str, timeouts: Timeouts, trace: Trace) -> Answer:
        """Send a request on the lane's connections and return its response, which the caller closes.

        Raises FetchError or OSError.
        """


class Pools(Protocol):
    """Connections by lane: call `open` before the first request of a lane, `close` after the last."""

    @abstractmethod
    def open(self, lane: str, host: str, policy: LanePolicy) -> None:
        """Prepare for the lane's requests: its connections are made to this host only, under its policy."""

    @abstractmethod
    def apply_policy(self, lane: str, policy: LanePolicy) -> None:
        """Apply a changed policy: its ports count for the connections made from now on."""

    @abstractmethod
    async def close(self, lane: str) -> None:
        """Close the lane's connections; does nothing if it has none."""

    @asynccontextmanager
    async def opened(self, lane: str, host: str, policy: LanePolicy) -> AsyncIterator[str]:
        """Open the lane for the length of a block, then close it."""
        self.open(lane, host, policy)
        try:
            yield lane
        finally:
            await self.close(lane)
