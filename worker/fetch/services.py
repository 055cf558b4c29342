"""The parts of one worker process that a fetch needs."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from fetchfleet.jobs.contract.model import Fetch
from fetchfleet.jobs.contract.urls import lane_of_url
from fetchfleet.worker.body.pipeline import DecoderBudget
from fetchfleet.worker.fetch.isolation import Isolation
from fetchfleet.worker.fetch.rules.abilities import Abilities
from fetchfleet.worker.http.base import Engine, Pools
from fetchfleet.worker.lanes.robots_cache import RobotsCache
from fetchfleet.worker.lanes.services import LaneServices
from fetchfleet.worker.lanes.session import LaneSession
from fetchfleet.worker.policy.file import Policy
from fetchfleet.worker.policy.model import LanePolicy
from fetchfleet.worker.sink.base import Sink
from fetchfleet.worker.util.aio import Deadlines, Slots


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchServices(LaneServices):
    """Shared by all fetches of one worker process."""

    user_agent: str
    engine: Engine
    pools: Pools
    sink: Sink
    robots: RobotsCache
    slots: Slots
    """One for each fetch that may be in flight in this process, over all lanes."""
    policy: Callable[[], Policy]
    """The policy in force: it may change at run time."""
    chance: Callable[[], float]
    """A fraction in [0, 1): the only source of randomness."""
    abilities: Abilities
    """Of this worker."""
    others: Callable[[], Awaitable[Sequence[Abilities]]] | None
    """Return those of the other live workers. None: no worker has others, so a fetch waits for none."""
    isolation: Isolation = field(default_factory=Isolation)
    """Of the one fetch that may be crashing its workers."""
    deadlines: Deadlines = field(default_factory=Deadlines)
    decoder_budget: DecoderBudget = field(default_factory=DecoderBudget)
    """Shared by the decoders of bodies that need large windows."""

    def policy_of(self, fetch: Fetch) -> LanePolicy:
        """Return the policy of the host that the fetch names, wherever redirects have led it."""
        return self.policy().for_lane(lane_of_url(fetch.url))


FetchSession = LaneSession[FetchServices]
"""A held lane whose fetches are run."""
