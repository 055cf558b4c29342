"""The parts of one worker process that serving a lane needs."""

from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum

from structlog.typing import FilteringBoundLogger

from fetchfleet.jobs.notifications import LaneNotification
from fetchfleet.worker.lanes.parameters import LaneParameters
from fetchfleet.worker.lanes.settler import Settler
from fetchfleet.worker.lanes.store import LaneStore
from fetchfleet.worker.observability.repeats import Repeats
from fetchfleet.worker.redis_support.key_repair import KeyRepair
from fetchfleet.worker.util.backoff import Spacing
from fetchfleet.worker.util.clock import RedisClock


class QuarantineReason(StrEnum):
    """The reason for which a claimed element is no fetch of its lane; the field `why` of `lane.invalid`."""

    UNREADABLE = "unreadable"
    """It is no entry, or one that no worker writes."""
    TOO_LARGE = "too_large"
    WRONG_LANE = "wrong_lane"
    """Its next request goes to another host than the lane's."""
    UNKNOWN_BATCH = "unknown_batch"
    NOT_ITS_FETCH = "not_its_fetch"
    """Its batch has another fetch at that place."""
    ENDED = "ended"
    """The fetch has its result already."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneServices:
    """Shared by all lanes of one worker process."""

    worker_id: str
    store: LaneStore
    settler: Settler
    key_repair: KeyRepair
    clock: RedisClock
    notify: Callable[[Iterable[LaneNotification]], Awaitable[None]]
    """Tell the fleet that lanes are due."""
    report_redis_error: Callable[[BaseException], None]
    log: FilteringBoundLogger
    returns: Spacing
    """The looks at fetches that no live worker can do or read."""
    parameters: LaneParameters = field(default_factory=LaneParameters)
    repeats: Repeats = field(default_factory=Repeats)
    """The conditions of lanes that last from one hold to the next, by event and lane."""
    quarantined: Counter[QuarantineReason] = field(default_factory=Counter)
    """The number of claimed elements that were quarantined since the start of the worker."""
