"""Conditional requests: valid validators, and the requests that carry them."""

from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fetchfleet.jobs.contract.checks.conditions import (
    MAX_ETAG_BYTES,
    is_conditional,
    is_etag,
    is_http_date,
)
from fetchfleet.jobs.contract.entry import Entry, Hop
from fetchfleet.jobs.contract.fetch import Fetch
from fetchfleet.jobs.errors import InvalidFetchError
from fetchfleet.worker.fetch.rules.validators import conditional, validators_of
from fetchfleet.worker.sink.index_entry import IndexEntry, Validators, from_json, to_json, usable

URL = "http://a.example/x"
DATE = "Sun, 06 Nov 1994 08:49:37 GMT"
RECORD = IndexEntry(
    path="a/b", bytes=3, sha256="0" * 64, stored_ms=9, url=URL, etag='"e"', last_modified=DATE
)


@pytest.mark.parametrize(
    "tag", ['""', '"a"', 'W/"a"', '"!#~"', '"a,b"', '"' + "x" * (MAX_ETAG_BYTES - 2) + '"']
)
def test_an_entity_tag_is_quoted_and_may_be_weak(tag: str) -> None:
    """RFC 9110 §8.8.3 defines the syntax; the empty tag and the longest one are valid."""
    assert is_etag(tag)


@pytest.mark.parametrize(
    "tag",
    [
        *("", "a", "*", "'a'", '"', '"a', 'a"', 'w/"a"', "W/a", '"a" ', '"a b"', '"a"\n', '"é"', '"a", "b"'),
        '"' + "x" * (MAX_ETAG_BYTES - 1) + '"',
    ],
)
def test_only_a_single_entity_tag_is_accepted(tag: str) -> None:
    """A `*` or a list would match other bodies."""
    assert not is_etag(tag)


@pytest.mark.parametrize(
    ("text", "date"),
    [
        (DATE, True),
        ("Sunday, 06-Nov-94 08:49:37 GMT", True),
        ("Sun Nov  6 08:49:37 1994", True),
        ("Tue, 20 Jan 2026 10:00:00 +0000", True),
        ("Sat, 29 Feb 2020 23:59:59 GMT", True),
        ("Sun, 31 Jan 2021 00:00:00 GMT", True),
        ("Sun, 30 Feb 2020 10:00:00 GMT", False),
        ("Sun, 00 Nov 1994 08:49:37 GMT", False),
        ("Sun, 06 Nov 1994 24:00:00 GMT", False),
        ("Sun, 06 Nov 1994 08:60:00 GMT", False),
        ("", False),
        ("yesterday", False),
        ("0", False),
        (DATE + "\r\nX: y", False),
        (DATE + " ", False),
        (DATE + " " * 60 + "x", False),
        ("é" + DATE, False),
    ],
)
def test_a_date_must_be_readable(text: str, *, date: bool) -> None:
    """Any of the forms that hosts use is accepted. It is sent back unchanged."""
    assert date is is_http_date(text)


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("etag", {"etag": "*"}),
        ("etag", {"etag": '"e"', "method": "POST"}),
        ("etag", {"etag": '"e"', "headers": {"if-none-match": '"f"'}}),
        ("last_modified", {"last_modified": "yesterday"}),
        ("last_modified", {"last_modified": DATE, "method": "PUT"}),
        ("last_modified", {"last_modified": DATE, "headers": {"If-Modified-Since": DATE}}),
        ("revalidate", {"revalidate": True, "method": "HEAD"}),
        ("revalidate", {"revalidate": True, "etag": '"e"'}),
        ("revalidate", {"revalidate": True, "last_modified": DATE}),
        ("revalidate", {"revalidate": True, "headers": {"If-None-Match": "*"}}),
    ],
)
def test_an_invalid_condition_is_refused_by_name(field: str, fields: dict[str, Any]) -> None:
    """It occurs once, with a suitable method, in a form that hosts read."""
    with pytest.raises(InvalidFetchError, match=f"^{field}: "):
        Fetch(url=URL, **fields)


def test_the_validators_of_a_fetch_become_conditions() -> None:
    """The request has both, and If-None-Match takes precedence at the host (RFC 9110 §13.1.3)."""
    fetch = Fetch(url=URL, headers={"X": "y"}, etag='"e"', last_modified=DATE)
    request = Entry(id="x", deadline_ms=0, fetch=fetch).request

    assert (("X", "y"), ("If-None-Match", '"e"'), ("If-Modified-Since", DATE)) == request.headers
    assert is_conditional(request.headers)


HEADERS = st.none() | st.text(max_size=20) | st.sampled_from(['"e"', DATE, "*", 'W/"e"'])


@given(HEADERS, HEADERS)
@example('"e"', "Sun, 06 Nov 99999999999 08:49:37 GMT")
def test_every_validator_of_a_result_is_valid_in_a_fetch(etag: str | None, date: str | None) -> None:
    """Saved validators are read back unchanged."""
    response_fields = {"etag": etag, "last-modified": date}
    found = validators_of(URL, response_fields.get)
    record = IndexEntry(path="a", bytes=1, sha256="", stored_ms=1, **found._asdict())

    Fetch(url=URL, etag=found.etag, last_modified=found.last_modified)
    assert record == from_json(to_json(record))
    assert found.etag in {None, etag}
    assert found.last_modified in {None, date}


@pytest.mark.parametrize("fields", [{"etag": "*"}, {"etag": '"a"\r\nX: y'}, {"last_modified": "never\n"}])
def test_an_invalid_record_is_ignored(fields: dict[str, str]) -> None:
    """Content of the disk is not trusted as a header."""
    record = msgspec.structs.replace(IndexEntry(path="a", bytes=1, sha256="", stored_ms=1, url=URL), **fields)

    assert from_json(to_json(record)) is None


@given(st.sampled_from([URL, "http://a.example/y", "http://b.example/x"]), st.booleans())
def test_validators_are_sent_to_the_url_that_gave_them(url: str, known: bool) -> None:  # noqa: FBT001
    """Other URLs would not know them, or learn from them."""
    request = Hop("GET", url, (("X", "y"),))
    asked = conditional(request, RECORD if known else None)

    assert is_conditional(asked.headers) == (known and url == URL)
    assert (asked.method, asked.url, asked.headers[:1]) == ("GET", url, request.headers)


def test_a_body_without_validators_is_requested_whole() -> None:
    """No comparison is possible."""
    bare = IndexEntry(path="a", bytes=1, sha256="", stored_ms=1, url=URL)

    assert Hop("GET", URL) == conditional(Hop("GET", URL), bare)


@pytest.mark.parametrize(
    ("fields", "spared"),
    [
        ({}, True),
        ({"dest": "a/b"}, True),
        ({"dest": "a/c"}, False),
        ({"max_bytes": 2}, False),
        ({"sha256": "0" * 64}, True),
        ({"sha256": "1" * 64}, False),
    ],
)
def test_a_stored_body_serves_a_fetch_with_the_same_place(fields: dict[str, Any], *, spared: bool) -> None:
    """A fetch with another place, or that would refuse the body, is made in full."""
    assert spared is usable(Fetch(url=URL, revalidate=True, **fields), RECORD)


def test_a_response_without_validators_has_none() -> None:
    """The validators of the response have only its URL."""
    assert Validators(URL, None, None) == validators_of(URL, lambda _: None)
