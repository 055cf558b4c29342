"""The names of log fields in the schemas of OpenTelemetry and Elastic."""

import io
import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fetchfleet.worker.lanes.log_events import ReleasedLine
from fetchfleet.worker.observability import log
from fetchfleet.worker.observability.log import Event
from fetchfleet.worker.observability.log_schemas import EVENT_NAMES, NAMES, renaming
from fetchfleet.worker.observability.registry.event_fields import Field
from fetchfleet.worker.observability.registry.event_schemas import EVENTS, LINE_DECODER, fields_of
from tests.support.log_lines import field_values

KNOWN = json.loads((Path(__file__).parent / "log_schema_names.json").read_text())
"""The names in use and their types, as the schemas define them."""
TYPES = {"otel": KNOWN["otel"]["names"] | KNOWN["otel_record"]["names"], "ecs": KNOWN["ecs"]["names"]}
SCHEMAS = pytest.mark.parametrize("schema", sorted(TYPES))
JSON_TYPES: dict[str, type | tuple[type, ...]] = {"int": int, "long": int, "string[]": list}
"""The JSON types of the types of the schemas; others are texts."""

HAVE_A_FORM = {
    "peer": st.none() | st.sampled_from(["10.0.0.1:80", "[2001:db8::1]:443", "[fe80::1]:65535"]),
    "protocol": st.none() | st.sampled_from(["HTTP/1.0", "HTTP/1.1", "HTTP/2"]),
    "version": st.sampled_from(["HTTP/1.1", "HTTP/2"]),
}
"""The values of fields whose text has a form that the schemas divide."""
A_MS = st.integers(0, 10**10).map(lambda tenths: tenths / 10)


def values(name: str, field: Field) -> st.SearchStrategy[Any]:
    """Return values of a field."""
    if name in {"ms", "total_ms"}:
        return A_MS if name == "ms" else A_MS | st.none()
    return HAVE_A_FORM[name] if name in HAVE_A_FORM else field_values(field.type)


@st.composite
def lines(draw: st.DrawFn, event: Event) -> dict[str, Any]:
    """Return lines of an event, all of which have the same fields."""
    fields = {name: draw(values(name, field)) for name, field in fields_of(event).items()}
    return {"event": event, "level": EVENTS[event].level, **fields}


EVENTS_AND_LINES = st.sampled_from(Event).flatmap(lambda event: st.tuples(lines(event), lines(event)))


@SCHEMAS
@settings(max_examples=50)
@given(st.data())
def test_no_field_is_lost_and_no_two_have_one_name(schema: str, data: st.DataObject) -> None:
    """Every line has the constants and one name or more for each field; lines that differ differ renamed."""
    rename = renaming(schema)
    line, other = data.draw(EVENTS_AND_LINES)
    of_event = rename({"event": line["event"]})
    names = Counter(of_event.keys())
    for field in line.keys() - {"event"}:
        names.update(rename({"event": line["event"], field: line[field]}).keys() - of_event.keys())
    renamed = rename(line)

    assert set(names.values()) == {1}
    assert renamed.keys() == names.keys()
    assert (rename(other) == renamed) == (other == line)


@SCHEMAS
@settings(max_examples=50)
@given(st.data())
def test_each_name_is_known_to_the_schema_or_is_under_fetchfleet(schema: str, data: st.DataObject) -> None:
    """Its value has the type that the schema requires."""
    renamed = renaming(schema)(data.draw(EVENTS_AND_LINES)[0])
    for name, value in json.loads(msgspec.json.encode(renamed)).items():
        if not name.startswith("fetchfleet."):
            assert value is None or isinstance(value, JSON_TYPES.get(TYPES[schema][name], str)), name


@SCHEMAS
def test_every_vendored_name_is_in_use(schema: str) -> None:
    """The list of names has no dead entry, and the table names fields that exist."""
    rename, used = renaming(schema), set[str]()
    sample = {"ms": 1.0, "total_ms": 1.0, "outcome": "failed", "peer": "a:1"}
    for event in Event:
        used |= rename(
            {"event": event, **dict.fromkeys(fields_of(event), "x"), **sample, "level": "x"}
        ).keys()
    fields = {name for event in Event for name in fields_of(event)}

    assert {name for name in used if not name.startswith("fetchfleet.")} == TYPES[schema].keys()
    assert fields | {"event", "level"} >= NAMES.keys()
    for event_name, names in EVENT_NAMES.items():
        assert fields_of(Event(event_name)).keys() >= names.keys()


def test_a_name_has_one_type_in_all_events() -> None:
    """Elasticsearch rejects a document in which a field has another type than in earlier ones."""
    types: defaultdict[str, set[str]] = defaultdict(set)
    rename = renaming("ecs")
    for event in Event:
        for field, (type_, _) in fields_of(event).items():
            for name in rename({"event": event, field: "failed" if field == "outcome" else None}):
                if name.startswith("fetchfleet."):
                    types[name].add(str(msgspec.json.schema(type_ | None)))

    assert {} == {name: found for name, found in types.items() if len(found) > 1}


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ("native", {"event": "lane.released", "level": "info", "worker": "one", "lane": "a"}),
        (
            "otel",
            {
                "event_name": "lane.released",
                "severity_text": "info",
                "service.instance.id": "one",
                "fetchfleet.lane": "a",
                "service.name": "fetchfleet",
            },
        ),
        (
            "ecs",
            {
                "event.action": "lane.released",
                "log.level": "info",
                "service.node.name": "one",
                "fetchfleet.lane": "a",
                "service.name": "fetchfleet",
                "ecs.version": "8.11.0",
            },
        ),
    ],
)
def test_lines_have_the_names_of_the_schema(
    any_stream: io.StringIO, schema: str, expected: dict[str, Any]
) -> None:
    """Lines that are structs have them too, and the lines of a sequence are separate."""
    log.configure(any_stream, schema=schema)
    log.write_info(Event.LANE_RELEASED, [ReleasedLine(worker="one", lane="a") for _ in range(2)])
    log.get_logger(worker="one").info(Event.LANE_RELEASED, lane="a")
    log.get_logger(worker="one").warning(Event.REDIS_TROUBLE, error="down")
    *released, trouble = (json.loads(line) for line in any_stream.getvalue().splitlines())

    assert len(released) == 3
    assert all(line.items() >= expected.items() for line in released)
    assert "down" in trouble.values()
    if schema == "native":
        LINE_DECODER.decode(any_stream.getvalue().splitlines()[0])


def test_a_finished_fetch_has_the_names_of_elastic() -> None:
    """Values are converted: the duration to ns, the peer to address and port, the outcome to that of ECS."""
    line = {
        "event": "fetch.finished",
        "url": "http://a/",
        "outcome": "unchanged",
        "total_ms": 12.3,
        "peer": "[2001:db8::1]:443",
        "protocol": "HTTP/2",
    }
    assert renaming("ecs")(line) == {
        "event.action": "fetch.finished",
        "url.full": "http://a/",
        "event.outcome": "success",
        "fetchfleet.outcome": "unchanged",
        "event.duration": 12_300_000,
        "destination.ip": "2001:db8::1",
        "destination.port": 443,
        "http.version": "2",
        "ecs.version": "8.11.0",
        "service.name": "fetchfleet",
    }
