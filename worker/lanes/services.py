"""The services of a worker process that a lane uses."""

from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from enum import StrEnum

from msgspec import Struct, field
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
    """The reason a claimed element is quarantined; the field `why` of `lane.invalid`."""

    UNREADABLE = "unreadable"
    """It is not a valid entry."""
    TOO_LARGE = "too_large"
    """It exceeds MAX_ENTRY_BYTES."""
    WRONG_LANE = "wrong_lane"
    """Its next request goes to another host than the lane's."""
    UNKNOWN_BATCH = "unknown_batch"
    """Its batch does not exist."""
    NOT_ITS_FETCH = "not_its_fetch"
    """Its batch has another fetch of this ID."""
    ENDED = "ended"
    """The fetch has its result already."""


class LaneServices(Struct, frozen=True, kw_only=True, eq=False):
    """The services that all lanes of a worker process share."""

    worker_id: str
    store: LaneStore
    settler: Settler
    key_repair: KeyRepair
    clock: RedisClock
    notify: Callable[[Iterable[LaneNotification]], Awaitable[None]]
    """Sends notifications of due lanes."""
    report_redis_error: Callable[[BaseException], None]
    log: FilteringBoundLogger
    returns: Spacing
    """Spaces out the returns of fetches that no live worker can do or read."""
    parameters: LaneParameters = field(default_factory=LaneParameters)
    repeats: Repeats = field(default_factory=Repeats)
    """Limits repeated log lines, by event and lane, across acquisitions."""
    quarantined: Counter[QuarantineReason] = field(default_factory=Counter)
    """Number of claimed elements quarantined since the start of the worker."""
