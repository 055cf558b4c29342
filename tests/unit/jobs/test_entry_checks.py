"""Entries in Redis, which are not trusted: an entry that no worker writes is refused."""

import json
import re
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fetchfleet.jobs.contract.checks.field_checks import MAX_HEADER_BYTES
from fetchfleet.jobs.contract.entry import (
    HEAD_CHARS,
    MAX_ENTRY_BYTES,
    MAX_HOPS,
    MAX_VALIDATOR_CHARS,
    BadEntryError,
    Entry,
    Hop,
    NewerEntryError,
    PartialNote,
    TooLargeEntryError,
    parse_entry,
    serialize_entry,
    serialize_new_entry,
    with_deadline,
)
from fetchfleet.jobs.contract.fetch import MAX_FETCH_BYTES, Fetch, Priority, decode_fetch, encode, record_of
from fetchfleet.jobs.contract.ids import is_fetch_id
from fetchfleet.jobs.contract.result import Reason
from fetchfleet.jobs.contract.urls import MAX_URL_BYTES, lane_of_url, parse_url
from fetchfleet.jobs.errors import MAX_REFUSAL_CHARS, InvalidFetchError
from fetchfleet.worker.fetch.rules.range_rules import url_digest
from fetchfleet.worker.fetch.rules.redirects import AllowedRedirects, follow

HEAD = b"0123456789abcdef-000000001767312000000"
ID = "0123456789abcdef-00000000"
URL = "https://a.example/x"
AWAY = "https://b.example/y"
POST: dict[str, Any] = {
    "url": URL,
    "method": "POST",
    "headers": {"Authorization": "s", "Accept": "*/*", "Content-Type": "text/plain"},
    "body_file": "in/file",
}
CONDITIONAL: dict[str, Any] = {"url": URL, "etag": '"v1"', "last_modified": "Mon, 01 Jan 2024 00:00:00 GMT"}
PART: dict[str, Any] = {"token": 1, "offset_bytes": 5, "of": url_digest(URL), "etag": '"v1"'}


def element(fetch: dict[str, Any] | None = None, **fields: Any) -> bytes:
    """Return a serialized entry with these fields."""
    return HEAD + json.dumps({"fetch": fetch or {"url": URL}, **fields}).encode()


def hopped(hop: dict[str, Any], fetch: dict[str, Any] | None = None, hops: int = 1) -> bytes:
    """Return an entry after a redirect, its hop with these fields."""
    return element(fetch, hop={"method": "GET", "url": AWAY, **hop}, hops=hops)


HOPS = st.fixed_dictionaries(
    {"method": st.sampled_from(["GET", "POST", "HEAD", "get", ""]), "url": st.sampled_from([URL, AWAY, "x"])},
    optional={
        "headers": st.lists(
            st.sampled_from([["Accept", "*/*"], ["Authorization", "s"], ["Host", "h"], ["X", "a\r\nb"]]),
            max_size=3,
        ),
        "body": st.none() | st.sampled_from(["", "x"]),
        "body_base64": st.none() | st.just("eA=="),
        "body_file": st.none() | st.sampled_from(["in/file", "../x", "/etc/passwd", ""]),
        "more": st.integers(),
    },
)
NUMBERS = st.sampled_from([-1, 0, 1, 3, 10, 11, 2**31, 2**53, 2**63, 2**64, 1e400, 0.5, True, None, "1"])
PARTS = st.fixed_dictionaries(
    {"token": NUMBERS, "offset_bytes": NUMBERS, "of": st.sampled_from([PART["of"], "", "../x", "g" * 32])},
    optional={
        "etag": st.sampled_from([None, '"v"', 'W/"v"', '"a\r\nb"', "*", '"' + "x" * 300 + '"']),
        "last_modified": st.sampled_from([None, "Mon, 01 Jan 2024 00:00:00 GMT", "a\nb", "", "é", "x" * 300]),
        "total_bytes": NUMBERS,
    },
)
NEAR = st.fixed_dictionaries(
    {
        "fetch": st.sampled_from(
            [POST, CONDITIONAL, {"url": URL}, {"url": "HTTPS://A.example:443/x"}, {}, None]
        )
    },
    optional={
        "v": st.sampled_from([0, 1, 2, "1", 2**70]),
        "attempts": NUMBERS,
        "throttles": NUMBERS,
        "interruptions": NUMBERS,
        "crashes": NUMBERS,
        "doubts": NUMBERS,
        "last": st.sampled_from([None, "read", "other", 1]),
        "hop": st.none() | HOPS,
        "hops": NUMBERS,
        "begun": st.sampled_from([True, False, 1, None]),
        "part": st.none() | PARTS,
        "retry_of": st.sampled_from([None, ID, "", "../../x", ID + "\n", ID.upper()]),
        "meta": st.integers(),
    },
)


def check(entry: Entry) -> None:
    """Check every property that the worker relies on."""
    counts = (entry.attempts, entry.throttles, entry.interruptions, entry.crashes, entry.doubts)
    assert all(0 <= count <= 10**9 for count in counts)
    assert is_fetch_id(entry.id)
    assert entry.retry_of is None or is_fetch_id(entry.retry_of)
    assert 0 <= entry.hops <= MAX_HOPS
    assert (entry.hop is None) is (entry.hops == 0)
    fetch, request = entry.fetch, entry.request
    assert parse_url(request.url).text == request.url
    own = msgspec.structs.replace(entry, hop=None, hops=0).request
    assert set(request.headers) <= set(own.headers)
    bodies = (request.body, request.body_base64, request.body_file)
    assert bodies in {(None, None, None), (own.body, own.body_base64, own.body_file)}
    assert request.method in {fetch.method, "GET"}
    sent = dict(request.headers) if len({name for name, _ in request.headers}) == len(request.headers) else {}
    Fetch(url=request.url, method=request.method, headers=sent, body_file=request.body_file)
    if entry.part is not None:
        validator = entry.part.etag or entry.part.last_modified or ""
        assert 0 < len(validator) <= MAX_VALIDATOR_CHARS
        assert validator.isascii()
        assert validator.isprintable()
        assert 1 <= entry.part.offset_bytes < 10**18
    assert entry.may_wait_in(lane_of_url(request.url))


@given(NEAR)
@example(
    {"fetch": POST, "hop": {"method": "POST", "url": AWAY, "body_file": "../../../etc/passwd"}, "hops": 1}
)
def test_a_nearly_valid_entry_is_valid_or_refused(fields: dict[str, Any]) -> None:
    """An accepted one is written as it is read."""
    try:
        entry = parse_entry(HEAD + json.dumps(fields).encode())
    except BadEntryError:
        return
    check(entry)
    written = serialize_entry(entry)
    assert parse_entry(written) == entry
    assert serialize_entry(parse_entry(written)) == written


FULL = element(
    POST,
    attempts=2,
    hop={"method": "POST", "url": AWAY, "body_file": "in/file", "headers": [["Accept", "*/*"]]},
    hops=3,
    part={**PART, "total_bytes": 9},
    retry_of=ID,
    last="read",
)


@given(st.lists(st.tuples(st.integers(0, len(FULL)), st.binary(max_size=3), st.integers(0, 3)), max_size=3))
def test_a_damaged_entry_is_valid_or_refused(damages: list[tuple[int, bytes, int]]) -> None:
    """The damage exchanges, inserts or removes bytes."""
    damaged = FULL
    for place, put, cut in damages:
        damaged = damaged[:place] + put + damaged[place + cut :]
    try:
        entry = parse_entry(damaged)
    except BadEntryError:
        return
    check(entry)
    assert parse_entry(serialize_entry(entry)) == entry


@given(
    st.sampled_from([POST, CONDITIONAL, {**POST, "method": "PUT"}, {"url": URL, "method": "HEAD"}]),
    st.lists(
        st.tuples(
            st.sampled_from([301, 302, 303, 307, 308]), st.sampled_from([URL, AWAY, "http://[::1]:8/"])
        ),
        min_size=1,
        max_size=MAX_HOPS,
    ),
)
def test_every_followed_redirect_yields_a_valid_entry(
    fields: dict[str, Any], ways: list[tuple[int, str]]
) -> None:
    """It holds after any number of redirects, to any hosts."""
    fetch = Fetch(**fields)
    entry = Entry(id=ID, deadline_ms=1, fetch=fetch)
    request = entry.request
    for status, target in ways:
        hop = follow(request, status, target, AllowedRedirects(repeat=True, https_to_http=True, bodies=True))
        assert isinstance(hop, Hop)
        entry = msgspec.structs.replace(entry, hop=hop, hops=entry.hops + 1)
        assert parse_entry(serialize_entry(entry)) == entry
        assert entry.may_wait_in(lane_of_url(hop.url))
        assert entry.may_wait_in(lane_of_url(request.url))
        request = hop


@pytest.mark.parametrize(
    ("hop", "fetch"),
    [
        ({"url": "file:///etc/passwd"}, None),
        ({"url": "https://user:pw@b.example/"}, None),
        ({"url": "https://b.example/\r\nX: y"}, None),
        ({"url": "https://b.example:99999/"}, None),
        ({"url": "https://0x7f.1/"}, None),
        ({"url": f"{AWAY}?{'x' * MAX_URL_BYTES}"}, None),
        ({"method": "POST"}, None),
        ({"method": "CONNECT"}, None),
        ({"method": "GET\r\n"}, None),
        ({"method": "DELETE"}, POST),
        ({"method": "GET"}, {"url": URL, "method": "HEAD"}),
        ({"body_file": "../../../etc/passwd"}, None),
        ({"body_file": "../../../etc/passwd", "method": "POST"}, POST),
        ({"body_file": "in/file", "method": "GET"}, POST),
        ({"body": "x", "method": "POST"}, POST),
        ({"method": "POST"}, POST),
        ({"body_base64": "eA=="}, None),
        ({"headers": [["Content-Length", "5"]]}, None),
        ({"headers": [["Host", "c.example"]]}, None),
        ({"headers": [["Transfer-Encoding", "chunked"]]}, None),
        ({"headers": [["Authorization", "other"]]}, POST),
        ({"headers": [["Accept", "*/*\r\nX: y"]]}, POST),
        ({"headers": [["Accept", "*/*"], ["Accept", "*/*"]]}, POST),
        ({"headers": [["If-None-Match", '"v1"']]}, None),
        ({"headers": {"Accept": "*/*"}}, POST),
    ],
)
def test_a_hop_requests_no_more_than_its_fetch(hop: dict[str, Any], fetch: dict[str, Any] | None) -> None:
    """An entry cannot request what a producer may not request."""
    with pytest.raises(BadEntryError):
        parse_entry(hopped(hop, fetch))


@pytest.mark.parametrize(
    ("hop", "fetch"),
    [
        ({}, None),
        ({"headers": [["accept", "*/*"]]}, {"url": URL, "headers": {"accept": "*/*"}}),
        ({"headers": [["If-None-Match", '"v1"']]}, CONDITIONAL),
        ({"method": "POST", "body_file": "in/file", "headers": [["Content-Type", "text/plain"]]}, POST),
        ({"method": "GET"}, POST),
        ({"method": "HEAD"}, {"url": URL, "method": "HEAD"}),
        ({"more": 1}, None),
    ],
)
def test_a_hop_of_a_worker_is_read(hop: dict[str, Any], fetch: dict[str, Any] | None) -> None:
    """Unknown fields of a newer worker are ignored."""
    assert parse_entry(hopped(hop, fetch)).hops == 1


def test_the_url_of_a_hop_is_read_in_canonical_form() -> None:
    """Its lane is that of its host, in any spelling."""
    entry = parse_entry(hopped({"url": "HTTPS://B.example:443"}))

    assert ("https://b.example/", "b.example") == (entry.url, lane_of_url(entry.url))


@pytest.mark.parametrize(
    "fields",
    [
        *(
            {name: value}
            for name in ("attempts", "throttles", "interruptions", "crashes", "doubts")
            for value in (-10, 2**53)
        ),
        {"hops": 1},
        {"hop": {"method": "GET", "url": AWAY}},
        {"hop": {"method": "GET", "url": AWAY}, "hops": -1},
        {"hop": {"method": "GET", "url": AWAY}, "hops": MAX_HOPS + 1},
        {"retry_of": "../x"},
        {"retry_of": ID + "\n"},
        *(
            {"part": {**PART, **change}}
            for change in (
                {"token": -1},
                {"token": 2**63},
                {"offset_bytes": 0},
                {"offset_bytes": 10**18},
                {"total_bytes": -1},
                {"total_bytes": 4},
                {"of": "../../x"},
                {"of": ""},
                {"etag": None},
                {"etag": 'W/"v1"'},
                {"etag": "*"},
                {"etag": '"a", "b"'},
                {"etag": '"\r\nX: y"'},
                {"etag": f'"{"x" * MAX_VALIDATOR_CHARS}"'},
                {"last_modified": "Mon, 01 Jan 2024 00:00:00 GMT"},
                {"etag": None, "last_modified": "x\r\nY: z"},
                {"etag": None, "last_modified": ""},
            )
        ),
    ],
)
def test_an_impossible_ledger_or_note_is_refused(fields: dict[str, Any]) -> None:
    """Negative counters would allow attempts beyond the policy. A note is part of a file name."""
    with pytest.raises(BadEntryError):
        parse_entry(element(**fields))


def test_an_entry_may_be_as_large_as_a_fetch_and_its_hop() -> None:
    """Larger entries are refused, and no entry grows beyond that when it is written again."""
    largest = {**POST, "body_file": None, "body": "\0" * (MAX_FETCH_BYTES // 6 - 2000), "headers": {}}
    value = '"' * (MAX_HEADER_BYTES - 100)
    fetch = Fetch(**{**largest, "body": largest["body"][:-MAX_HEADER_BYTES], "headers": {"X": value}})
    hop = Hop("POST", f"https://b.example/{'x' * 8000}", (("X", value),), fetch.body)
    entry = Entry(id=ID, deadline_ms=1, fetch=fetch, hop=hop, hops=1)
    assert parse_entry(serialize_entry(entry)) == entry

    for beyond in (
        b"x" * (MAX_ENTRY_BYTES + 1),
        HEAD + b'{"fetch":{"url":"http://a/"}' + b" " * MAX_ENTRY_BYTES + b"}",
        element({"url": URL, "meta": "x" * MAX_FETCH_BYTES}),
        HEAD + b'{"fetch":{"url":"http://a/","meta":[' + b"1e9," * (MAX_FETCH_BYTES // 5) + b"1]}}",
    ):
        with pytest.raises(TooLargeEntryError):
            parse_entry(beyond)


@pytest.mark.parametrize(
    ("serialized", "its", "others"),
    [
        (element(), {"a.example"}, {"b.example", "a.example:443", "x.a.example", "", "A\r\n"}),
        (hopped({}), {"a.example", "b.example"}, {"c.example", ""}),
        (hopped({}, hops=2), {"a.example", "b.example", "c.example"}, set()),
        (element({"url": "http://[2001:db8::1]:8/"}), {"2001:db8::1", "2001:DB8:0::1"}, {"2001:db8::2"}),
        (element(v=3), {"a.example"}, {"b.example"}),
        (element(v=3, hop={"url": AWAY}, hops=1, more=1), {"a.example", "b.example"}, {"c.example"}),
        (element(v=3, hops=1), {"a.example", "c.example"}, set()),
        (element(v=3, hop={"to": AWAY}, hops=1), {"a.example", "c.example"}, set()),
        (element({"url": "ftp://x/", "colour": 1}, v=3), {"a.example", "c.example"}, set()),
    ],
)
def test_an_entry_waits_in_the_lane_of_its_host_or_of_the_host_that_redirected_it(
    serialized: bytes, its: set[str], others: set[str]
) -> None:
    """After several redirects the entry does not name that host: it moves before its next request."""
    entry: Entry | NewerEntryError
    try:
        entry = parse_entry(serialized)
    except NewerEntryError as newer:
        entry = newer

    assert {lane for lane in its | others if entry.may_wait_in(lane)} == its


@pytest.mark.parametrize(
    "body",
    [
        f'{{"fetch":{{"url":"http://a/","{"x" * 9999}":1}}}}',
        f'{{"fetch":{{"url":"http://a/","method":"{"x" * 9999}"}}}}',
        f'{{"fetch":{{"url":"http://a/"}},"last":"{"x" * 9999}"}}',
        f'{{"v":{"9" * 4000}}}',
    ],
)
def test_a_refusal_is_short_for_any_quoted_text(body: str) -> None:
    """It goes to the log and the dead letters."""
    with pytest.raises(BadEntryError) as raised:
        parse_entry(HEAD + body.encode())

    assert len(str(raised.value)) <= MAX_REFUSAL_CHARS
    with pytest.raises(InvalidFetchError, match=r"^method: 'xx") as refused:
        Fetch(url=URL, method="x" * 9999)
    assert len(str(refused.value)) == MAX_REFUSAL_CHARS


def test_the_last_of_two_equal_keys_counts_for_every_reader() -> None:
    """It is checked like any other, and written once."""
    twice = HEAD + b'{"fetch":{"url":"http://a/"},"fetch":{"url":"http://b/"},"attempts":1,"attempts":2}'
    entry = parse_entry(twice)

    assert ("http://b/", 2) == (entry.url, entry.attempts)
    assert serialize_entry(entry).count(b"fetch") == 1
    with pytest.raises(BadEntryError):
        parse_entry(HEAD + b'{"fetch":{"url":"http://a/"},"fetch":{"url":"file:///etc/passwd"}}')


def test_the_url_of_a_newer_entry_is_canonical_or_empty() -> None:
    """The URL becomes part of a result."""
    for url, read in (("HTTP://A.example", "http://a.example/"), ("http://u:p@a/", ""), ("javascript:x", "")):
        with pytest.raises(NewerEntryError) as raised:
            parse_entry(element({"url": url}, v=3))
        assert read == raised.value.url


def test_a_partial_note_of_a_worker_is_read() -> None:
    """The note has either validator, with or without a length."""
    for change in ({}, {"total_bytes": 5}, {"etag": None, "last_modified": "Mon, 01 Jan 2024 00:00:00 GMT"}):
        note = msgspec.convert({**PART, **change}, PartialNote)
        entry = Entry(id=ID, deadline_ms=1, fetch=Fetch(url=URL), part=note)
        assert parse_entry(serialize_entry(entry)) == entry


def test_the_head_is_not_part_of_the_json() -> None:
    """The ID and the deadline are fields of the head alone."""
    entry = parse_entry(element(id="x", deadline_ms=-1))

    assert (ID, 1767312000000, HEAD_CHARS) == (entry.id, entry.deadline_ms, len(HEAD))


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
OTHER_THAN_JSON = st.recursive(
    JSON
    | st.sampled_from(
        [b"x", {1, 2}, datetime(2024, 1, 1, tzinfo=UTC), Decimal("1.10"), Reason.DNS, UUID(int=1)]
    )
    | JSON.map(lambda value: msgspec.Raw(json.dumps(value, indent=1).encode())),
    lambda inner: (
        st.tuples(inner, inner)
        | st.dictionaries(st.integers() | st.text(max_size=3) | st.sampled_from(Reason), inner, max_size=3)
    ),
    max_leaves=8,
)
FIELDS = st.fixed_dictionaries(
    {"url": st.sampled_from(["http://a", "HTTPS://B.example:443/é?x", "http://[::1]:80/./x"])},
    optional={
        "method": st.sampled_from(["get", "POST"]),
        "headers": st.dictionaries(st.sampled_from(["X", "accept"]), st.just("é".encode().hex()), max_size=2),
        "priority": st.sampled_from(["high", *Priority]),
        "deadline_s": st.integers(1, 600_000) | st.floats(0.001, 600_000),
        "sha256": st.just("AB" * 32),
        "max_bytes": st.integers(1, 2**50),
        "segments": st.integers(1, 16),
        "key": st.just("k"),
        "decode": st.booleans(),
        "meta": JSON | OTHER_THAN_JSON,
    },
)


@given(FIELDS)
def test_a_fetch_has_one_json_form(fields: dict[str, Any]) -> None:
    """The form stays the same when a producer makes it and a worker reads it twice."""
    try:
        written = encode(Fetch(**fields))
    except (InvalidFetchError, UnicodeEncodeError):
        return
    read = decode_fetch(written)

    assert written == encode(read) == encode(decode_fetch(encode(read)))
    element_of_it = serialize_new_entry(ID, Fetch(**fields))
    assert written == encode(parse_entry(element_of_it).fetch)
    assert serialize_entry(parse_entry(element_of_it)) == element_of_it


@pytest.mark.parametrize(
    "fields",
    [
        {"max_bytes": 5.0},
        {"revalidate": 1},
        {"decode": None},
        {"lines": 0},
        {"retry_unsafe": "yes"},
        {"headers": None},
        {"meta": object()},
        {"meta": [msgspec.Raw(b"junk")]},
        {"meta": msgspec.Raw(b"[" * 101 + b"]" * 101)},
        {"meta": msgspec.Raw(b"1e400")},
        {"meta": 10**5000},
    ],
)
def test_an_unreadable_element_is_not_enqueued(fields: dict[str, Any]) -> None:
    """The producer gets the error, and no worker finds an unreadable element."""
    with pytest.raises(InvalidFetchError, match=next(iter(fields))):
        serialize_new_entry(ID, Fetch(url=URL, **fields))


@given(FIELDS)
def test_the_record_of_a_fetch_is_the_same_for_every_reader(fields: dict[str, Any]) -> None:
    """The producer, a worker that reads the entry, the next that reads it again, and an older one."""
    try:
        fetch = Fetch(**fields)
        new = serialize_new_entry(ID, fetch)
    except (InvalidFetchError, UnicodeEncodeError):
        return
    entry = parse_entry(with_deadline(new, 10**12))
    record = record_of(encode(fetch), entry.deadline_ms)
    assert record_of(encode(entry.fetch), entry.deadline_ms) == record
    assert 0 < record < 2**48
    again = serialize_entry(msgspec.structs.replace(entry, attempts=3, last=Reason.DNS))
    assert encode(parse_entry(again).fetch) == encode(fetch)
    newer = re.sub(rb'\{("v":[0-9],)?"fetch"', b'{"v":3,"more":1,"fetch"', again, count=1)
    with pytest.raises(NewerEntryError) as raised:
        parse_entry(newer)
    assert raised.value.record == record


@pytest.mark.parametrize("fields", [{}, {"attempts": 2}, {"v": 1}], ids=["new", "retried", "with-version"])
@pytest.mark.parametrize("spaces", [False, True])
def test_an_entry_is_recorded_if_the_record_has_its_fetch_and_deadline(
    fields: dict[str, Any],
    spaces: bool,  # noqa: FBT001 a parameter of the test
) -> None:
    """The spelling of its JSON does not count: another program may have written it."""
    data = {"fetch": {"url": URL, "meta": {"a": 1}}, **fields}
    serialized = HEAD + (json.dumps(data).encode() + b" " if spaces else msgspec.json.encode(data))
    entry = parse_entry(serialized)
    record = record_of(encode(entry.fetch), entry.deadline_ms)

    assert entry.is_recorded(record, serialized)
    assert not entry.is_recorded(record + 1, serialized)
    assert not msgspec.structs.replace(entry, deadline_ms=1).is_recorded(record, serialized)
