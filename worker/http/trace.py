"""The timings of an attempt."""

from fetchfleet.jobs.contract.entry import Entry
from fetchfleet.jobs.contract.model import Timings
from fetchfleet.worker.util.clock import mono_s


class Trace:
    """The timings of an attempt, in monotonic seconds; those of its last exchange count."""

    __slots__ = ("connect_s", "entry", "head_s", "lenient", "opened", "started_s")

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
        self.lenient = False
        """Whether only a lenient reading made sense of the headers of a response."""

    @property
    def latency_ms(self) -> float | None:
        """The time from the request to the response headers, without the time spent on connecting."""
        if self.head_s is None:
            return None
        return max(0.0, self.head_s - self.started_s - self.connect_s) * 1000


def timings_of(trace: Trace | None, total_ms: int) -> Timings:
    """Return where the time went; trace: of the last attempt, None if there was none."""
    ran_ms = (mono_s() - trace.started_s) * 1000 if trace else 0.0
    answered = trace is not None and trace.head_s is not None
    return Timings(
        queue_ms=round(max(0.0, total_ms - ran_ms), 1),
        connect_ms=round(trace.connect_s * 1000, 1) if trace and answered else None,
        ttfb_ms=round((trace.head_s - trace.started_s) * 1000, 1) if trace and trace.head_s else None,
        total_ms=float(total_ms),
    )
