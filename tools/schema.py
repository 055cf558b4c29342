"""Generate the JSON Schema of the contract from the structs: types, and docstrings as descriptions."""

import ast
import inspect
import itertools
import json
from pathlib import Path
from typing import Any

import msgspec

from fetchfleet.jobs.contract.messages import (
    Cancellation,
    Envelope,
    InboxReceipt,
    MessageRefusal,
    PushedBatch,
)
from fetchfleet.jobs.contract.model import Fetch, Outcome, Priority, Reason, Result, Timings

FOLDER = Path(__file__).parents[1] / "jobs" / "schema"
DIALECT = "https://json-schema.org/draft/2020-12/schema"
TYPES = (
    *(Fetch, Envelope, Result, Timings, Priority, Outcome, Reason),
    *(PushedBatch, Cancellation, InboxReceipt, MessageRefusal),
)


class UndescribedError(Exception):
    """A field without a docstring below it."""


def write() -> None:
    """Write every file of the folder."""
    FOLDER.mkdir(exist_ok=True)
    for name, text in files().items():
        (FOLDER / name).write_text(text)


def files() -> dict[str, str]:
    """Return the name and the text of each file."""
    return {
        "fetch.json": _file({"$ref": "#/$defs/Fetch"}, _definitions(Fetch, Priority)),
        "message.json": _file(
            {
                "title": "Message",
                "description": "An inbox message that is not a plain URL: one fetch, or many.",
                "anyOf": [{"$ref": "#/$defs/FetchMessage"}, {"$ref": "#/$defs/Envelope"}],
            },
            _with_fetch_message(_definitions(Fetch, Envelope, Priority)),
        ),
        "pushed.json": _file(
            {
                "title": "Pushed",
                "description": "A message of a named inbox that is not a plain URL.",
                "anyOf": [
                    {"$ref": f"#/$defs/{name}"} for name in ("FetchMessage", "PushedBatch", "Cancellation")
                ],
            },
            _with_fetch_message(_definitions(Fetch, PushedBatch, Cancellation, Priority)),
        ),
        "receipt.json": _file({"$ref": "#/$defs/InboxReceipt"}, _definitions(InboxReceipt, MessageRefusal)),
        "result.json": _file({"$ref": "#/$defs/Result"}, _definitions(Result, Timings, Outcome, Reason)),
    }


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
    """Add descriptions: the first paragraph of the struct's docstring, and the docstring of each field."""
    schema["description"] = " ".join(inspect.cleandoc(of.__doc__).partition("\n\n")[0].split())
    texts = _field_docstrings(of)
    for name, field in schema.get("properties", {}).items():
        if name not in texts:
            raise UndescribedError(f"{of.__name__}: {name} has no docstring below it")
        field["description"] = texts[name]
    return schema


def _field_docstrings(of: type) -> dict[str, str]:
    """Return the string literal that follows each field of a class, with its white space collapsed."""
    texts: dict[str, str] = {}
    (definition,) = ast.parse(inspect.getsource(of)).body
    assert isinstance(definition, ast.ClassDef)
    for statements in itertools.pairwise(definition.body):
        match statements:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                texts[name] = " ".join(text.split())
    return texts


if __name__ == "__main__":
    write()
