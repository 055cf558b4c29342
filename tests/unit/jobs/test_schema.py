"""The JSON Schema of the contract agrees with the code."""

import json
import re
from typing import Any

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from fetchfleet import Outcome, Priority, Reason, Result
from fetchfleet.jobs.contract.fetch import Fetch, encode
from fetchfleet.jobs.contract.messages import read_message
from fetchfleet.jobs.contract.result import decode_result
from fetchfleet.jobs.errors import InvalidFetchError, NewerMessageError
from tools import schema

SCHEMAS = {name: json.loads(text) for name, text in schema.files().items()}
FETCH, MESSAGE, RESULT = (
    Draft202012Validator(SCHEMAS[f"{name}.json"]) for name in ("fetch", "message", "result")
)

# JSON Schema takes 1.0 for an integer, the code does not.
SCALARS = st.none() | st.booleans() | st.integers() | st.sampled_from([0.5, "", "x", "high"])
VALUES = SCALARS | st.lists(SCALARS, max_size=2) | st.dictionaries(st.sampled_from("ab"), SCALARS, max_size=2)
URLS = st.just("http://a.example/")


def objects(of: Any, **more: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Return objects with some of the struct's fields, of any kind."""
    values = dict.fromkeys(of.__struct_fields__, VALUES) | {"unknown": VALUES} | more
    return st.fixed_dictionaries({}, optional=values)


def test_the_files_are_what_the_script_writes() -> None:
    """`./scripts/schema` has been run since the contract changed."""
    found = {path.name: path.read_text() for path in schema.FOLDER.iterdir()}

    assert schema.files() == found


@pytest.mark.parametrize("name", SCHEMAS)
def test_each_file_is_a_schema_that_describes_every_field(name: str) -> None:
    """The description of a field is its docstring, and references resolve."""
    Draft202012Validator.check_schema(SCHEMAS[name])
    Draft202012Validator(SCHEMAS[name]).is_valid({})
    for definition in SCHEMAS[name]["$defs"].values():
        assert definition["description"]
        assert all(field["description"] for field in definition.get("properties", {}).values())


def test_lists_are_closed() -> None:
    """An unknown value is not valid in a result, and an unknown field is not valid in a fetch."""
    definitions = SCHEMAS["result.json"]["$defs"] | SCHEMAS["message.json"]["$defs"]

    for of in (Outcome, Reason, Priority):
        assert sorted(of) == definitions[of.__name__]["enum"]
    for name in ("Fetch", "FetchMessage", "Envelope"):
        assert definitions[name]["additionalProperties"] is False


def refused_for_its_form(text: bytes) -> bool:
    """Return whether the decoder refuses a fetch before it checks the values of its fields."""
    try:
        msgspec.json.decode(text, type=Fetch)
    except msgspec.ValidationError as error:
        return not isinstance(error.__cause__, InvalidFetchError)
    return False


@given(objects(Fetch, url=URLS | VALUES))
def test_schema_and_decoder_refuse_the_same_fetches(given_: dict[str, Any]) -> None:
    """Both have the same fields with the same types."""
    assert FETCH.is_valid(given_) != refused_for_its_form(json.dumps(given_).encode())


GOOD = URLS | st.fixed_dictionaries(
    {"url": URLS}, optional={"meta": VALUES, "priority": st.sampled_from(Priority)}
)
BAD: st.SearchStrategy[Any] = st.sampled_from(
    [None, 5, [], {}, {"url": 5}, {"url": "http://a.example/", "colour": "red"}]
)
MESSAGES = st.fixed_dictionaries(
    {},
    optional={
        "fetches": st.lists(GOOD, max_size=3) | st.lists(GOOD | BAD, max_size=3) | VALUES,
        "batch": st.sampled_from(["0123456789abcdef", "0123456789ABCDEF", "0123456789abcdef0", 5, None]),
        "url": URLS | VALUES,
        "v": st.sampled_from([1, 2, 0, -1, "1", True, None, 1.5]),
        "unknown": VALUES,
    },
)


@given(MESSAGES)
def test_schema_and_inbox_accept_the_same_messages(message: dict[str, Any]) -> None:
    """Each accepts what the other accepts."""
    try:
        read_message(json.dumps(message).encode())
        taken = True
    except NewerMessageError:
        taken = False
    except InvalidFetchError as error:
        # The schema does not check URLs, and the reader stops at the first invalid one.
        assume(not re.match(r"(item \d+: )?url: ", str(error)))
        taken = False

    assert MESSAGE.is_valid(message) == taken


@given(objects(Result))
def test_a_result_of_the_schema_is_read_as_a_result(given_: dict[str, Any]) -> None:
    """A written result fits the schema."""
    try:
        read = decode_result(json.dumps(given_).encode())
    except msgspec.ValidationError:
        read = None

    assert RESULT.is_valid(given_) == (read is not None)
    if read:
        assert RESULT.is_valid(json.loads(encode(read)))


def test_a_written_result_fits_the_schema() -> None:
    """The result has every field."""
    result = Result(
        id="x", url="http://a/", outcome=Outcome.FAILED, reason=Reason.TLS, worker="w", status=200
    )

    assert RESULT.is_valid(json.loads(encode(result)))
