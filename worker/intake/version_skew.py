"""Says that a message is for a newer worker; it comes round again and again, and is told of seldom."""

import math
from typing import Any

from fetchfleet.worker.observability import redact
from fetchfleet.worker.observability.log import Event
from fetchfleet.worker.util.clock import mono_s

TELL_EVERY_S = 60.0


class Newer:
    """One for each door of a worker."""

    def __init__(self, door: str, log: Any) -> None:
        self._door = door
        self._log = log
        self._told_s = -math.inf

    def tell(self, note: str) -> None:
        """Write the line, if it is not too soon."""
        if mono_s() - self._told_s < TELL_EVERY_S:
            return
        self._told_s = mono_s()
        self._log.warning(Event.INTAKE_NEWER, door=self._door, error=redact.text(note))
