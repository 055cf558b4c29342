"""Logs messages and jobs of unsupported versions, at most once a minute."""

from structlog.typing import FilteringBoundLogger

from fetchfleet.worker.observability import redact
from fetchfleet.worker.observability.log import Event, suppressed
from fetchfleet.worker.observability.repeats import Repeats
from fetchfleet.worker.util.clock import mono_s


class UnsupportedVersionLog:
    """Logs `intake.newer`. One for each ingress of a worker."""

    def __init__(self, ingress: str, log: FilteringBoundLogger) -> None:
        """ingress: its name in the field `door`."""
        self._ingress = ingress
        self._log = log
        self._repeats = Repeats()

    def write(self, note: str, **more: str) -> None:
        """Log the note, unless a line was logged in the last minute. more: further fields."""
        left_out = self._repeats.admit(Event.INTAKE_NEWER, mono_s())
        if left_out is not None:
            fields = {"door": self._ingress, "error": redact.text(note), **more, **suppressed(left_out)}
            self._log.warning(Event.INTAKE_NEWER, **fields)
