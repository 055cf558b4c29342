"""The intervals of the loops of a worker. Tests shorten them."""

from dataclasses import dataclass, field

from fetchfleet.worker.intake.inbox import InboxTimings
from fetchfleet.worker.lanes.parameters import LaneParameters
from fetchfleet.worker.observability.repeats import RECOVERY_S


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerTimings:
    """The intervals of the loops of a worker, in seconds."""

    heartbeat_s: float = 1.0
    """The interval between heartbeats."""
    name_check_s: float = 60.0
    """The interval between checks for other workers with the same name or different settings."""
    stats_s: float = 10.0
    """The interval between lines of statistics."""
    fleet_status_s: float = 10.0
    """The interval between lines about the state of the fleet."""
    loop_lag_s: float = 0.1
    """The interval between measurements of the event-loop lag."""
    disk_check_s: float = 1.0
    """The interval between checks of the disk."""
    disk_full_defer_s: float = 1.0
    """The delay before a notification declined because of the disk is tried again."""
    key_check_s: float = 5.0
    """The interval between checks of the fixed keys of the fleet for conflicting types."""
    sweep_s: float = 1.0
    """The interval between sweeps of the fleet."""
    reclaim_delay_s: float = 3.0
    """The delay after a Redis failure before lanes are reclaimed: owners may have results to write first."""
    redis_recovery_s: float = RECOVERY_S
    """The time without a Redis error after which trouble is over; longer if trouble recurs."""
    restart_s: float = 1.0
    """The delay before a loop that raised is restarted."""
    poll_delay_s: float = 0.1
    """The average interval between polls of arq's queue."""
    unsupported_retry_s: float = 5.0
    """The first delay before an arq job of a newer version is tried again. It doubles with each try."""
    inbox: InboxTimings = field(default_factory=InboxTimings)
    lanes: LaneParameters = field(default_factory=LaneParameters)
