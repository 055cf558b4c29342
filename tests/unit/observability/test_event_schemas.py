"""The registry of log events, its JSON Schema, and the checks that the tests make with it."""

import io
import json
import logging
from typing import Any

import msgspec
import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from fetchfleet.worker.lanes.log_events import FinishedLine, ReleasedLine, TakenLine
from fetchfleet.worker.observability.log import Event
from fetchfleet.worker.observability.registry.event_fields import COMMON, FIELDS
from fetchfleet.worker.observability.registry.event_schemas import EVENTS, LINE_DECODER, LINES, fields_of
from tests.support import log_lines
from tools import schema

SCHEMA = Draft202012Validator(json.loads(schema.events()))
OF_EVENT = {
    event: Draft202012Validator({**SCHEMA.schema, "oneOf": [{"$ref": f"#/$defs/{event.value}"}]})
    for event in Event
}
"""The schema of the lines of each event, which is quicker than that of any line."""
STARTED = {"event": "lane.lost", "level": "warning", "timestamp": "t", "worker": "w", "lane": "a"}

SCALARS = (
    st.none() | st.booleans() | st.integers(-9, 9) | st.sampled_from([0.5, "", "inbox", "stored", "connect"])
)
VALUES = SCALARS | st.lists(SCALARS, max_size=2) | st.dictionaries(st.sampled_from("ab"), SCALARS, max_size=2)


def fits(line: Any) -> bool:
    """Return whether the decoder accepts the line."""
    try:
        LINE_DECODER.decode(json.dumps(line))
    except msgspec.ValidationError:
        return False
    return True


def test_the_file_is_what_the_script_writes() -> None:
    """`./scripts/schema` has been run since the registry changed."""
    assert schema.EVENTS_FILE.read_text() == schema.events()


def test_the_file_is_a_schema_that_describes_every_event_and_field() -> None:
    """No event has a field that is not described."""
    Draft202012Validator.check_schema(SCHEMA.schema)
    for event in Event:
        definition = SCHEMA.schema["$defs"][event.value]
        assert definition["description"] == EVENTS[event].means
        assert definition["additionalProperties"] is False
        assert definition["properties"].keys() == {"event", "level", *fields_of(event)}
        assert all(field["description"] for field in definition["properties"].values())
    assert [{"$ref": f"#/$defs/{event.value}"} for event in EVENTS] == SCHEMA.schema["oneOf"]
    assert SCHEMA.is_valid(STARTED)


def test_every_registered_field_belongs_to_an_event() -> None:
    """The list of fields has no dead entry, and no event states its own field without having it."""
    used = {name for event in Event for name in fields_of(event)}

    assert used == {*COMMON, *FIELDS}
    assert [] == [event for event in Event if not EVENTS[event].own.keys() <= fields_of(event).keys()]


@given(st.sampled_from(Event), st.data())
def test_schema_and_decoder_accept_the_same_lines(event: Event, data: st.DataObject) -> None:
    """Both have the same levels and fields with the same types."""
    names = [*fields_of(event), "unknown"]
    line = data.draw(st.fixed_dictionaries({"level": LEVELS}, optional=dict.fromkeys(names, VALUES)))
    line["event"] = event.value
    assert fits(line) == OF_EVENT[event].is_valid(line)

    good = {name: data.draw(log_lines.field_values(field.type)) for name, field in fields_of(event).items()}
    line = json.loads(msgspec.json.encode({"event": event, "level": EVENTS[event].level, **good}))
    assert fits(line)
    assert OF_EVENT[event].is_valid(line)


LEVELS = st.sampled_from(["debug", "info", "warning", "error"])


@pytest.mark.parametrize("line", [TakenLine, ReleasedLine, FinishedLine])
def test_a_struct_of_a_line_has_the_registered_fields(line: Any) -> None:
    """The line on the fast path has the same fields and types as the registry."""
    fields = {field.name: field for field in msgspec.structs.fields(line)}
    event = fields["event"].default
    registered = {field.name: field.type for field in msgspec.structs.fields(LINES[event])}

    assert fields.keys() == {"event", *registered}
    for name in registered.keys() - {"level"}:
        of, by_registry = (
            msgspec.json.schema(type_, ref_template="{name}")
            for type_ in (fields[name].type, registered[name])
        )
        for each in (of, by_registry):
            each.pop("description", None)
        assert of == by_registry


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"event": "lane.lots"}, "Invalid value 'lane.lots'"),
        ({"level": "info"}, "Invalid enum value 'info'"),
        ({"lanes": 1}, "unknown field `lanes`"),
        ({"lane": 1}, "Expected `str`, got `int`"),
        ({"lane": None}, "Expected `str`, got `null`"),
    ],
)
def test_a_line_that_does_not_fit_fails_the_test(
    tmp_path_factory: pytest.TempPathFactory, changed: dict[str, Any], error: str
) -> None:
    """The check of a worker's log file names the line."""
    folder = tmp_path_factory.mktemp("logs")
    (folder / "out" / ".fetchfleet").mkdir(parents=True)
    lines = [json.dumps(line) for line in (STARTED, STARTED | changed)]
    path = folder / "out" / ".fetchfleet" / "worker-1.log"
    path.write_text("\n".join([lines[0], "Traceback:", lines[0][:20]]))
    log_lines.assert_logs_registered(folder)

    path.write_text("\n".join([*lines, ""]))
    with pytest.raises(AssertionError, match=error):
        log_lines.assert_logs_registered(folder)


def test_a_captured_line_that_does_not_fit_fails_the_test() -> None:
    """The check covers the lines of the test process too."""
    with pytest.raises(AssertionError, match="unknown field `reason`"), log_lines.capture_logs():
        structlog.get_logger().warning(Event.LANE_LOST, lane="a", reason="b")


def test_a_warning_of_a_library_has_the_name_of_the_worker(stream: io.StringIO) -> None:
    """It is a line as any other."""
    logging.getLogger("arq").warning("slow")

    assert json.loads(stream.getvalue())["worker"] == "one"
