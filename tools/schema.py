"""The JSON Schema of the contract, from the structs: their types, and their docstrings as descriptions."""

import inspect
import json
import re
from pathlib import Path
from typing import Any

import msgspec

from fetchfleet.jobs.contract.messages import Envelope
from fetchfleet.jobs.contract.model import Fetch, Outcome, Priority, Reason, Result, Timings

FOLDER = Path(__file__).parents[1] / "jobs" / "schema"
DIALECT = "https://json-schema.org/draft/2020-12/schema"
TYPES = (Fetch, Envelope, Result, Timings, Priority, Outcome, Reason)

_FIELD = re.compile(r"(\w+): (.+)")


class UndescribedError(Exception):
    """A field that its docstring does not tell of."""


def write() -> None:
    """Write every file of the folder anew."""
    FOLDER.mkdir(exist_ok=True)
    for name, text in files().items():
        (FOLDER / name).write_text(text)


def files() -> dict[str, str]:
    """The name and the text of each file."""
    return {
        "fetch.json": _file({"$ref": "#/$defs/Fetch"}, _definitions(Fetch, Priority)),
        "message.json": _file(
            {
                "title": "Message",
                "description": "What the inbox takes beside a URL: one fetch, or many.",
                "anyOf": [{"$ref": "#/$defs/FetchMessage"}, {"$ref": "#/$defs/Envelope"}],
            },
            _with_fetch_message(_definitions(Fetch, Envelope, Priority)),
        ),
        "result.json": _file({"$ref": "#/$defs/Result"}, _definitions(Result, Timings, Outcome, Reason)),
    }


def _definitions(*types: Any) -> dict[str, Any]:
    _, found = msgspec.json.schema_components(TYPES, ref_template="#/$defs/{name}")
    return {of.__name__: _described(of, found[of.__name__]) for of in types}


def _with_fetch_message(definitions: dict[str, Any]) -> dict[str, Any]:
    """A message that is one fetch has the message's version beside the fetch's own fields."""
    fetch, version = definitions["Fetch"], definitions["Envelope"]["properties"]["v"]
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
    """With the first paragraph of the docstring for the whole and a line of it for each field."""
    text = inspect.cleandoc(of.__doc__)
    schema["description"] = " ".join(text.partition("\n\n")[0].split())
    lines = _lines_of(text)
    for name, field in schema.get("properties", {}).items():
        if name not in lines:
            raise UndescribedError(f"{of.__name__}: the docstring has no line for {name}")
        field["description"] = lines[name]
    return schema


def _lines_of(text: str) -> dict[str, str]:
    """What stands behind `name:`, with the lines that go on from there."""
    lines: dict[str, str] = {}
    name = ""
    for line in text.splitlines():
        if begun := _FIELD.fullmatch(line):
            name = begun[1]
            lines[name] = begun[2]
        elif line and name:
            lines[name] += " " + line.strip()
        else:
            name = ""
    return lines


if __name__ == "__main__":
    write()
