"""What a lane needs of its worker, named once and handed down."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from fetchfleet.jobs.contract.model import Fetch
from fetchfleet.jobs.contract.urls import lane_of_url
from fetchfleet.jobs.notify import Wake
from fetchfleet.worker.body.decoder_budget import Windows
from fetchfleet.worker.fetch.deadlines import Bounds
from fetchfleet.worker.http.base import Engine, Pools
from fetchfleet.worker.lanes.settler import Settler
from fetchfleet.worker.lanes.store import Store
from fetchfleet.worker.policy.file import Policy
from fetchfleet.worker.policy.model import LanePolicy
from fetchfleet.worker.redis_support.key_repair import Foreign
from fetchfleet.worker.settings import Settings
from fetchfleet.worker.sink.files.sink import FileSink
from fetchfleet.worker.util.clock import RedisClock


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
