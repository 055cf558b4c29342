"""JSON Lines: split correctly in any chunks, with every record checked."""

import io
import json
from collections.abc import Iterable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fetchfleet.worker.body.json_lines import (
    MAX_NESTING,
    BadLineError,
    CutLineError,
    JsonLinesChecker,
    records_in,
)

MOST_BYTES = 60

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
RECORDS = st.builds(
    lambda value, ascii_: json.dumps(value, ensure_ascii=ascii_).encode("utf-8", "replace"),
    VALUES,
    st.booleans(),
)
LINES = RECORDS | st.sampled_from([b"", b" ", b"\t", b"\r", b"[1, 2]", b' {"a": "\\u00e9"} '])
ENDS = st.sampled_from([b"\n", b"\r\n"])


def count_of(chunks: Iterable[bytes], max_line_bytes: int = 1 << 20) -> int:
    """Return the number of records in the body."""
    records = JsonLinesChecker(max_line_bytes)
    for chunk in chunks:
        records.feed(chunk)
    records.finish()
    return records.count


def bad_line_of(chunks: Iterable[bytes], max_line_bytes: int = 1 << 20) -> int | None:
    """Return the number of the first bad line."""
    try:
        count_of(chunks, max_line_bytes)
    except BadLineError as error:
        return error.line
    return None


def cut(body: bytes, cuts: Iterable[int]) -> list[bytes]:
    """Return the body in pieces, some of them empty."""
    places = [0, *sorted(place % (len(body) + 1) for place in cuts), len(body)]
    return [body[start:end] for start, end in pairwise(places)]


CUTS = st.lists(st.integers(min_value=0), max_size=8)


@given(st.lists(st.tuples(LINES, ENDS)), st.binary(max_size=0) | RECORDS, CUTS)
def test_records_are_counted_in_any_chunks(
    lines: list[tuple[bytes, bytes]], last: bytes, cuts: list[int]
) -> None:
    """Blank lines are not records, CRLF ends a line, and the last line needs no end."""
    body = b"".join(line + end for line, end in lines) + last
    records = [line for line in body.split(b"\n") if line.strip()]

    assert count_of(cut(body, cuts)) == len(records)
    assert len(list(records_in(io.BytesIO(body)))) == len(records)


BAD = [
    b"{",
    b"{'a': 1}",
    b'{"a": 1,}',
    b"[1] [2]",
    b"nul",
    b"NaN",
    b"-Infinity",
    b"01",
    b"+1",
    b'"\xff"',
    b'"\xc3"',
    b'"\xed\xa0\x80"',
    b'"\\x41"',
    b'"\x01"',
    b'"open',
    b"\xef\xbb\xbf{}",
    b"\x00",
    b"\x0b",
    b"# no comment",
    b"[" * 100_000,
    b"[" * 100_000 + b"]" * 100_000,
]


@given(st.lists(LINES, max_size=5), st.sampled_from(range(len(BAD))), st.lists(LINES, max_size=3), CUTS)
def test_the_first_bad_line_is_named(
    before: list[bytes], which: int, after: list[bytes], cuts: list[int]
) -> None:
    """The error has the number of the line in the body, and blank lines count."""
    body = b"\n".join([*before, BAD[which], *after])

    assert bad_line_of(cut(body, cuts)) == len(before) + 1


@pytest.mark.parametrize(
    ("line", "bad"),
    [
        (b"[" * MAX_NESTING + b"]" * MAX_NESTING, None),
        (b"[" * (MAX_NESTING + 1) + b"]" * (MAX_NESTING + 1), 1),
        (b'{"a":[' * 451 + b"]}" * 451, 1),
        (b"[" + b",".join([b"[{}]"] * 2000) + b"]", None),
        (b'["' + b"[" * 2000 + b'", "\\"[{"]', None),
    ],
)
def test_nesting_has_one_limit_on_every_python(line: bytes, bad: int | None) -> None:
    """Brackets in strings do not nest, and neither do adjacent brackets."""
    assert bad_line_of([line]) == bad


@given(st.binary(max_size=60) | RECORDS, CUTS)
def test_a_record_is_any_valid_json(line: bytes, cuts: list[int]) -> None:
    """Compared with the standard library's reader, which alone accepts NaN and half a surrogate pair."""
    line = line.replace(b"\n", b"")
    if not line.strip(b" \t\r"):
        return
    try:
        text = line.decode()
        value = json.loads(text, parse_constant=_refuse)
        json.dumps(value, ensure_ascii=False).encode()
        good = True
    except (ValueError, RecursionError):
        good = False

    assert (bad_line_of(cut(line, cuts)) is None) == good


def _refuse(name: str) -> None:
    raise ValueError(name)


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
@pytest.mark.parametrize("before", [b"", b"\n", b"1\n"])
def test_the_length_of_a_line_is_limited(before: bytes, end: bytes) -> None:
    """The line end does not count, and the chunks make no difference."""
    for extra in (0, 1):
        line = b'"' + b"x" * (MOST_BYTES - 2 + extra) + b'"'
        body = before + line + end
        for size in (1, 7, 1000):
            chunks = [body[at : at + size] for at in range(0, len(body), size)]
            assert bad_line_of(chunks, MOST_BYTES) == (1 + before.count(b"\n") if extra else None)


def test_an_endless_line_is_refused_while_it_arrives() -> None:
    """No more than the longest line is kept."""
    records = JsonLinesChecker(1000)
    records.feed(b"[1]\n" + b"x" * 1000)
    with pytest.raises(BadLineError, match="line 2: is longer than 1000 bytes"):
        records.feed(b"xx")


@pytest.mark.parametrize("last", [b'{"a": ', b'{"a": 1}\n{'])
def test_an_incomplete_last_line_is_bad_only_in_a_complete_body(last: bytes) -> None:
    """Without a marked end, the body counts as truncated."""
    for complete, error in ((True, BadLineError), (False, CutLineError)):
        records = JsonLinesChecker(1000)
        records.feed(last)
        with pytest.raises(error):
            records.finish(complete=complete)


def test_an_empty_body_has_no_records() -> None:
    """It is not bad either."""
    assert count_of([]) == count_of([b""]) == count_of([b"\n\r\n \n"]) == 0


def test_records_are_passed_on_without_surrounding_space() -> None:
    """Each record is one line, and its line end may be of any kind."""
    lines = [b"\n", b' {"a": 1} \r\n', b"\r\n", b"[2]"]

    assert list(records_in(lines)) == [b'{"a": 1}', b"[2]"]
