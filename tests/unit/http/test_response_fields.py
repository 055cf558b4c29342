"""The values of response fields: bytes as sent, and lines joined only for list fields."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fetchfleet.worker.http.exchange import EQUAL_LINES_FIELDS, FIRST_LINE_FIELDS, UNUSABLE, value_of
from tests.support.canned_responses import answer_of


@pytest.mark.parametrize("name", sorted(FIRST_LINE_FIELDS))
def test_the_first_line_of_a_singleton_field_counts(name: str) -> None:
    """Two values joined by a comma are a third one, which the host did not send."""
    assert value_of(name, ["a", "b"]) == "a"
    assert value_of(name, ["", "b"]) == "b"
    assert value_of(name, ["", ""]) == ""


@pytest.mark.parametrize("name", sorted(EQUAL_LINES_FIELDS))
def test_lines_that_describe_the_body_must_agree(name: str) -> None:
    """A repeated value is one value. Two different values are ignored."""
    assert value_of(name, ["a", "a"]) == "a"
    assert value_of(name, ["a", "b"]) == UNUSABLE
    assert value_of(name, ["a", ""]) == UNUSABLE


@pytest.mark.parametrize("name", ["content-encoding", "transfer-encoding", "vary", "ratelimit", "x-unknown"])
def test_the_lines_of_a_list_are_joined(name: str) -> None:
    """The value keeps the order of their arrival (RFC 9110 §5.3)."""
    assert value_of(name, ["a", "b, c"]) == "a, b, c"


def test_names_have_no_case_and_an_absent_field_has_no_value() -> None:
    """A field is found under its name in lower case."""
    found = answer_of((b"LOCATION", b"/a"), (b"Retry-After", b"1"), (b"retry-after", b"2"))

    assert found.header("location") == "/a"
    assert found.values("retry-after") == ["1", "2"]
    assert (found.header("etag"), list(found.values("etag"))) == (None, [])


@given(st.binary(), st.binary())
def test_no_value_depends_on_another_field(value: bytes, other: bytes) -> None:
    """The bytes can be recovered, for any encoding of the rest of the head."""
    found = answer_of((b"Location", value), (b"X-Note", other)).header("location")

    assert found is not None
    assert found.encode("latin-1") == value
