"""What a lane needs of its worker, named once and handed down."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from jobs.lanes import lane_of_url
from jobs.model import Fetch
from jobs.wake import Wake
from worker.bounds import Bounds
from worker.clock import RedisClock
from worker.foreign import Foreign
from worker.http.engine import Engine
from worker.http.pools import Pools
from worker.policies import Policy
from worker.policy import LanePolicy
from worker.settings import Settings
from worker.settle import Settler
from worker.sink.files import FileSink
from worker.store import Store
from worker.windows import Windows


@dataclass(frozen=True, slots=True)
class Parts:
    """The shared parts of one worker process."""

    settings: Settings
    store: Store
    foreign: Foreign
    settler: Settler
    engine: Engine
    pools: Pools
    sink: FileSink
    clock: RedisClock
    slots: asyncio.Semaphore
    """As many fetches as may be in flight in this process, over all lanes."""
    suspects: asyncio.Semaphore
    """Of the fetches that workers may be dying of one is tried at a time."""
    policy: Callable[[], Policy]
    """The policy of the moment: it may change at run time."""
    wake: Callable[[Iterable[Wake]], Awaitable[None]]
    chance: Callable[[], float]
    """A fraction in [0, 1): the only source of chance."""
    trouble: Callable[[BaseException], None]
    """Says what Redis did not do."""
    log: Any
    bounds: Bounds = field(default_factory=Bounds)
    """Of the time that attempts have."""
    windows: Windows = field(default_factory=Windows)
    """For the decoders of bodies that need large ones."""

    def policy_of(self, fetch: Fetch) -> LanePolicy:
        """The policy of the host that the fetch itself names, wherever redirects have led it."""
        return self.policy().for_lane(lane_of_url(fetch.url))
