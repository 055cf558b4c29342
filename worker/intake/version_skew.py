"""Logs messages of unsupported versions: they come round again and again and are logged once a minute."""

import math

from structlog.typing import FilteringBoundLogger

from fetchfleet.worker.observability import redact
from fetchfleet.worker.observability.log import Event
from fetchfleet.worker.util.clock import mono_s

LOG_EVERY_S = 60.0


class UnsupportedVersionLog:
    """One for each ingress of a worker; door: the ingress as the log names it."""

    def __init__(self, door: str, log: FilteringBoundLogger) -> None:
        self._door = door
        self._log = log
        self._logged_s = -math.inf

    def write(self, note: str) -> None:
        """Write the line unless one was written a moment ago."""
        if mono_s() - self._logged_s < LOG_EVERY_S:
            return
        self._logged_s = mono_s()
        self._log.warning(Event.INTAKE_NEWER, door=self._door, error=redact.text(note))
