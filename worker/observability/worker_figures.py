"""The figures of a worker that its metrics show."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec

from fetchfleet.worker.observability.percentiles import Histogram
from fetchfleet.worker.observability.totals import FetchTotals


class LaneFigures(NamedTuple):
    """The figures of one lane."""

    name: str
    in_flight: int
    finished: int


class WorkerFigures(msgspec.Struct, frozen=True, kw_only=True):
    """The figures of a worker. Counters are those since its start."""

    about: Mapping[str, str]
    """The labels of `fetchfleet_worker_info`."""
    totals: FetchTotals
    lag_s: Histogram
    """The delays of the event loop."""
    received_bytes: int
    opened: int
    """The connections opened; `reused` and `closed` are counters too."""
    reused: int
    closed: int
    lanes: int
    """The lanes held."""
    in_flight: int
    settling: int
    """The settlements that wait for Redis."""
    unverified_tls: int
    """The lanes held whose policy has `verify = false`."""
    log_events: Mapping[str, int]
    """The log lines by event."""
    log_lines_dropped: int
    free_bytes: int | None
    """The free space of the out folder; None if it is unknown."""
    disk_refuses: bool
    """The worker starts no fetch, because bodies cannot be stored."""
    heartbeat_age_s: float
    """The time since Redis accepted the last heartbeat."""
    ready: bool
    busiest: Sequence[LaneFigures]
    """The lanes with a metric of their own."""
