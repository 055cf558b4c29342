"""The counters of a worker since its start: in memory, and as they are published in Redis. Pure."""

from collections import Counter, defaultdict
from typing import Annotated

import msgspec

from fetchfleet.jobs.contract.model import Outcome, Reason

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


class FetchTotals:
    """The counters of the fetches of a worker process. Its lanes and its settler increment them."""

    def __init__(self) -> None:
        self.finished: Counter[tuple[Outcome, Reason | None]] = Counter()
        """The results that Redis has, by outcome and reason."""
        self.retries: Counter[Reason | None] = Counter()
        self.throttles = 0
        self.interruptions = 0

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
