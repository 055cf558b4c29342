"""The LogQL queries of ops/monitoring/: their selections of lines, and the PromQL around them."""

import json
import re
from collections.abc import Iterator
from typing import NamedTuple

STREAM = '{job="fetchfleet"}'
_SELECTION = re.compile(
    r"""(?x) \{job="fetchfleet"\}
    (?:\ \|(?P<search>[=~])\ "(?P<text>[^"]+)")? \ \|\ json (?P<filters>(?:\ \|\ \w+=~?"[^"]*")*)
    (?:\ \|\ unwrap\ (?P<number>\w+)\ \|\ __error__="")? """
)
_FILTER = re.compile(r'(\w+)(=~?)"([^"]*)"')
_RANGE = re.compile(r" \[(\w+)\]")
_GROUPED_RANGE = re.compile(r"(_over_time\((?:[\d.]+, )?lines\[\w+\]\)) by \(\w+\)")


class Selection(NamedTuple):
    """The lines that a query selects."""

    search: str
    """The regular expression that a line must contain."""
    filters: tuple[tuple[str, str], ...]
    """Fields, each with the regular expression of its values."""
    number: str | None
    """The field whose value is used; None if lines are counted."""

    @property
    def events(self) -> list[str]:
        """The events that the query names."""
        return [event for name, value in self.filters if name == "event" for event in value.split("|")]

    @property
    def fields(self) -> set[str]:
        """The fields that the query names."""
        return {name for name, _ in self.filters} | ({self.number} if self.number else set())

    def selects(self, line: str) -> bool:
        """Return whether the query uses a line of the log."""
        if not re.search(self.search, line):
            return False
        fields = json.loads(line)
        found = all(re.fullmatch(value, str(fields.get(name) or "")) for name, value in self.filters)
        return found and (self.number is None or isinstance(fields.get(self.number), int | float))


def selections(query: str) -> Iterator[Selection]:
    """Yield the selections of a query."""
    for found in _SELECTION.finditer(query):
        text = found["text"] or ""
        search = re.escape(text) if found["search"] == "=" else text
        filters = tuple(
            (name, value if operator == "=~" else re.escape(value))
            for name, operator, value in _FILTER.findall(found["filters"])
        )
        yield Selection(search, filters, found["number"])


def as_promql(query: str) -> str:
    """Return a query with a metric in place of each selection. The rest of LogQL is PromQL.

    Grouping of a range, and first_over_time, are not. What is not a valid selection remains, and is an error.
    """
    promql = _RANGE.sub(r"[\1]", _SELECTION.sub("lines", query))
    return _GROUPED_RANGE.sub(r"\1", promql).replace("first_over_time", "last_over_time")
