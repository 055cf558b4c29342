"""The alerts and the dashboard of the log: valid queries of events and fields that exist."""

from collections.abc import Iterator
from pathlib import Path

from tests.support.logql import STREAM, as_promql, selections
from tests.support.monitoring import (
    ALERTS,
    LOG_ALERTS,
    LOKI,
    SCHEMAS,
    needs_promtool,
    panel_queries,
    syntax_errors,
    unknown_values_in,
)

COMMON = {"event", "level", "timestamp", "worker"}


def queries() -> Iterator[tuple[str, str]]:
    """Yield each LogQL query of the alerts and of the dashboard, with its place."""
    for name, rule in LOG_ALERTS.items():
        yield name, rule["expr"]
    yield from panel_queries(LOKI / "dashboard.json")


def test_every_event_and_field_of_a_query_exists() -> None:
    """A field of an object, such as `lanes_busy`, is named after both."""
    unknown = []
    for place, query in queries():
        assert len(list(selections(query))) == query.count(STREAM) > 0, place
        for of in selections(query):
            schemas = [SCHEMAS[event.replace("\\", "")] for event in of.events]
            for field in of.fields - COMMON:
                names = {field, field.partition("_")[0]}
                if not schemas or any(names.isdisjoint(schema["properties"]) for schema in schemas):
                    unknown.append((place, field))

    assert [] == unknown
    assert [] == [(place, *of) for place, query in queries() for of in unknown_values_in(query)]


@needs_promtool
def test_the_queries_are_valid_around_their_selections(tmp_path: Path) -> None:
    """LogQL has the operators, functions and groupings of PromQL."""
    promql = [as_promql(query) for _, query in queries() if as_promql(query) != "lines"]

    assert len(promql) >= 30
    assert not (found := syntax_errors(tmp_path, promql)), found


def test_alerts_of_the_log_are_those_of_the_metrics() -> None:
    """With the same name, severity and runbook entry."""
    for name, rule in LOG_ALERTS.items():
        assert rule["labels"] == ALERTS[name]["labels"], name
        assert rule["annotations"]["runbook"] == ALERTS[name]["annotations"]["runbook"]


def test_a_query_selects_lines_by_text_field_and_number() -> None:
    """A text alone does not select a line, and neither does a number that is missing."""
    [of] = selections(
        '{job="fetchfleet"} |= "fleet.status" | json | event="fleet.status" | unwrap oldest_s | __error__=""'
    )

    assert of.selects('{"event":"fleet.status","oldest_s":1.5}')
    assert not of.selects('{"event":"fleet.status","oldest_s":null}')
    assert not of.selects('{"event":"library","message":"fleet.status","oldest_s":1}')
    assert not of.selects('{"event":"fleet-status","oldest_s":1}')
