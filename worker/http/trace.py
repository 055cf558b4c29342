"""The timings of an attempt."""

from fetchfleet.jobs.contract.entry import Entry
from fetchfleet.worker.util.clock import mono_s


class Trace:
    """The timings of an attempt, in monotonic seconds; those of its last exchange count."""

    __slots__ = ("connect_s", "entry", "head_s", "opened", "started_s")

    def __init__(self, entry: Entry | None = None) -> None:
        self.entry = entry
        """The fetch of the attempt, for the log."""
        self.started_s = mono_s()
        self.connect_s = 0.0
        """The time that opening a connection took, its TLS handshake included."""
        self.head_s: float | None = None
        """When the response headers were complete."""
        self.opened = False
        """Whether the last exchange opened a connection; else it reused one."""

    @property
    def latency_ms(self) -> float | None:
        """The time from the request to the response headers, without the time spent on connecting."""
        if self.head_s is None:
            return None
        return max(0.0, self.head_s - self.started_s - self.connect_s) * 1000
