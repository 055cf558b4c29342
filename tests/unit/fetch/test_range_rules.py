"""The meaning of a response to a Range request, and the bodies that may be resumed."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fetchfleet.jobs.contract.entry import (
    MAX_VALIDATOR_CHARS,
    Entry,
    Hop,
    PartialNote,
    parse_entry,
    serialize_entry,
)
from fetchfleet.jobs.contract.fetch import Fetch
from fetchfleet.worker.body.pieces import Piece
from fetchfleet.worker.fetch.rules.range_rules import (
    Append,
    ContentRange,
    RangeVerdict,
    Validator,
    content_range,
    first_piece_request,
    is_piece,
    is_source,
    range_request,
    url_digest,
    validator_of,
    verdict_of,
    verdict_of_first_piece,
)
from fetchfleet.worker.http.exchange import UNUSABLE

URL = "http://x/a"
GET = Hop("GET", URL)
ETAG = '"one"'
DATE, BEFORE = "Tue, 15 Nov 1994 12:45:26 GMT", "Tue, 15 Nov 1994 12:45:25 GMT"
NOTE = PartialNote(token=1, offset_bytes=100, of=url_digest(URL), etag=ETAG, total_bytes=300)
REST = "bytes 100-299/300"

sizes = st.integers(1, 1 << 40)


def note(**fields: Any) -> PartialNote:
    """Return the note with these fields changed."""
    return PartialNote(**{name: getattr(NOTE, name) for name in NOTE.__struct_fields__} | fields)


def judge_response(status: int, about: PartialNote = NOTE, **fields: str) -> Append | RangeVerdict:
    """Return the meaning of a response with these fields."""
    return verdict_of(about, status, {name.replace("_", "-"): value for name, value in fields.items()}.get)


def validator(request: Hop = GET, /, **fields: str) -> Validator | None:
    """Return the validator by which a body may be resumed."""
    return validator_of(request, 200, {name.replace("_", "-"): value for name, value in fields.items()}.get)


def test_the_rest_is_requested_with_the_validator_of_the_note() -> None:
    """Without a note, the request is a plain one."""
    assert is_source(GET, NOTE)
    assert dict(range_request(GET, NOTE).headers) == {"Range": "bytes=100-", "If-Range": ETAG}
    assert not is_source(GET, None)


@pytest.mark.parametrize(
    ("status", "content_range", "verdict"),
    [
        (200, None, RangeVerdict.RESTART),
        (200, "bytes 3/7", RangeVerdict.RESTART),
        (206, None, RangeVerdict.REFUSE),
        (206, "bytes 3/7", RangeVerdict.REFUSE),
        (206, REST, Append(300)),
        (416, None, RangeVerdict.REFUSE),
        (416, "bytes */2", RangeVerdict.REFUSE),
        (416, "bytes */300", RangeVerdict.REFUSE),
        (416, "bytes */100", RangeVerdict.REFUSE),
    ],
)
def test_each_response_to_a_range_request_has_its_meaning(
    status: int, content_range: str | None, verdict: Append | RangeVerdict
) -> None:
    """A Content-Range counts in a 206 and a 416 only (RFC 9110 §14.4)."""
    assert verdict_of(NOTE, status, {"content-range": content_range}.get) == verdict


def test_a_416_with_the_length_of_the_partial_body_completes_it() -> None:
    """No byte was missing."""
    assert judge_response(416, note(offset_bytes=300), content_range="bytes */300") is RangeVerdict.COMPLETE
    assert judge_response(416, note(offset_bytes=300)) is RangeVerdict.REFUSE


@pytest.mark.parametrize(
    ("fields", "about"),
    [
        ({"content_range": "bytes 99-299/300"}, NOTE),
        ({"content_range": "bytes 101-299/300"}, NOTE),
        ({"content_range": "bytes 0-299/300"}, NOTE),
        ({"content_range": "bytes 100-300/301"}, NOTE),
        ({"content_range": "bytes 100-299/299"}, NOTE),
        ({"content_range": "bytes 100-99/300"}, NOTE),
        ({"content_range": "bytes */300"}, NOTE),
        ({"content_range": "items 100-299/300"}, NOTE),
        ({"content_range": "junk"}, NOTE),
        ({"content_type": "multipart/byteranges; boundary=x"}, NOTE),
        ({"content_range": REST, "content_type": "Multipart/ByteRanges"}, NOTE),
        ({"content_range": REST, "etag": '"two"'}, NOTE),
        ({"content_range": REST, "etag": 'W/"one"'}, NOTE),
        ({"content_range": REST, "etag": UNUSABLE}, NOTE),
        ({"content_range": UNUSABLE}, NOTE),
        ({"content_range": REST, "content_length": "199"}, NOTE),
        ({"content_range": REST, "content_encoding": "gzip"}, NOTE),
        ({"content_range": REST, "last_modified": DATE}, note(etag=None, last_modified=BEFORE)),
    ],
)
def test_a_part_that_does_not_fit_is_not_appended(fields: dict[str, str], about: PartialNote) -> None:
    """Another start, length, version or coding, or several ranges: the body is requested from 0."""
    assert judge_response(206, about, **fields) is RangeVerdict.REFUSE


@pytest.mark.parametrize(
    ("fields", "about", "total"),
    [
        ({}, NOTE, 300),
        ({"etag": ETAG, "content_length": "200"}, NOTE, 300),
        ({"last_modified": DATE}, NOTE, 300),
        ({}, note(total_bytes=None), 300),
        ({"content_range": "bytes 100-299/*"}, NOTE, 300),
        ({"content_range": "bytes 100-299/*"}, note(total_bytes=None), 300),
        ({"content_range": "bytes 100-199/300"}, NOTE, 300),
        ({"last_modified": BEFORE}, note(etag=None, last_modified=BEFORE), 300),
    ],
)
def test_a_part_that_fits_is_appended(fields: dict[str, str], about: PartialNote, total: int) -> None:
    """It begins at the requested offset and has the same version. It need not reach the end."""
    assert judge_response(206, about, **{"content_range": REST, **fields}) == Append(total)


@pytest.mark.parametrize(
    ("fields", "about", "verdict"),
    [
        ({"content_range": "bytes */300"}, note(offset_bytes=300), RangeVerdict.COMPLETE),
        ({"content_range": "bytes */300"}, note(offset_bytes=300, total_bytes=None), RangeVerdict.COMPLETE),
        ({"content_range": "bytes */300", "etag": ETAG}, note(offset_bytes=300), RangeVerdict.COMPLETE),
        ({"content_range": "bytes */300", "etag": '"two"'}, note(offset_bytes=300), RangeVerdict.REFUSE),
        ({"content_range": "bytes */301"}, note(offset_bytes=300), RangeVerdict.REFUSE),
        ({"content_range": "bytes */100"}, NOTE, RangeVerdict.REFUSE),
        ({"content_range": "bytes 100-299/300"}, note(offset_bytes=300), RangeVerdict.REFUSE),
        ({}, note(offset_bytes=300), RangeVerdict.REFUSE),
    ],
)
def test_a_416_with_another_length_restarts_the_body(
    fields: dict[str, str], about: PartialNote, verdict: RangeVerdict
) -> None:
    """Another length, or none: the body is requested from 0."""
    assert judge_response(416, about, **fields) is verdict


@pytest.mark.parametrize("status", [200, 203])
def test_a_complete_body_replaces_the_partial_one(status: int) -> None:
    """The host supports no ranges, or the body has changed."""
    assert judge_response(status, content_range=REST) is RangeVerdict.RESTART


@pytest.mark.parametrize("status", [302, 304, 404, 429, 500, 503])
def test_other_responses_keep_the_partial_body(status: int) -> None:
    """They do not concern the body."""
    assert judge_response(status) is RangeVerdict.NOTHING


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({"etag": ETAG}, Validator(etag=ETAG)),
        ({"etag": '""'}, Validator(etag='""')),
        ({"etag": ETAG, "last_modified": BEFORE, "date": DATE}, Validator(etag=ETAG)),
        ({"last_modified": BEFORE, "date": DATE}, Validator(last_modified=BEFORE)),
        ({"etag": ETAG, "content_encoding": "identity"}, Validator(etag=ETAG)),
        ({"etag": ETAG, "content_encoding": "utf-8"}, Validator(etag=ETAG)),
        ({"etag": 'W/"one"'}, None),
        ({"etag": 'W/"one"', "last_modified": BEFORE, "date": DATE}, None),
        ({"etag": "one"}, None),
        ({"etag": '"one", "two"'}, None),
        ({"etag": UNUSABLE, "last_modified": BEFORE, "date": DATE}, None),
        ({"etag": '"a\r\nX: y"'}, None),
        ({"etag": f'"{"x" * MAX_VALIDATOR_CHARS}"'}, None),
        ({"last_modified": DATE, "date": DATE}, None),
        ({"last_modified": DATE, "date": BEFORE}, None),
        ({"last_modified": BEFORE}, None),
        ({"last_modified": "junk", "date": DATE}, None),
        ({"etag": ETAG, "accept_ranges": "none"}, None),
        ({"etag": ETAG, "content_encoding": "gzip"}, None),
        ({"etag": ETAG, "content_encoding": "utf-8, exi"}, None),
        ({}, None),
    ],
)
def test_only_a_strong_validator_allows_resumption(fields: dict[str, str], found: Validator | None) -> None:
    """A weak ETag never does, even beside a date. A date does if Date is at least a second later."""
    assert validator(**fields) == found


@pytest.mark.parametrize(
    "request_",
    [
        Hop("POST", URL),
        Hop("HEAD", URL),
        *(Hop("GET", URL, ((name, "x"),)) for name in ("Range", "if-range", "If-Match")),
    ],
)
def test_only_a_plain_get_is_resumed(request_: Hop) -> None:
    """A POST is a new request each time. A Range of the caller is kept."""
    assert validator(request_, etag=ETAG) is None
    assert not is_source(request_, NOTE)


def test_a_validator_belongs_to_one_url() -> None:
    """After a redirect to another URL, the whole body is requested."""
    assert is_source(GET, NOTE)
    assert not is_source(Hop("GET", "http://x/b"), NOTE)


@given(sizes, sizes, sizes | st.none(), st.sampled_from([None, ETAG, '"two"']))
def test_an_appended_part_begins_at_the_offset(
    first: int, length: int, total: int | None, etag: str | None
) -> None:
    """It holds for any 206: the part begins at the offset and lies within the whole."""
    about = note(total_bytes=None)
    last = first + length - 1
    fields = {"content_range": f"bytes {first}-{last}/{'*' if total is None else total}"}
    verdict = judge_response(206, about, **fields, **({"etag": etag} if etag else {}))

    fits = first == about.offset_bytes and (total is None or last < total) and etag != '"two"'
    assert isinstance(verdict, Append) is fits
    assert verdict in {Append(last + 1 if total is None else total), RangeVerdict.REFUSE}


@given(
    st.integers(0, 999),
    st.dictionaries(st.sampled_from(["content-range", "etag", "content-type"]), st.text()),
)
def test_arbitrary_responses_get_a_verdict(status: int, fields: dict[str, str]) -> None:
    """Junk is not appended."""
    assert isinstance(verdict_of(NOTE, status, fields.get), RangeVerdict)


@given(sizes, sizes)
def test_a_content_range_is_read_as_it_was_written(first: int, more: int) -> None:
    """The parser reads both forms of the field and ignores implausibly long numbers."""
    assert content_range(f"bytes {first}-{first + more}/*") == ContentRange(first, first + more, None)
    assert content_range(f"bytes */{more}") == ContentRange(None, None, more)
    assert content_range("bytes */*") is None
    assert content_range(f"bytes 0-{'9' * 19}/*") is None


@given(
    st.integers(1, 1 << 50),
    st.integers(0, 1 << 50),
    sizes | st.none(),
    st.from_regex(r'"[!#-~]{0,20}"', fullmatch=True) | st.none(),
)
def test_a_note_is_read_back_unchanged(offset: int, token: int, more: int | None, etag: str | None) -> None:
    """The entry of the fetch contains the note only if one exists."""
    kept = note(
        offset_bytes=offset,
        token=token,
        total_bytes=None if more is None else offset + more,
        etag=etag,
        last_modified="Mon, 01 Jan 2024 00:00:00 GMT" if etag is None else None,
    )
    entry = Entry(id="0123456789abcdef-00000007", deadline_ms=5, fetch=Fetch(url=URL), part=kept)

    assert parse_entry(serialize_entry(entry)) == entry
    assert b"part" not in serialize_entry(Entry(id=entry.id, deadline_ms=5, fetch=entry.fetch))


FIRST = "bytes 0-99/300"


def judge_first(status: int, **fields: str) -> Append | RangeVerdict:
    """Return the meaning of a response to the request for the first 100 bytes."""
    return verdict_of_first_piece(GET, status, {name.replace("_", "-"): fields[name] for name in fields}.get)


def test_the_first_piece_is_requested_without_a_validator() -> None:
    """The request keeps its other fields."""
    request = Hop("GET", URL, (("Accept", "a/b"),))
    assert first_piece_request(request, 100).headers == (("Accept", "a/b"), ("Range", "bytes=0-99"))


@pytest.mark.parametrize(
    ("status", "fields", "verdict"),
    [
        (206, {"content_range": FIRST, "etag": ETAG}, Append(300)),
        (206, {"content_range": FIRST, "last_modified": BEFORE, "date": DATE}, Append(300)),
        (206, {"content_range": "bytes 0-9/10"}, Append(10)),
        (206, {"content_range": FIRST}, RangeVerdict.REFUSE),
        (206, {"content_range": FIRST, "etag": 'W/"one"'}, RangeVerdict.REFUSE),
        (206, {"content_range": FIRST, "etag": ETAG, "accept_ranges": "none"}, RangeVerdict.REFUSE),
        (206, {"content_range": FIRST, "etag": ETAG, "content_encoding": "gzip"}, RangeVerdict.REFUSE),
        (206, {"content_range": FIRST, "etag": ETAG, "content_length": "99"}, RangeVerdict.REFUSE),
        (206, {"content_range": "bytes 1-100/300", "etag": ETAG}, RangeVerdict.REFUSE),
        (206, {"content_range": "bytes 0-99/*", "etag": ETAG}, RangeVerdict.REFUSE),
        (206, {"etag": ETAG}, RangeVerdict.REFUSE),
        (416, {"content_range": "bytes */0"}, RangeVerdict.REFUSE),
        (200, {"etag": ETAG}, RangeVerdict.NOTHING),
        (404, {}, RangeVerdict.NOTHING),
    ],
)
def test_each_response_to_the_first_piece_has_its_meaning(
    status: int, fields: dict[str, str], verdict: Append | RangeVerdict
) -> None:
    """A body is split only if its rest can be requested. A whole body needs no validator."""
    assert judge_first(status, **fields) == verdict


@pytest.mark.parametrize(
    ("status", "content_range", "etag", "fits"),
    [
        (206, "bytes 100-149/300", ETAG, True),
        (206, "bytes 100-148/300", ETAG, False),
        (206, "bytes 100-150/300", ETAG, False),
        (206, "bytes 101-149/300", ETAG, False),
        (206, "bytes 100-149/301", ETAG, False),
        (206, "bytes 100-149/*", ETAG, False),
        (206, "bytes 100-149/300", '"two"', False),
        (200, "bytes 100-149/300", ETAG, False),
        (416, "bytes */300", ETAG, False),
    ],
)
def test_a_piece_has_exactly_its_missing_bytes(
    status: int,
    content_range: str,
    etag: str,
    fits: bool,  # noqa: FBT001
) -> None:
    """Range, length and version are those of the request."""
    piece, header = Piece(100, 150), {"content-range": content_range, "etag": etag}.get
    assert is_piece(NOTE, piece, status, header) is fits
    assert range_request(GET, NOTE, 50).headers[0] == ("Range", "bytes=100-149")
