"""Logs messages of unsupported versions: they are logged once a minute."""

from structlog.typing import FilteringBoundLogger

from fetchfleet.worker.observability import redact
from fetchfleet.worker.observability.log import Event, suppressed
from fetchfleet.worker.observability.repeats import Repeats
from fetchfleet.worker.util.clock import mono_s


class UnsupportedVersionLog:
    """One for each ingress of a worker; door: the ingress as the log names it."""

    def __init__(self, door: str, log: FilteringBoundLogger) -> None:
        self._door = door
        self._log = log
        self._repeats = Repeats()

    def write(self, note: str, **more: str) -> None:
        """Write the line unless one was written a moment ago. more: further fields."""
        left_out = self._repeats.admit(Event.INTAKE_NEWER, mono_s())
        if left_out is not None:
            fields = {"door": self._door, "error": redact.text(note), **more, **suppressed(left_out)}
            self._log.warning(Event.INTAKE_NEWER, **fields)
