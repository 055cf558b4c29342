"""The intervals of a worker's own loops. Tests shorten them."""

from dataclasses import dataclass, field

from fetchfleet.worker.intake.inbox import InboxTimings
from fetchfleet.worker.lanes.parameters import LaneParameters
from fetchfleet.worker.observability.repeats import RECOVERY_S


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerTimings:
    """Intervals in seconds."""

    heartbeat_s: float = 1.0
    """Between two heartbeats."""
    name_check_s: float = 60.0
    """Between two looks for other workers with the same name."""
    stats_s: float = 10.0
    """Between two lines of statistics."""
    loop_lag_s: float = 0.1
    """Between two measurements of the event loop's lag."""
    disk_check_s: float = 1.0
    """Between two checks of the free disk space."""
    disk_full_defer_s: float = 1.0
    """Until a lane is offered again that was declined because the disk is full."""
    key_check_s: float = 5.0
    """Between two checks of the fleet's fixed keys for conflicting types."""
    sweep_s: float = 1.0
    """Between two sweeps of the fleet."""
    reclaim_delay_s: float = 3.0
    """No lane is reclaimed so soon after Redis failed: owners may have results to write first."""
    redis_recovery_s: float = RECOVERY_S
    """Without a Redis error until the trouble counts as over, or longer if trouble comes and goes."""
    restart_s: float = 1.0
    """Until a loop that raised is started again."""
    poll_delay_s: float = 0.1
    """Between two looks of arq at its queue, on average."""
    unsupported_retry_s: float = 5.0
    """Until an arq job of a newer version is tried again."""
    inbox: InboxTimings = field(default_factory=InboxTimings)
    lanes: LaneParameters = field(default_factory=LaneParameters)
