"""Odd field lines of a head: read if unambiguous, refused if they could frame the body differently."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fetchfleet.worker.errors import RemoteProtocolError
from fetchfleet.worker.http.http1.lenient import usable_fields
from fetchfleet.worker.http.http1.messages import Head, body_length, read_head

OK = b"HTTP/1.1 200 OK\r\n"

READ = {
    "a space before the colon": (b"X-A : b", [(b"X-A", b"b")]),
    "a tab before the colon": (b"Location\t: /b", [(b"Location", b"/b")]),
    "a space in a name": (b"X A: b\r\nY: c", [(b"Y", b"c")]),
    "no name": (b": b\r\nY: c", [(b"Y", b"c")]),
    "no colon": (b"odd line\r\nY: c", [(b"Y", b"c")]),
    "a name without a colon": (b"Location\r\nY: c", [(b"Y", b"c")]),
    "a name beyond ASCII": (b"X-\xe9: b\r\nY: c", [(b"Y", b"c")]),
    "a name in brackets": (b"(X): b\r\nY: c", [(b"Y", b"c")]),
    "a fold": (b"X: a\r\n b\r\n\t c\r\nY: d", [(b"X", b"a b c"), (b"Y", b"d")]),
    "a fold after line feeds": (b"X: a \n  b", [(b"X", b"a b")]),
    "an empty fold": (b"X: a\r\n \r\nY: c", [(b"X", b"a"), (b"Y", b"c")]),
    "a fold before the value": (b"X:\r\n a", [(b"X", b"a")]),
    "a fold of an odd line": (b"X A: b\r\n Y: c\r\nZ: d", [(b"Z", b"d")]),
    "a fold of nothing": (b" X: b\r\nY: c", [(b"Y", b"c")]),
    "a carriage return in a value": (b"X: a\rb\r", [(b"X", b"a b")]),
    "other controls in a value": (b"X: a\x0bb\x0c", [(b"X", b"a b")]),
    "chunked twice": (
        b"Transfer-Encoding: chunked\r\ntransfer-encoding: Chunked",
        [(b"Transfer-Encoding", b"chunked")],
    ),
    "chunked twice in a list": (b"Transfer-Encoding: chunked, chunked", [(b"Transfer-Encoding", b"chunked")]),
    "chunked in a list": (b"Transfer-Encoding: ,chunked,", [(b"Transfer-Encoding", b"chunked")]),
    "chunked over nothing": (b"Transfer-Encoding: identity, chunked", [(b"Transfer-Encoding", b"chunked")]),
    "no transfer coding": (b"Transfer-Encoding: identity\r\nY: c", [(b"Y", b"c")]),
}

REFUSED = {
    "a space before the colon of a length": b"Content-Length : 2",
    "a space before the colon of a coding": b"Transfer-Encoding : chunked",
    "a space in the name of a length": b"Content -Length: 2",
    "a space before the name of a length": b"X: a\r\nContent-Length\t: 2",
    "a length in a line of nothing": b" Content-Length: 2",
    "a length without a colon": b"Content-Length 2",
    "a coding without a colon": b"Transfer-Encoding chunked",
    "a length without a value": b"Content-Length",
    "a quoted length": b'"Content-Length": 2',
    "a null in the name of a coding": b"Transfer-\0Encoding: chunked",
    "a folded length": b"Content-Length:\r\n 2",
    "a length and a fold": b"Content-Length: 2\r\n 3",
    "a folded coding": b"Transfer-Encoding:\r\n chunked",
    "a null in a value": b"X: a\0b",
    "a null in a name": b"X\0: b",
    "a null in a length": b"Content-Length: 2\0",
    "a carriage return in a coding": b"Transfer-Encoding: chunked\r, gzip",
}

AS_THEY_ARE = {
    "nothing": b"",
    "fields": b'ETag: "a"\r\nX-Caf: caf\xe9\r\nContent-Length: 2\r\n',
    "chunked": b"A: b\r\ntransfer-encoding:chunked\r\nC: d\r\n",
    "a coding of another kind": b"Transfer-Encoding: gzip, chunked\r\n",
    "two framings": b"Content-Length: 2\r\nTransfer-Encoding: identity\r\n",
    "two lengths": b"Content-Length: 2\r\nContent-Length: 3\r\n",
    "a name that begins as a length does": b"Content-Length-Hint: 2\r\n",
}


def read(head: bytes) -> Head:
    """Read a complete header section."""
    found = read_head(head + b"body")
    assert found is not None
    assert found[1] == len(head)
    return found[0]


@pytest.mark.parametrize(("lines", "fields"), READ.values(), ids=READ.keys())
def test_an_odd_line_that_is_unambiguous_is_read(lines: bytes, fields: list[tuple[bytes, bytes]]) -> None:
    """The reader follows RFC 9112 or drops a field that has no valid name."""
    head = read(OK + lines + b"\r\n\r\n")

    assert (head.fields, head.lenient) == (fields, True)


@pytest.mark.parametrize("lines", REFUSED.values(), ids=REFUSED.keys())
def test_an_odd_line_that_may_frame_the_body_is_refused(lines: bytes) -> None:
    """Another reader of the connection could find another length."""
    with pytest.raises(RemoteProtocolError):
        read_head(OK + lines + b"\r\nX: y\r\n\r\n")


@pytest.mark.parametrize("lines", AS_THEY_ARE.values(), ids=AS_THEY_ARE.keys())
@pytest.mark.parametrize("end", [b"\r\n", b"\n"])
def test_other_heads_are_left_unchanged(lines: bytes, end: bytes) -> None:
    """Their connection stays in use. Contradictory framings are refused with the body."""
    head = read((OK + lines + b"\r\n").replace(b"\r\n", end))

    sent = [tuple(line.split(b":", 1)) for line in lines.splitlines()]
    assert head.fields == [(name, value.strip()) for name, value in sent]
    assert not head.lenient


def test_whitespace_in_a_status_line_separates_its_parts() -> None:
    """The reader accepts any amount of it (RFC 9112 §4)."""
    head = read(b"HTTP/1.1 \t200   Very  OK\v\r\n\r\n")
    assert (head.status, head.phrase, head.lenient) == (200, b"Very  OK ", True)
    head = read(b"HTTP/1.1 200 \n\n")
    assert (head.status, head.phrase, head.lenient) == (200, b"", False)


LONG = {
    "spaces": b"X A: b\r\nX: a" + b" " * 250_000 + b"b",
    "folds": b"X: a" + b"\n b" * 80_000,
    "odd lines": b"a b\r\n" * 40_000,
    "carriage returns": b"X: " + b"\r" * 250_000,
    "codings": b"Transfer-Encoding: " + b"chunked," * 30_000,
    "fields": b"X A: b\r\n" + b"a:b\r\n" * 40_000,
}


@pytest.mark.parametrize("lines", LONG.values(), ids=LONG.keys())
def test_a_long_head_is_read_in_linear_time(lines: bytes) -> None:
    """A quadratic rule would take minutes for the longest head."""
    began_s = time.process_time()

    assert read(OK + lines.removesuffix(b"\r\n") + b"\r\n\r\n").lenient

    assert time.process_time() - began_s < 3


LONG_AND_PLAIN = {
    "spaces": b"X:" + b" " * 250_000,
    "spaces behind a value": b"X: a" + b" " * 250_000,
    "spaces between": b"X: a" + b" " * 250_000 + b"b",
    "words": b"X:" + b" a" * 125_000 + b" ",
    "fields": b"a:b\r\n" * 40_000 + b"X: y",
}


@pytest.mark.parametrize("lines", LONG_AND_PLAIN.values(), ids=LONG_AND_PLAIN.keys())
def test_a_long_plain_head_takes_time_in_proportion(lines: bytes) -> None:
    """Whitespace around a value is not part of it, however much there is."""
    began_s = time.process_time()

    head = read(OK + lines + b"\r\n\r\n")

    assert time.process_time() - began_s < 3
    assert not head.lenient
    assert all(value == value.strip() for _, value in head.fields)


def length_of(head: Head) -> int | None:
    """Return the length of the body, None if it is ambiguous."""
    try:
        return body_length(head.by_name)
    except RemoteProtocolError:
        return None


PIECES = st.sampled_from(
    [
        b"X",
        b"Content-Length",
        b"Transfer-Encoding",
        b"chunked",
        b"2",
        b":",
        b" ",
        b"\t",
        b"\r\n",
        b"\n",
        b"\r",
        b"\0",
        b",",
    ]
)


@given(st.lists(st.one_of(PIECES, st.binary(max_size=3)), max_size=20).map(b"".join))
def test_an_accepted_head_reads_the_same_in_strict_form(lines: bytes) -> None:
    """It holds for arbitrary heads."""
    try:
        found = read_head(OK + lines + b"\r\n\r\n")
    except RemoteProtocolError:
        return

    assert found is not None
    strict = OK + b"".join(b"%b: %b\r\n" % field for field in found[0].fields) + b"\r\n"
    again = read_head(strict)
    assert again is not None
    assert again[0].fields == found[0].fields
    assert length_of(again[0]) == length_of(found[0])


@given(
    st.lists(
        st.tuples(
            st.sampled_from([b"A", b"Content-Length", b"Transfer-Encoding", b"A "]), st.binary(max_size=5)
        ),
        max_size=5,
    )
)
def test_usable_fields_are_usable(fields: list[tuple[bytes, bytes]]) -> None:
    """A second pass changes none of them, and the first pass adds none."""
    try:
        usable = usable_fields(fields)
    except RemoteProtocolError:
        return

    assert usable_fields(usable) == usable
    assert len(usable) <= len(fields)
