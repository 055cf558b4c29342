"""The files of ops/monitoring/, and the names that their queries may use."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from fetchfleet import Outcome, Reason
from fetchfleet.worker.inspect.overview import LANE_STATES
from fetchfleet.worker.observability.log import Event
from tests.support import compose

MONITORING = compose.ROOT / "ops" / "monitoring"
RULES = MONITORING / "rules"
DASHBOARD = MONITORING / "dashboards" / "fetchfleet.json"
LOKI = MONITORING / "loki"

needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")

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

_SCHEMAS = json.loads((compose.ROOT / "docs" / "events.json").read_text())["$defs"]
SCHEMAS: dict[str, dict[str, Any]] = {event.value: _SCHEMAS[event.value] for event in Event}
"""The schemas of the lines of the log, by event."""

_JOBS = yaml.safe_load((MONITORING / "prometheus.yml").read_text())["scrape_configs"]

LABEL_VALUES: dict[str, set[str]] = {
    "event": {event.value for event in Event},
    "outcome": {outcome.value for outcome in Outcome},
    "reason": {"", *(reason.value for reason in Reason)},
    "state": {"live", "draining", "lacking", *LANE_STATES},
    "place": {"lanes", "inbox", "arq"},
    "alertstate": {"firing", "pending"},
    "job": {"fetchfleet", *(job["job_name"] for job in _JOBS)},
    "level": {"debug", "info", "warning", "error"},
}
"""The values of labels and fields that queries select by."""


def alerts_in(file: Path) -> dict[str, dict[str, Any]]:
    """Return the alerts of a file of rules, by name."""
    groups = yaml.safe_load(file.read_text())["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"]}


ALERTS = alerts_in(RULES / "alerts.yml")
LOG_ALERTS = alerts_in(LOKI / "alerts.yml")

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


def panel_queries(dashboard: Path) -> Iterator[tuple[str, str]]:
    """Yield the queries of a dashboard, each with the title of its panel and with its variables replaced."""
    for panel in json.loads(dashboard.read_text())["panels"]:
        for target in panel.get("targets", ()):
            query = target["expr"].replace("$__rate_interval", "5m").replace("$__auto", "5m")
            yield panel["title"], query.replace("$instance", ".*")


def promtool(*arguments: str | Path) -> str:
    """Run promtool; return its output if it fails, else an empty string."""
    ended = subprocess.run(
        ["promtool", *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False
    )
    return "" if ended.returncode == 0 else ended.stdout + ended.stderr


def syntax_errors(folder: Path, queries: Iterable[str]) -> str:
    """Return the errors of promtool in PromQL queries; an empty string if all are valid."""
    rules = [{"record": f"query_{number}", "expr": query} for number, query in enumerate(queries)]
    file = folder / "rules.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))
    return promtool("check", "rules", file)
