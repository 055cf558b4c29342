"""The alert rules: Prometheus's own tool evaluates each one on series that break and heal."""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from tests.support import compose
from tests.support.monitoring import (
    ALERTS,
    DASHBOARD,
    LOKI,
    METRICS,
    RULES,
    metrics_in,
    needs_promtool,
    panel_queries,
    promtool,
    syntax_errors,
    unknown_values_in,
)

RUNBOOK = compose.ROOT / "docs" / "runbook.md"
HEALTHY = {"fetchfleet_fleet_up": "1x120"}
FINISHED = "fetchfleet_fetches_finished_total"
EVENTS = "fetchfleet_log_events_total"
LAG = "fetchfleet_event_loop_lag_seconds_bucket"
BACKLOG, RUNNABLE = 'fetchfleet_fleet_backlog_fetches{place="lanes"}', "fetchfleet_fleet_lanes_runnable"


class Incident(NamedTuple):
    """Series with a value a minute, and the minutes at which no alert, this alert, and no alert fires."""

    alert: str
    series: Mapping[str, str]
    before: int
    during: int
    after: int


def once(event: str, alert: str) -> Incident:
    """Return the incident of one log line in the 20th minute."""
    return Incident(alert, {f'{EVENTS}{{event="{event}"}}': "0x19 1x60"}, 19, 21, 40)


INCIDENTS = [
    Incident("FetchfleetConsoleDown", {"fetchfleet_fleet_up": "1x9 stale _x18 1x60"}, 9, 13, 35),
    Incident("FetchfleetRedisDown", {"fetchfleet_fleet_up": "1x9 0x9 1x60"}, 10, 12, 25),
    Incident("FetchfleetNoWorker", {'fetchfleet_fleet_workers{state="live"}': "2x9 0x9 1x60"}, 10, 12, 25),
    Incident(
        "FetchfleetBacklogOld",
        {"fetchfleet_fleet_oldest_fetch_age_seconds": "14300x9 14500x19 9x60"},
        14,
        16,
        35,
    ),
    Incident("FetchfleetBacklogGrows", {BACKLOG: "100x19 100+50x40 2100x60", RUNNABLE: "4x120"}, 19, 40, 100),
    Incident(
        "FetchfleetFailures",
        {
            f'{FINISHED}{{outcome="stored",reason=""}}': "0+60x120",
            f'{FINISHED}{{outcome="failed",reason="tls"}}': "0x19 0+12x20 240x60",
        },
        19,
        32,
        55,
    ),
    Incident(
        "FetchfleetPoison", {f'{FINISHED}{{outcome="failed",reason="poison"}}': "0x19 1x60"}, 19, 21, 40
    ),
    Incident(
        "FetchfleetPoison",
        {
            f'{FINISHED}{{outcome="failed",reason="poison"}}': "_x20 1x90",
            "process_start_time_seconds": "_x20 1170x90",
        },
        19,
        21,
        40,
    ),
    once("fetch.bug", "FetchfleetBug"),
    once("worker.bug", "FetchfleetBug"),
    Incident("FetchfleetUnverifiedTls", {"fetchfleet_lanes_unverified_tls": "0x9 2x9 0x60"}, 9, 11, 25),
    once("results.lagging", "FetchfleetResultsLag"),
    once("results.trimmed", "FetchfleetResultsLost"),
    Incident("FetchfleetWorkerDown", {'up{job="fetchfleet-worker"}': "1x9 0x9 1x60"}, 11, 14, 25),
    Incident("FetchfleetHeartbeatLate", {"fetchfleet_heartbeat_age_seconds": "1x9 70x9 1x60"}, 9, 11, 25),
    once("redis.refusal", "FetchfleetRedisRefuses"),
    Incident(
        "FetchfleetRedisTrouble", {f'{EVENTS}{{event="redis.trouble"}}': "0x19 1+1x20 21x60"}, 22, 30, 60
    ),
    Incident("FetchfleetDiskRefuses", {"fetchfleet_disk_refuses": "0x9 1x9 0x60"}, 10, 12, 25),
    once("lane.lapsed", "FetchfleetLanesLapse"),
    Incident(
        "FetchfleetLoopLag",
        {
            f'{LAG}{{le="0.25"}}': "0+600x20 12000+500x20 22000+600x60",
            f'{LAG}{{le="1.0"}}': "0+600x101",
            f'{LAG}{{le="+Inf"}}': "0+600x101",
        },
        19,
        30,
        60,
    ),
    Incident("FetchfleetLogLinesLost", {"fetchfleet_log_lines_dropped_total": "0x19 7x60"}, 19, 21, 40),
]

QUIET = {
    "a backlog that grows while its hosts cool down": {BACKLOG: "100+50x120", RUNNABLE: "0x120"},
    "a backlog that shrinks": {BACKLOG: "90000-500x120", RUNNABLE: "4x120"},
    "few failures of few fetches": {f'{FINISHED}{{outcome="failed",reason="tls"}}': "0+1x120"},
    "a small share of failures": {
        f'{FINISHED}{{outcome="stored",reason=""}}': "0+1000x120",
        f'{FINISHED}{{outcome="failed",reason="http_status"}}': "0+50x120",
    },
    "a short outage of Redis": {
        "fetchfleet_fleet_up": "1x29 0 1x90",
        f'{EVENTS}{{event="redis.trouble"}}': "0x29 1x90",
        "fetchfleet_heartbeat_age_seconds": "1x29 30 1x90",
    },
    "a restart of a worker": {
        'up{job="fetchfleet-worker"}': "1x29 0 1x90",
        f'{EVENTS}{{event="worker.bug"}}': "0x120",
        f'{EVENTS}{{event="fetch.finished"}}': "0+9x29 0+9x90",
    },
    "a slow moment of the event loop": {
        f'{LAG}{{le="0.25"}}': "0+600x20 12599+600x99",
        f'{LAG}{{le="5.0"}}': "0+600x120",
        f'{LAG}{{le="+Inf"}}': "0+600x120",
    },
}


def case(name: str, series: Mapping[str, str], firing: Mapping[int, list[str]]) -> dict[str, Any]:
    """Return a test for promtool. firing: the alerts that fire, by minute."""
    checks = [
        {
            "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
            "eval_time": f"{minute}m",
            "exp_samples": [{"labels": f'{{alertname="{alert}"}}', "value": 1} for alert in alerts],
        }
        for minute, alerts in firing.items()
    ]
    written = [{"series": of, "values": values} for of, values in {**HEALTHY, **series}.items()]
    return {"name": name, "interval": "1m", "input_series": written, "promql_expr_test": checks}


def complaints(folder: Path, cases: list[dict[str, Any]]) -> str:
    """Return what promtool says about the cases that fail; "" if none does."""
    rules = [str(path) for path in sorted(RULES.glob("*.yml"))]
    file = folder / "test.yml"
    file.write_text(json.dumps({"rule_files": rules, "evaluation_interval": "1m", "tests": cases}))
    return promtool("test", "rules", file)


@needs_promtool
def test_an_alert_fires_during_its_incident_alone_and_clears(tmp_path: Path) -> None:
    """No other alert fires, and none before or afterwards."""
    cases = [
        case(of.alert, of.series, {of.before: [], of.during: [of.alert], of.after: []}) for of in INCIDENTS
    ]

    assert not (found := complaints(tmp_path, cases)), found


@needs_promtool
def test_no_alert_fires_without_need(tmp_path: Path) -> None:
    """At no minute of two hours."""
    never: dict[int, list[str]] = {minute: [] for minute in range(120)}

    assert not (
        found := complaints(tmp_path, [case(what, series, never) for what, series in QUIET.items()])
    ), found


def test_every_alert_has_an_incident() -> None:
    """An alert that was never seen to fire may not work."""
    assert {incident.alert for incident in INCIDENTS} == ALERTS.keys()


def test_every_alert_has_its_entry_in_the_runbook() -> None:
    """With its meaning, the first look and the remedy; the page has no others."""
    entries = re.findall(
        r"^### (Fetchfleet\w+)\n(.*?)(?=^##|\Z)", RUNBOOK.read_text(), re.MULTILINE | re.DOTALL
    )

    assert [name for name, _ in entries] == list(ALERTS)
    for name, text in entries:
        assert ALERTS[name]["annotations"]["runbook"] == f"docs/runbook.md#{name.lower()}"
        assert f"({ALERTS[name]['labels']['severity']})" in text, name
        assert all(part in text for part in ("**First look:**", "**Remedy:**")), name


def queries() -> Iterator[tuple[str, str]]:
    """Yield each PromQL query of the rules and of the dashboard, with its place."""
    for path in sorted(RULES.glob("*.yml")):
        for group in yaml.safe_load(path.read_text())["groups"]:
            for rule in group["rules"]:
                yield rule.get("alert") or rule["record"], rule["expr"]
    yield from panel_queries(DASHBOARD)


def test_every_metric_and_label_value_of_a_query_exists() -> None:
    """The metrics of a worker and of the fleet, and those that rules record."""
    recorded = {name for name, _ in queries() if ":" in name}

    assert [] == [
        (place, name) for place, query in queries() for name in metrics_in(query) - METRICS - recorded
    ]
    assert [] == [(place, *of) for place, query in queries() for of in unknown_values_in(query)]
    assert all(metrics_in(query) or query.startswith(("up", "ALERTS")) for _, query in queries())


@needs_promtool
def test_prometheus_parses_every_query(tmp_path: Path) -> None:
    """Those of the dashboard too."""
    assert not (found := syntax_errors(tmp_path, (query for _, query in queries()))), found


@pytest.mark.parametrize("file", [DASHBOARD, LOKI / "dashboard.json"], ids=lambda file: file.stem)
def test_the_panels_of_a_dashboard_do_not_overlap(file: Path) -> None:
    """Each has an ID and a title of its own, and the data source that the viewer selects."""
    dashboard = json.loads(file.read_text())
    panels = dashboard["panels"]
    [source] = [of["query"] for of in dashboard["templating"]["list"] if of["type"] == "datasource"]
    cells = Counter(
        (x, y)
        for at in (panel["gridPos"] for panel in panels)
        for x in range(at["x"], at["x"] + at["w"])
        for y in range(at["y"], at["y"] + at["h"])
    )

    assert {1} == set(cells.values())
    assert max(x for x, _ in cells) < 24
    assert len(panels) == len({panel["id"] for panel in panels}) == len({panel["title"] for panel in panels})
    for panel in panels:
        for of in (panel, *panel.get("targets", ())):
            assert panel["type"] == "row" or of["datasource"] == {"type": source, "uid": "${datasource}"}
