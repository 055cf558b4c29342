"""What an engine keeps for each lane."""

from abc import abstractmethod
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol

from fetchfleet.worker.policy.model import LanePolicy

KEEPALIVE_EXPIRY_S = 30.0
"""So long a connection may be idle."""


class Pools(Protocol):
    """Connections by lane: `open` before the first request of a lane, `close` after the last."""

    @abstractmethod
    def open(self, lane: str, policy: LanePolicy) -> None:
        """Begin the lane's stay."""

    @abstractmethod
    def heed(self, lane: str, policy: LanePolicy) -> None:
        """The lane's policy is another: connections that are made from now on go by its ports."""

    @abstractmethod
    async def close(self, lane: str) -> None:
        """Close the lane's connections; nothing if it has none."""

    @asynccontextmanager
    async def opened(self, lane: str, policy: LanePolicy) -> AsyncIterator[str]:
        """A stay for the length of a block."""
        self.open(lane, policy)
        try:
            yield lane
        finally:
            await self.close(lane)
