"""The services of a worker process that its fetches use."""

from collections.abc import Awaitable, Callable, Sequence

from msgspec import field

from fetchfleet.jobs.contract.entry import Entry
from fetchfleet.jobs.contract.fetch import Fetch
from fetchfleet.jobs.contract.urls import lane_of_url
from fetchfleet.jobs.contract.webhooks import UNSIGNED, SigningKeys
from fetchfleet.worker.body.pipeline import DecoderBudget
from fetchfleet.worker.fetch.isolation import Isolation
from fetchfleet.worker.fetch.rules.abilities import Abilities
from fetchfleet.worker.http.base import Engine, Pools
from fetchfleet.worker.lanes.log_events import FinishedLine
from fetchfleet.worker.lanes.robots_cache import RobotsCache
from fetchfleet.worker.lanes.services import LaneServices
from fetchfleet.worker.lanes.session import LaneSession
from fetchfleet.worker.policy.file import Policy
from fetchfleet.worker.policy.model import LanePolicy
from fetchfleet.worker.sink.base import Sink
from fetchfleet.worker.util.aio import Deadlines, Slots


class FetchServices(LaneServices, frozen=True, kw_only=True, eq=False):
    """The services that all fetches of one worker process share."""

    user_agent: str
    engine: Engine
    pools: Pools
    sink: Sink
    robots: RobotsCache
    slots: Slots
    """The permits of the fetches in flight in this process, over all lanes."""
    policy: Callable[[], Policy]
    """Returns the current policy, which an operator may change at run time."""
    chance: Callable[[], float]
    """Returns a random number in [0, 1): the only source of randomness."""
    abilities: Abilities
    """The abilities of this worker."""
    signing_keys: SigningKeys = UNSIGNED
    """The secrets with which this worker signs webhooks."""
    others: Callable[[], Awaitable[Sequence[Abilities]]] | None
    """Returns the abilities of the other live workers. None: all workers have the same settings."""
    record_span: Callable[[Entry, FinishedLine], None] | None = None
    """Makes the span of a fetch with its log line (worker/fetch/spans.py). None: no spans are made."""
    isolation: Isolation = field(default_factory=Isolation)
    """Separates the start of a fetch that may be crashing its workers from other starts."""
    deadlines: Deadlines = field(default_factory=Deadlines)
    """The ends of the attempts in flight."""
    decoder_budget: DecoderBudget = field(default_factory=DecoderBudget)
    """The decoders with large windows that may still start."""

    def policy_of(self, fetch: Fetch) -> LanePolicy:
        """Return the policy of the host in the fetch's own URL, whatever redirects followed."""
        return self.policy().for_lane(lane_of_url(fetch.url))


FetchSession = LaneSession[FetchServices]
"""A held lane, with the services to run its fetches."""
