"""The counters of a worker since its start: in memory, and as they are published in Redis. Pure."""

from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Annotated

import msgspec

from fetchfleet.jobs.contract.result import Outcome, Reason
from fetchfleet.worker.observability.percentiles import Histogram

NO_REASON = "none"
"""The key of fetches and retries without a reason, such as stored bodies."""

MAX_KEYS = 200
"""The maximum number of outcomes or reasons in a published report."""

Count = Annotated[int, msgspec.Meta(ge=0, lt=10**18)]
Key = Annotated[str, msgspec.Meta(max_length=40, pattern=r"^[a-z0-9_]+\Z")]
Counts = Annotated[dict[Key, Count], msgspec.Meta(max_length=MAX_KEYS)]


class WorkerTotals(msgspec.Struct, frozen=True, kw_only=True):
    """The counters of a worker since its start, published with each heartbeat.

    Redis is not trusted: a value outside of these bounds makes the report invalid.
    """

    finished: Annotated[dict[Key, Counts], msgspec.Meta(max_length=MAX_KEYS)] = {}
    """The results written, by outcome and then by reason or NO_REASON."""
    retries: Counts = {}
    """The attempts after which a fetch waits for another one, by reason or NO_REASON."""
    throttles: Count = 0
    """The responses that asked to back off, also to requests for robots.txt."""
    interruptions: Count = 0
    """The attempts cut off by a deploy, a crash, an outage or a full disk, as noticed by this worker."""
    received_bytes: Count = 0
    """The bytes of bodies received."""
    log_lines_dropped: Count = 0
    """The log lines that the output did not accept."""


WAITS_MS = (10.0, 50.0, 100.0, 500.0, 1e3, 5e3, 10e3, 30e3, 60e3, 300e3, 900e3, 3600e3, 14_400e3, 86_400e3)
CONNECTS_MS = (1.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1e3, 2.5e3, 5e3, 10e3)
FIRST_BYTES_MS = (5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1e3, 2.5e3, 5e3, 10e3, 30e3, 60e3)
BODIES_BYTES = tuple(10**power for power in range(3, 11))
"""The bounds of the histograms. docs/metrics.md lists them."""

MAX_LANES = 10_000
"""The maximum number of lanes with a counter of their own."""


class FetchTotals:
    """The counters and histograms of the fetches of a worker process. Its lanes and its settler fill them.

    by_lane: count the finished fetches of each lane too.
    """

    def __init__(self, *, by_lane: bool = False) -> None:
        self.finished: Counter[tuple[Outcome, Reason | None]] = Counter()
        """The results that Redis has, by outcome and reason."""
        self.retries: Counter[Reason | None] = Counter()
        self.throttles = 0
        self.interruptions = 0
        self.total_ms = Histogram(WAITS_MS)
        self.queue_ms = Histogram(WAITS_MS)
        self.connect_ms = Histogram(CONNECTS_MS)
        """Only of attempts that opened a connection."""
        self.first_byte_ms = Histogram(FIRST_BYTES_MS)
        self.body_bytes = Histogram(BODIES_BYTES)
        self.by_lane: Counter[str] | None = Counter() if by_lane else None
        """The results by lane; None if they are not counted."""

    def busiest(self, count: int, in_flight: Mapping[str, int]) -> list[str]:
        """Return the lanes with the most results and fetches in flight. in_flight: by lane."""
        busy = Counter(in_flight)
        busy.update(self.by_lane or {})
        return [lane for lane, _ in busy.most_common(count)]

    def bound_lanes(self) -> None:
        """Forget the lanes with the fewest results if there are too many lanes."""
        if self.by_lane is not None and len(self.by_lane) > MAX_LANES:
            self.by_lane = Counter(dict(self.by_lane.most_common(MAX_LANES // 2)))

    def published(self, *, received_bytes: int, log_lines_dropped: int) -> WorkerTotals:
        """Return the counters for a report. The arguments are counted elsewhere."""
        finished: defaultdict[str, dict[str, int]] = defaultdict(dict)
        for (outcome, reason), count in self.finished.items():
            finished[outcome.value][_key(reason)] = count
        return WorkerTotals(
            finished=dict(finished),
            retries={_key(reason): count for reason, count in self.retries.items()},
            throttles=self.throttles,
            interruptions=self.interruptions,
            received_bytes=received_bytes,
            log_lines_dropped=log_lines_dropped,
        )


def _key(reason: Reason | None) -> str:
    return NO_REASON if reason is None else reason.value
