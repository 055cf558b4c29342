"""The OpenAPI document: complete, valid, and the operations that the page of the docs lists."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from fetchfleet.jobs.contract.messages import read_message
from fetchfleet.worker.console.api.openapi import document
from fetchfleet.worker.console.api.routes import OPERATIONS

PAGE = Path(__file__).parents[3] / "docs" / "http_api.md"


@pytest.fixture(scope="module")
def described() -> dict[str, Any]:
    """The document."""
    found: dict[str, Any] = json.loads(document(OPERATIONS))
    return found


def test_every_reference_has_a_definition(described: dict[str, Any]) -> None:
    """Every definition is a valid schema, and is used."""
    schemas = described["components"]["schemas"]
    names = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(described)))

    assert schemas.keys() - {"Result"} == names - {"Result"}  # lines have PositionedResult
    for schema in schemas.values():
        Draft202012Validator.check_schema(schema)


def test_every_operation_is_described(described: dict[str, Any]) -> None:
    """It has a summary, its parameters with descriptions, and its problems."""
    operations = [of for path in described["paths"].values() for of in path.values()]

    assert len(OPERATIONS) == len(operations) == len({of["operationId"] for of in operations})
    for of in operations:
        assert of["summary"].endswith(".")
        assert all(parameter["description"] for parameter in of["parameters"])
        assert "default" in of["responses"]


def test_the_page_lists_every_operation() -> None:
    """With its method and path."""
    text = PAGE.read_text()

    assert [] == [of.path for of in OPERATIONS if f"`{of.method} {of.path}`" not in text]


def test_the_body_of_the_page_is_a_message() -> None:
    """The example of a submit is accepted."""
    [body] = re.findall(r"-d '(.*?)'", PAGE.read_text())

    assert 2 == len(read_message(body.encode()).fetches)
