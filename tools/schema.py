"""Generate JSON Schema: of the contract, from its structs and their docstrings, and of the log events."""

import json
from pathlib import Path
from typing import Any

import msgspec

from fetchfleet.jobs.contract.checks.accept import Accept
from fetchfleet.jobs.contract.fetch import Fetch, Priority
from fetchfleet.jobs.contract.messages import (
    Cancellation,
    Envelope,
    InboxReceipt,
    MessageRefusal,
    PushedBatch,
)
from fetchfleet.jobs.contract.result import Outcome, Reason, Result, Timings
from fetchfleet.worker.observability.registry.event_schemas import EVENTS, LINES
from fetchfleet.worker.util.field_docs import described, field_docstrings

FOLDER = Path(__file__).parents[1] / "jobs" / "schema"
EVENTS_FILE = Path(__file__).parents[1] / "docs" / "events.json"
DIALECT = "https://json-schema.org/draft/2020-12/schema"
TYPES = (
    *(Fetch, Accept, Envelope, Result, Timings, Priority, Outcome, Reason),
    *(PushedBatch, Cancellation, InboxReceipt, MessageRefusal),
)


class UndescribedError(Exception):
    """A field without a docstring below it."""


def write() -> None:
    """Write every file of the folder, and the file of the log events."""
    FOLDER.mkdir(exist_ok=True)
    for name, text in files().items():
        (FOLDER / name).write_text(text)
    EVENTS_FILE.write_text(events())


def files() -> dict[str, str]:
    """Return the name and the text of each file."""
    return {
        "fetch.json": _file({"$ref": "#/$defs/Fetch"}, _definitions(Fetch, Accept, Priority)),
        "message.json": _file(
            {
                "title": "Message",
                "description": "An inbox message that is not a plain URL: one fetch, or many.",
                "anyOf": [{"$ref": "#/$defs/FetchMessage"}, {"$ref": "#/$defs/Envelope"}],
            },
            _with_fetch_message(_definitions(Fetch, Accept, Envelope, Priority)),
        ),
        "pushed.json": _file(
            {
                "title": "Pushed",
                "description": "A message of a named inbox that is not a plain URL.",
                "anyOf": [
                    {"$ref": f"#/$defs/{name}"} for name in ("FetchMessage", "PushedBatch", "Cancellation")
                ],
            },
            _with_fetch_message(_definitions(Fetch, Accept, PushedBatch, Cancellation, Priority)),
        ),
        "receipt.json": _file({"$ref": "#/$defs/InboxReceipt"}, _definitions(InboxReceipt, MessageRefusal)),
        "result.json": _file({"$ref": "#/$defs/Result"}, _definitions(Result, Timings, Outcome, Reason)),
    }


def events() -> str:
    """Return the schema of a log line, from the registry of events."""
    _, found = msgspec.json.schema_components([*LINES.values()], ref_template="#/$defs/{name}")
    enumerations = {of.__name__: _described(of, found.pop(of.__name__)) for of in (Outcome, Priority, Reason)}
    for event, (_, means, *_) in EVENTS.items():
        found[event]["description"] = means
        found[event]["properties"]["event"]["description"] = "name of the event"
    top = {
        "title": "Log line",
        "description": "A line of the log of a worker or a server. Later versions may add events and fields.",
        "oneOf": [{"$ref": f"#/$defs/{event}"} for event in EVENTS],
    }
    return _file(top, {**{event.value: found[event] for event in EVENTS}, **enumerations})


def _definitions(*types: Any) -> dict[str, Any]:
    _, found = msgspec.json.schema_components(TYPES, ref_template="#/$defs/{name}")
    return {of.__name__: _described(of, found[of.__name__]) for of in types}


def _with_fetch_message(definitions: dict[str, Any]) -> dict[str, Any]:
    """Add the message that is one fetch: the fields of a fetch, and the message's version."""
    envelope = definitions.get("Envelope") or definitions["PushedBatch"]
    fetch, version = definitions["Fetch"], envelope["properties"]["v"]
    message = {
        **fetch,
        "title": "FetchMessage",
        "description": "One fetch as a message of the inbox.",
        "properties": {**fetch["properties"], "v": version},
    }
    return {**definitions, "FetchMessage": message}


def _file(top: dict[str, Any], definitions: dict[str, Any]) -> str:
    return json.dumps({"$schema": DIALECT, **top, "$defs": definitions}, indent=2, ensure_ascii=False) + "\n"


def _described(of: Any, schema: dict[str, Any]) -> dict[str, Any]:
    """Add descriptions. Raises UndescribedError for a field without a docstring."""
    for name in schema.get("properties", {}).keys() - field_docstrings(of).keys():
        raise UndescribedError(f"{of.__name__}: {name} has no docstring below it")
    return described(of, schema)


if __name__ == "__main__":
    write()
