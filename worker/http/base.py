"""The interfaces of an engine and of the connection pools of the lanes."""

from abc import abstractmethod
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol

from fetchfleet.jobs.contract.entry import Hop
from fetchfleet.worker.http.exchange import Answer, Trace
from fetchfleet.worker.policy.model import LanePolicy, Timeouts

KEEPALIVE_EXPIRY_S = 30.0
"""The time after which an idle connection is closed."""


class Engine(Protocol):
    """The maker of HTTP exchanges."""

    async def open(self, request: Hop, lane: str, timeouts: Timeouts, trace: Trace) -> Answer:
        """Send a request on the lane's connections and return its response, which the caller closes.

        Raises FetchError or OSError.
        """


class Pools(Protocol):
    """The connection pools of the lanes. `open` precedes a lane's first request, `close` follows its last."""

    @abstractmethod
    def open(self, lane: str, host: str, policy: LanePolicy) -> None:
        """Create the pool of a lane. Its connections go to this host only, under this policy."""

    @abstractmethod
    def apply_policy(self, lane: str, policy: LanePolicy) -> None:
        """Apply a changed policy: its ports apply to connections opened from now on."""

    @abstractmethod
    async def close(self, lane: str) -> None:
        """Close the lane's connections; does nothing if it has no pool."""

    @asynccontextmanager
    async def opened(self, lane: str, host: str, policy: LanePolicy) -> AsyncIterator[str]:
        """Create the pool of a lane for the length of a block, then close it."""
        self.open(lane, host, policy)
        try:
            yield lane
        finally:
            await self.close(lane)
