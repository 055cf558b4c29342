"""The contract: valid fetches, results, and the names of faults."""

import json
from collections.abc import Mapping
from typing import Any

import h11
import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fetchfleet.jobs.contract.checks.field_checks import MAX_BODY_BYTES
from fetchfleet.jobs.contract.fetch import (
    DEFAULT_DEADLINE_S,
    MAX_DEADLINE_S,
    MAX_FETCH_BYTES,
    Fetch,
    Priority,
    as_fetch,
    decode_fetch,
    encode,
)
from fetchfleet.jobs.contract.result import Outcome, Reason, Result, Timings, decode_result
from fetchfleet.jobs.errors import InvalidFetchError

URL = "http://example.com/"
POST = {"url": URL, "method": "POST"}

ACCEPTED: list[dict[str, Any]] = [
    {"url": URL},
    *({"url": URL, "method": m} for m in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")),
    {"url": URL, "headers": {}},
    {"url": URL, "headers": {"X-Empty": "", "!#$%&'*+.^_`|~0aZ-": "a\tb  c~!"}},
    {"url": URL, "headers": {"Proxy": "x", "Hosts": "x", "Accept-Encoding": "gzip"}},
    {"url": URL, "headers": {"X": "x" * (16 * 1024 - 5)}},
    {**POST, "body": ""},
    {**POST, "body": "é\x00\n€"},
    {**POST, "body": "x" * MAX_BODY_BYTES},
    {**POST, "body_base64": ""},
    {**POST, "body_base64": "AP/+/w=="},
    {**POST, "body_base64": "AAAA" * (MAX_BODY_BYTES // 3)},
    {**POST, "body_file": "a"},
    {**POST, "body_file": "a/b.c/..d/ f /-"},
    *({"url": URL, "method": m, "body_file": "a"} for m in ("PUT", "PATCH", "DELETE")),
    {"url": URL, "etag": 'W/"x"', "last_modified": "Sun, 06 Nov 1994 08:49:37 GMT"},
    {"url": URL, "method": "HEAD", "etag": '""'},
    {"url": URL, "revalidate": True},
    {"url": URL, "dest": "a"},
    {"url": URL, "dest": "a/b.c/..d/e../...x/ f /-"},
    {"url": URL, "dest": "é" * 127},
    {"url": URL, "dest": "a" * 255},
    {"url": URL, "dest": "/".join(["a" * 127] * 8)},
    {"url": URL, "dest": "a.fetchfleet"},
    {"url": URL, "sha256": "0" * 64},
    {"url": URL, "decode": True, "lines": True},
    {"url": URL, "decode": False, "headers": {"Range": "bytes=0-1"}},
    {"url": URL, "decode": True, "headers": {"Accept-Encoding": "br", "Ranges": "x"}},
    {"url": URL, "max_bytes": 1},
    {"url": URL, "max_bytes": 1 << 60},
    *({"url": URL, "segments": n} for n in (1, 16)),
    *({"url": URL, "priority": p} for p in ("high", "normal", "low")),
    {"url": URL, "deadline_s": 0.001},
    {"url": URL, "deadline_s": MAX_DEADLINE_S},
    {"url": URL, "meta": {"any": [1, None, "é"]}},
    *({"url": URL, "key": k} for k in ("a", " ", "a:b", "*", "é", "x" * 200, "é" * 100, "\u2028")),
]

REFUSED: list[tuple[str, dict[str, Any]]] = [
    ("url", {}),
    ("url", {"url": None}),
    ("url", {"url": 5}),
    *(
        ("url", {"url": url})
        for url in ("", "example.com", "ftp://a/", "http://u:p@a/", "http://a/\r\n", "http://127.1/")
    ),
    ("uri", {"url": URL, "uri": URL}),
    ("Method", {"url": URL, "Method": "GET"}),
    *(("method", {"url": URL, "method": m}) for m in ("", "TRACE", "CONNECT", "GET ", "G\r\nET", 5, None)),
    *(
        ("headers", {"url": URL, "headers": {"X": value}})
        for value in (
            "a\r\nb",
            "a\rb",
            "a\nb",
            "a\x00b",
            "a\x7f",
            "a\x0b",
            "é",
            "€",
            "\ud800",
            " a",
            "a ",
            "\t",
        )
    ),
    *(
        ("headers", {"url": URL, "headers": {name: "x"}})
        for name in ("", "a b", "a:", "a\r\n", "a\x00", "é", "(", "a/b", " a", "a\n")
    ),
    *(
        ("headers", {"url": URL, "headers": {name: "x"}})
        for name in ("Host", "HOST", "content-length", "Transfer-Encoding", "Connection", "Keep-Alive", "TE")
    ),
    *(
        ("headers", {"url": URL, "headers": {name: "x"}})
        for name in ("Upgrade", "Trailer", "Expect", "HTTP2-Settings", "Proxy-Authorization", "proxy-x")
    ),
    ("headers", {"url": URL, "headers": {"X": 5}}),
    ("headers", {"url": URL, "headers": ["X: y"]}),
    ("headers", {"url": URL, "headers": {"X": "x" * (16 * 1024 - 4)}}),
    ("headers", {"url": URL, "headers": {f"X{i}": "x" * 1000 for i in range(17)}}),
    *(("body", {"url": URL, "method": m, "body": ""}) for m in ("GET", "HEAD", "OPTIONS", "get")),
    ("body", {**POST, "body": 5}),
    ("body", {**POST, "body": "\ud800"}),
    ("body", {**POST, "body": "x" * (MAX_BODY_BYTES + 1)}),
    ("body", {**POST, "body": "é" * (MAX_BODY_BYTES // 2 + 1)}),
    *(
        (name, {"url": URL, "method": m, name: "YQ=="})
        for name in ("body_base64", "body_file")
        for m in ("GET", "HEAD", "OPTIONS")
    ),
    *(
        ("body_base64", {**POST, "body_base64": text})
        for text in ("YQ", "Y", "Y Q=", "-_-_", "é", "YQ==\n", 5)
    ),
    ("body_base64", {**POST, "body_base64": "AAAA" * (MAX_BODY_BYTES // 3 + 1)}),
    *(
        ("body_file", {**POST, "body_file": path})
        for path in (
            "",
            "/a",
            "../a",
            "a/../b",
            "a//b",
            "./a",
            "a/",
            "a\\b",
            "a\x00",
            ".fetchfleet/x",
            "a" * 256,
            5,
        )
    ),
    ("body_base64", {**POST, "body": "", "body_base64": ""}),
    ("body_file", {**POST, "body": "", "body_file": "a"}),
    ("body_file", {**POST, "body_base64": "", "body_file": "a"}),
    *(
        ("dest", {"url": URL, "dest": dest})
        for dest in (
            *("", "/", "/etc/passwd", "//a", ".", "./a", "a/.", "a/./b", "a//b", "a/"),
            *("..", "../a", "a/..", "a/../b", "a/../../b"),
            *("a\\b", "..\\a", "C:\\a", "a\x00", "a\nb", "a\x7f", "\ud800", "a\udc80"),
            *("a\x9b31m", "a\u202egpj", "a\u2028b", "\ufeffa", "a\u200bb", "a\u2066b", "a\U000e0041"),
            *(".fetchfleet", ".fetchfleet/x", "a/.fetchfleet-x", "a/.fetchfleet.tmp/b"),
            *("a" * 256, "é" * 128, "/".join(["a" * 127] * 8) + "/a"),
        )
    ),
    ("dest", {"url": URL, "dest": 5}),
    *(
        ("sha256", {"url": URL, "sha256": s})
        for s in ("", "0" * 63, "0" * 65, "g" * 64, "\u0660" * 64, "0" * 64 + "\n")
    ),
    *(("decode", {"url": URL, "decode": d}) for d in (1, "true", None)),
    *(
        ("decode", {"url": URL, "decode": True, "headers": {name: "bytes=0-1"}})
        for name in ("Range", "rANGE")
    ),
    *(("lines", {"url": URL, "lines": n}) for n in (1, "true", None)),
    *(("max_bytes", {"url": URL, "max_bytes": n}) for n in (0, -1, "5", 1.5, True)),
    *(("segments", {"url": URL, "segments": n}) for n in (0, 17, "4", 1.5, True)),
    *(("deadline_s", {"url": URL, "deadline_s": s}) for s in (0, -1, MAX_DEADLINE_S + 0.1, 1e308, "5")),
    *(("priority", {"url": URL, "priority": p}) for p in ("urgent", "", "HIGH", 1, None)),
    *(
        ("key", {"url": URL, "key": k})
        for k in ("", "x" * 201, "é" * 101, "a\x00", "\n", "a\x1f", "\x7f", "\ud800", "a\udfff", 5)
    ),
]

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def refusal_of(fields: Mapping[str, Any]) -> str:
    with pytest.raises(InvalidFetchError) as caught:
        as_fetch(fields)
    return str(caught.value)


@pytest.mark.parametrize("fields", ACCEPTED)
def test_good_fields_make_a_fetch(fields: dict[str, Any]) -> None:
    """The longest, the shortest and the oddest valid values, as fields and as JSON."""
    made = as_fetch(fields)

    assert fields == {name: getattr(made, name) for name in fields}
    assert len(encode(made)) > MAX_FETCH_BYTES or decode_fetch(encode(made)) == made


@pytest.mark.parametrize(("field", "fields"), REFUSED)
def test_a_bad_field_is_refused_by_name(field: str, fields: dict[str, Any]) -> None:
    """The message names the field of a dict, and the same fields as JSON are refused."""
    assert field in refusal_of(fields)
    with pytest.raises(InvalidFetchError):
        decode_fetch(json.dumps(fields))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("url", "ftp://a/"),
        ("method", "TRACE"),
        ("headers", {"Host": "x"}),
        ("body", "x"),
        ("dest", "../x"),
        ("sha256", "x"),
        ("max_bytes", 0),
        ("segments", 0),
        ("priority", "urgent"),
        ("deadline_s", float("nan")),
        ("deadline_s", float("inf")),
    ],
)
def test_a_fetch_made_in_python_is_checked_like_one_on_the_wire(field: str, value: Any) -> None:
    """Every Fetch object is valid."""
    with pytest.raises(InvalidFetchError) as caught:
        Fetch(**{"url": URL, field: value})

    assert str(caught.value).startswith(f"{field}:")


def test_a_fetch_keeps_url_method_digest_and_priority_in_one_form() -> None:
    """Two spellings of a request are one request."""
    made = Fetch(url="HTTP://Example.com:80", method="post", sha256="A" * 64, priority="high")  # type: ignore[arg-type]

    assert Fetch(url=URL, method="POST", sha256="a" * 64, priority=Priority.HIGH) == made
    assert made.priority is Priority.HIGH


@pytest.mark.parametrize(
    ("deadline_s", "deadline_ms"), [(None, int(DEFAULT_DEADLINE_S * 1000)), (1.5, 1500), (0.0005, 0)]
)
def test_a_deadline_is_24_hours_unless_given(deadline_s: float | None, deadline_ms: int) -> None:
    """The deadline is in ms."""
    assert deadline_ms == Fetch(url=URL, deadline_s=deadline_s).lifetime_ms


@pytest.mark.parametrize("item", [URL, {"url": URL}, Fetch(url=URL)])
def test_a_fetch_is_made_from_a_url_a_dict_or_a_fetch(item: Any) -> None:
    """Each way to enqueue accepts all of them."""
    assert Fetch(url=URL) == as_fetch(item)


def test_a_fetch_may_have_2_mib_of_json_and_no_more() -> None:
    """Bytes are counted, not characters."""
    least = len(encode(Fetch(url=URL, meta="")))  # an empty text is still a meta
    longest = encode(Fetch(url=URL, meta="x" * (MAX_FETCH_BYTES - least)))

    assert URL == decode_fetch(longest).url
    for line in (
        longest + b" ",
        longest.decode() + " ",
        '{"url":"http://a/é"}' + " " * (MAX_FETCH_BYTES - 20),
    ):
        with pytest.raises(InvalidFetchError, match=f"the limit is {MAX_FETCH_BYTES}"):
            decode_fetch(line)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"http://a/"',
        b"\xff",
        b'{"url":"http://a/\xff"}',
        b'{"url":"http://a/"}x',
        '{"url":"http://a/\udc80"}',
        '{"url":"http://a/","meta":' + "[" * 100_000 + "]" * 100_000 + "}",
    ],
)
def test_json_that_is_not_a_fetch_is_refused(line: bytes | str) -> None:
    """Truncated, of another kind, not UTF-8, or nested too deeply."""
    with pytest.raises(InvalidFetchError):
        decode_fetch(line)


def test_a_result_is_read_back_unchanged() -> None:
    """Every field is compared."""
    result = Result(
        id="0123456789abcdef-00000000",
        url=URL,
        outcome=Outcome.FAILED,
        worker="w",
        final_url=URL,
        reason=Reason.HTTP_STATUS,
        status=500,
        bytes=1,
        sha256="a" * 64,
        path="a",
        attempts=1,
        throttles=2,
        interruptions=3,
        timings=Timings(queue_ms=1, connect_ms=2, ttfb_ms=3, total_ms=4),
        meta={"a": [1]},
    )

    assert result == decode_result(encode(result))


def test_a_result_on_the_wire_has_every_field() -> None:
    """Null included: readers need no knowledge of the defaults."""
    result = Result(id="i", url=URL, outcome=Outcome.STORED, worker="w")

    assert list(Result.__struct_fields__) == list(json.loads(encode(result)))


@pytest.mark.parametrize(("kind", "count"), [(Outcome, 4), (Priority, 3), (Reason, len(Reason))])
def test_an_unknown_outcome_priority_or_reason_is_refused(kind: type[Outcome], count: int) -> None:
    """The lists are closed, and the value on the wire is the name in lower case."""
    assert count == len(kind)
    assert [word.name.lower() for word in kind] == [word.value for word in kind]
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert("other", kind)


@given(st.dictionaries(st.sampled_from(Fetch.__struct_fields__), JSON), st.sampled_from([URL, "x", ""]))
@example({"headers": {"\r\n": ""}}, URL)
@example({"priority": "low"}, URL)
@example({"meta": float("inf")}, URL)
def test_arbitrary_fields_are_a_fetch_or_an_invalid_fetch_error(fields: dict[str, Any], url: str) -> None:
    """A valid fetch is read back from its own JSON unchanged."""
    try:
        made = as_fetch({**fields, "url": url})
    except InvalidFetchError:
        return

    assert made == decode_fetch(encode(made))


@given(st.binary() | st.text() | JSON.map(json.dumps))
def test_an_arbitrary_line_is_a_fetch_or_an_invalid_fetch_error(line: bytes | str) -> None:
    """No input of a producer raises another error."""
    try:
        assert isinstance(decode_fetch(line), Fetch)
    except InvalidFetchError:
        return


@given(
    st.text() | st.text("aZ0-_.:~ \r\n", min_size=1, max_size=4),
    st.text() | st.text("a :~\t\r\n\0é", max_size=4),
)
def test_no_accepted_header_can_end_its_line(name: str, value: str) -> None:
    """An accepted header is one field, and h11 accepts it."""
    try:
        made = Fetch(url=URL, headers={name: value})
    except InvalidFetchError:
        return

    sent = h11.Request(method="GET", target="/", headers=[("Host", "a"), *made.headers.items()])
    assert (name.lower().encode(), value.encode()) in sent.headers
    assert not set("\r\n\0") & set(name + value)


@given(st.lists(st.sampled_from(["..", ".", "", "a", "b..", ".fetchfleet", "\\", "c"]), max_size=6))
def test_no_accepted_dest_leaves_the_out_folder(parts: list[str]) -> None:
    """Resolved by any rules, it is below the folder."""
    dest = "/".join(parts)
    try:
        made = Fetch(url=URL, dest=dest)
    except InvalidFetchError:
        return

    assert dest == made.dest
    assert not {"..", ".", "", ".fetchfleet"} & set(parts)
    assert "\\" not in dest


@given(st.text() | st.text("a \x00\x1f\x7f\ud800é", max_size=4) | st.text("é", min_size=95, max_size=105))
def test_an_accepted_key_is_short_text_that_names_one_redis_key(key: str) -> None:
    """It is kept unchanged, and can be written and read again."""
    try:
        made = Fetch(url=URL, key=key)
    except InvalidFetchError:
        return

    assert key == made.key
    assert 1 <= len(key.encode()) <= 200
    assert not {chr(code) for code in (*range(32), 127)} & set(key)
    assert made == decode_fetch(encode(made))


@given(st.none() | st.floats(0.001, MAX_DEADLINE_S))
def test_a_fetch_without_a_deadline_has_a_day(deadline_s: float | None) -> None:
    """The deadline is rounded down to whole ms."""
    made = Fetch(url=URL, deadline_s=deadline_s)

    assert int((deadline_s or 24 * 3600) * 1000) == made.lifetime_ms


@pytest.mark.parametrize(
    ("of_policy", "of_fetch", "limit"), [(0, None, 0), (0, 5, 5), (5, None, 5), (5, 4, 4), (5, 6, 5)]
)
def test_the_smaller_size_limit_applies(of_policy: int, of_fetch: int | None, limit: int) -> None:
    """0 in the policy and None in the fetch mean no limit."""
    assert Fetch(url="http://a.example/", max_bytes=of_fetch).size_limit(of_policy) == limit
