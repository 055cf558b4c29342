"""The text of a log line of the fleet, for a terminal. Pure."""

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
from rich.text import Text

from fetchfleet.jobs.contract.safe_text import shown

STYLES = {"warning": "yellow", "error": "bold red", "critical": "bold red"}
"""The style of each level that has one."""

SHOWN_APART = frozenset({"event", "level", "timestamp", "worker"})
"""The fields that are not shown as NAME=VALUE."""

EVENT_CHARS, LEVEL_CHARS = 20, 7
_TIME = slice(11, 23)
"""The time of day, in a timestamp of ISO 8601."""


def event_text(fields: Mapping[str, Any]) -> Text:
    """Return a log line as one line: time (UTC), level, event, worker, and the other fields."""
    level = fields["level"]
    style = STYLES.get(level, "")
    return Text.assemble(
        (shown(fields["timestamp"][_TIME]), "dim"),
        (f" {level:{LEVEL_CHARS}} {shown(fields['event']):{EVENT_CHARS}}", style),
        (f" {shown(fields.get('worker', ''))}", "dim"),
        *_values(fields),
    )


def _values(fields: Mapping[str, Any]) -> Iterator[str | tuple[str, str]]:
    """Yield the parts of the line with the other fields; those that are null are left out."""
    for name, value in fields.items():
        if name not in SHOWN_APART and value is not None:
            text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
            yield f" {shown(name)}=", "dim"
            yield shown(text)
