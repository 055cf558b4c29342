"""The OpenAPI 3.1 document of the API, from the operations, their types and jobs/schema."""

import json
import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from http import HTTPStatus
from importlib.resources import files
from typing import Any

import msgspec
from msgspec import inspect

from fetchfleet import __version__
from fetchfleet.jobs.contract.ids import BATCH_ID_CHARS
from fetchfleet.worker.console.api.operations import JSON, Operation
from fetchfleet.worker.console.problems import MEDIA_TYPE, Problem
from fetchfleet.worker.util.field_docs import described

REF = "#/components/schemas/{name}"
CONTRACT = ("message", "result")
"""The files of jobs/schema whose definitions the document contains."""

_PATH_PARAMETERS = {
    "batch": {
        "description": "Batch ID.",
        "schema": {"type": "string", "pattern": f"^[0-9a-f]{{{BATCH_ID_CHARS}}}$"},
    },
    "host": {
        "description": "A host, an address, a pattern (*.cdn.net), or `default` for all hosts.",
        "schema": {"type": "string", "minLength": 1, "maxLength": 255},
    },
    "position": {
        "description": "Position of a dead letter.",
        "schema": {"type": "string", "pattern": "^[0-9]{1,19}-[0-9]{1,19}$"},
    },
}
_PROBLEM = {"$ref": REF.format(name="Problem")}


def document(operations: Sequence[Operation]) -> bytes:
    """Return the document as JSON."""
    types: list[Any] = [Problem]
    for operation in operations:
        types += [of for of in (operation.query, operation.body, operation.answer) if of is not None]
    schemas, components = msgspec.json.schema_components(types, ref_template=REF)
    by_type = {id(of): schema for of, schema in zip(types, schemas, strict=True)}
    for struct in _structs_in(inspect.multi_type_info(types)):
        components[struct.__name__] = described(struct, components[struct.__name__])
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        query = components[operation.query.__name__]
        paths.setdefault(operation.path, {})[operation.method.lower()] = {
            "operationId": operation.handler.__name__,
            "summary": operation.summary,
            "parameters": [*_path_parameters(operation), *_query_parameters(query), *_fields(operation)],
            **_request_body(operation, by_type),
            "responses": _responses(operation, by_type),
        }
    queries = {operation.query.__name__ for operation in operations}
    schemas_by_name = {name: of for name, of in components.items() if name not in queries}
    return msgspec.json.encode(
        {
            "openapi": "3.1.0",
            "info": {
                "title": "fetchfleet",
                "version": __version__,
                "description": "Enqueue fetches to a fleet, follow them, and steer the fleet.",
            },
            "security": [{"token": []}, {}],
            "paths": paths,
            "components": {
                "schemas": {**_contract(), **schemas_by_name},
                "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            },
        }
    )


def _contract() -> dict[str, Any]:
    """Return the definitions of the files of jobs/schema, with references into this document."""
    definitions: dict[str, Any] = {}
    for name in CONTRACT:
        text = (files("fetchfleet.jobs") / "schema" / f"{name}.json").read_text()
        definitions |= json.loads(text.replace("#/$defs/", REF.format(name="")))["$defs"]
    return definitions


def _structs_in(types: Iterable[Any]) -> Iterator[type]:
    """Yield each struct that the types contain, once."""
    seen: set[type] = set()
    pending = deque(types)
    while pending:
        match pending.popleft():
            case inspect.StructType(cls=struct, fields=fields) if struct not in seen:
                seen.add(struct)
                yield struct
                pending.extend(field.type for field in fields)
            case inspect.ListType(item_type=item):
                pending.append(item)
            case inspect.DictType(value_type=value):
                pending.append(value)
            case inspect.UnionType(types=members):
                pending.extend(members)
            case inspect.Metadata(type=of):
                pending.append(of)


def _path_parameters(operation: Operation) -> list[dict[str, Any]]:
    names = re.findall(r"{(\w+)}", operation.path)
    return [{"name": name, "in": "path", "required": True, **_PATH_PARAMETERS[name]} for name in names]


def _query_parameters(query: dict[str, Any]) -> list[dict[str, Any]]:
    parameters = []
    for name, schema in query["properties"].items():
        text = schema.pop("description", "")
        parameters.append({"name": name, "in": "query", "description": text, "schema": schema})
    return parameters


def _fields(operation: Operation) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "header", "description": text, "schema": {"type": "string", "maxLength": 255}}
        for name, text in operation.fields.items()
    ]


def _request_body(operation: Operation, by_type: dict[int, Any]) -> dict[str, Any]:
    by_media_type = {
        media_type: {"schema": json.loads(json.dumps(schema).replace("#/$defs/", REF.format(name="")))}
        for media_type, schema in operation.schema.items()
    }
    if operation.body is not None:
        by_media_type = {JSON: {"schema": by_type[id(operation.body)]}}
    return {"requestBody": {"required": True, "content": by_media_type}} if by_media_type else {}


def _responses(operation: Operation, by_type: dict[int, Any]) -> dict[str, Any]:
    success = {"schema": by_type[id(operation.answer)]}
    return {
        str(operation.status): {
            "description": HTTPStatus(operation.status).phrase,
            "content": {operation.media_type: success},
        },
        "default": {"description": "A problem.", "content": {MEDIA_TYPE: {"schema": _PROBLEM}}},
    }
