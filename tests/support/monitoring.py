"""The files of ops/monitoring/, and the names that their queries may use."""

import re

from fetchfleet import Outcome, Reason
from fetchfleet.worker.inspect.overview import LANE_STATES
from fetchfleet.worker.observability.log import Event
from tests.support import compose

MONITORING = compose.ROOT / "ops" / "monitoring"
RULES = MONITORING / "rules"
DASHBOARDS = MONITORING / "dashboards"

_PAGE = (compose.ROOT / "docs" / "metrics.md").read_text()
_ROWS = re.findall(r"^\| `(\w+)` \| (\w+) \|", _PAGE, re.MULTILINE)

METRICS = {
    *(name for name, kind in _ROWS if kind != "histogram"),
    *(
        f"{name}{part}"
        for name, kind in _ROWS
        if kind == "histogram"
        for part in ("_bucket", "_sum", "_count")
    ),
    *re.findall(r"`(process_\w+)`", _PAGE),
}
"""The metrics of the metrics page, which is compared with the code elsewhere."""

LABEL_VALUES: dict[str, set[str]] = {
    "event": {event.value for event in Event},
    "outcome": {outcome.value for outcome in Outcome},
    "reason": {"", *(reason.value for reason in Reason)},
    "state": {"live", "draining", "lacking", *LANE_STATES},
    "place": {"lanes", "inbox", "arq"},
    "alertstate": {"firing", "pending"},
    "level": {"debug", "info", "warning", "error"},
}
"""The values of labels and fields that queries select by."""

_METRIC = re.compile(r"\b(?:fetchfleet_\w+|process_\w+|[a-z]+:\w+:\w+)")
_MATCHER = re.compile(r'(\w+)\s*(?:=~|!=|!~|=)\s*"([^"]*)"')


def metrics_in(query: str) -> set[str]:
    """Return the metrics that a PromQL query names."""
    return set(_METRIC.findall(re.sub(r"{[^}]*}", "", query)))


def unknown_values_in(query: str) -> set[tuple[str, str]]:
    """Return the label values of a query that do not exist, each with its label."""
    return {
        (label, value)
        for label, values in _MATCHER.findall(query)
        for value in values.split("|")
        if label in LABEL_VALUES and value not in LABEL_VALUES[label]
    }
