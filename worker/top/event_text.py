"""The text of a log line of the fleet, for a terminal. Pure."""

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
from rich.text import Text

from fetchfleet.jobs.contract.safe_text import shown

STYLES = {"warning": "yellow", "error": "bold red", "critical": "bold red"}
"""The style of each level that has one."""

SHOWN_APART = frozenset({"event", "level", "timestamp"})
"""The fields that are not shown as NAME=VALUE."""

FIRST = ("lane", "outcome", "status", "reason", "why", "error", "wait_s", "url", "lines")
"""The fields that are shown first, because a narrow screen cuts the end of a line."""
LAST = ("note", "id", "batch", "worker")

EVENT_CHARS, LEVEL_CHARS = 20, 7
_TIME = slice(11, 23)
"""The time of day, in a timestamp of ISO 8601."""


def event_text(fields: Mapping[str, Any], *, brief: bool = False) -> Text:
    """Return a log line as one line: time (UTC), level, event, and the other fields.

    brief: leave out a lane that the URL names, so that its path fits on a narrow screen.
    """
    lane, url = fields.get("lane"), fields.get("url")
    if brief and isinstance(lane, str) and isinstance(url, str) and f"://{lane}/" in url:
        fields = {name: value for name, value in fields.items() if name != "lane"}
    level = fields["level"]
    return Text.assemble(
        (shown(fields["timestamp"][_TIME]), "dim"),
        (f" {level:{LEVEL_CHARS}} {shown(fields['event']):{EVENT_CHARS}}", STYLES.get(level, "")),
        *_values(fields),
    )


def _values(fields: Mapping[str, Any]) -> Iterator[str | tuple[str, str]]:
    """Yield the parts of the line with the other fields; those that are null are left out."""
    others = fields.keys() - {*FIRST, *LAST, *SHOWN_APART}
    for name in (*FIRST, *(name for name in fields if name in others), *LAST):
        value = fields.get(name)
        if value is not None:
            text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
            yield f" {shown(name)}=", "dim"
            yield shown(text)
