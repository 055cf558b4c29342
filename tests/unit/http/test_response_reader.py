"""One response, read from the bytes of its connection: head, body and end, or a refusal."""

from collections.abc import Iterable
from typing import NamedTuple

import pytest

from fetchfleet.worker.errors import RemoteProtocolError
from fetchfleet.worker.http.http1.messages import (
    MAX_HEAD_BYTES,
    MAX_INTERIM_BYTES,
    MAX_INTERIM_HEADS,
    ResponseReader,
)
from fetchfleet.worker.http.wire import Header

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


class Read(NamedTuple):
    """A response, as far as it was read."""

    status: int
    fields: list[Header]
    body: bytes
    reusable: bool = True
    lenient: bool = False


def read(*received: bytes, method: str = "GET", ends: bool = False) -> Read:
    """Read a complete response. ends: the connection ends after it."""
    reader, body = ResponseReader(method), b""
    for data in received:
        reader.feed(data)
        body += reader.take()
    if ends:
        reader.end()
    assert reader.head is not None
    assert reader.complete
    return Read(reader.head.status, reader.head.fields, body, reader.reusable, reader.lenient)


def feed(reader: ResponseReader, pieces: Iterable[bytes]) -> None:
    """Feed all pieces to the reader."""
    for piece in pieces:
        reader.feed(piece)


RESPONSES = {
    "a length": (OK + b"Content-Length: 2\r\n\r\nok", Read(200, [(b"Content-Length", b"2")], b"ok")),
    "no phrase": (b"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", Read(200, [(b"Content-Length", b"0")], b"")),
    "whitespace around a value": (
        OK + b"X:  a b \t\r\nContent-Length:2 \r\n\r\nok",
        Read(200, [(b"X", b"a b"), (b"Content-Length", b"2")], b"ok"),
    ),
    "one length twice": (
        OK + b"Content-Length: 2\r\ncontent-length: 2, 2\r\n\r\nok",
        Read(200, [(b"Content-Length", b"2"), (b"content-length", b"2, 2")], b"ok"),
    ),
    "chunks": (
        CHUNKED + b"2\r\nok\r\n00A;a=b\r\n0123456789\r\n0\r\n\r\n",
        Read(200, [(b"Transfer-Encoding", b"chunked")], b"ok0123456789"),
    ),
    "whitespace in the lines of chunks": (
        CHUNKED + b"2  \r\nok\r\n2\t; a = b\r\nok\r\n0 \r\n\r\n",
        Read(200, [(b"Transfer-Encoding", b"chunked")], b"okok"),
    ),
    "trailers": (
        CHUNKED + b"2\r\nok\r\n0\r\nX: y\r\nContent-Length: 9\r\n\r\n",
        Read(200, [(b"Transfer-Encoding", b"chunked")], b"ok"),
    ),
    "an odd trailer": (
        CHUNKED + b"2\r\nok\r\n0\r\nX A: y\r\n\r\n",
        Read(200, [(b"Transfer-Encoding", b"chunked")], b"ok", reusable=False),
    ),
    "trailers that have not come": (
        CHUNKED + b"2\r\nok\r\n0\r\n",
        Read(200, [(b"Transfer-Encoding", b"chunked")], b"ok", reusable=False),
    ),
    "no body": (b"HTTP/1.1 204 No Content\r\n\r\n", Read(204, [], b"")),
    "not modified": (
        b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n",
        Read(304, [(b"Content-Length", b"9")], b""),
    ),
    "interim heads": (
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 199 Odd\r\n\r\n"
        + OK
        + b"Content-Length: 2\r\n\r\nok",
        Read(200, [(b"Content-Length", b"2")], b"ok"),
    ),
    "line feeds alone": (
        b"HTTP/1.1 200 OK\nX: a\nContent-Length: 2\n\nok",
        Read(200, [(b"X", b"a"), (b"Content-Length", b"2")], b"ok"),
    ),
    "the end of the connection announced": (
        OK + b"Content-Length: 2\r\nConnection: x, Close\r\n\r\nok",
        Read(200, [(b"Content-Length", b"2"), (b"Connection", b"x, Close")], b"ok", reusable=False),
    ),
    "HTTP/1.0": (
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\nConnection: keep-alive\r\n\r\nok",
        Read(200, [(b"Content-Length", b"2"), (b"Connection", b"keep-alive")], b"ok", reusable=False),
    ),
    "an odd field": (
        OK + b"X A: b\r\nContent-Length: 2\r\n\r\nok",
        Read(200, [(b"Content-Length", b"2")], b"ok", reusable=False, lenient=True),
    ),
    "a control in a value": (
        OK + b"X: a\x01b\r\nContent-Length: 2\r\n\r\nok",
        Read(200, [(b"X", b"a\x01b"), (b"Content-Length", b"2")], b"ok", reusable=False, lenient=True),
    ),
    "an odd interim head": (
        b"HTTP/1.1 103 Early Hints\r\nX A: b\r\n\r\n" + OK + b"Content-Length: 2\r\n\r\nok",
        Read(200, [(b"Content-Length", b"2")], b"ok", reusable=False, lenient=True),
    ),
    "empty lines before the head": (
        b"\r\n\n\r\n" + OK + b"Content-Length: 2\r\n\r\nok",
        Read(200, [(b"Content-Length", b"2")], b"ok", reusable=False, lenient=True),
    ),
    "chunked twice": (
        OK + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        Read(200, [(b"Transfer-Encoding", b"chunked")], b"ok", reusable=False, lenient=True),
    ),
    "a minor version to come": (
        b"HTTP/1.2 200 OK\r\nContent-Length: 2\r\n\r\nok",
        Read(200, [(b"Content-Length", b"2")], b"ok"),
    ),
    "another protocol": (
        b"HTTP/1.1 101 Switching\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n",
        Read(101, [(b"Upgrade", b"h2c"), (b"Connection", b"upgrade")], b"", reusable=False),
    ),
}


@pytest.mark.parametrize(("response", "expected"), RESPONSES.values(), ids=RESPONSES.keys())
def test_a_response_is_read_to_its_end(response: bytes, expected: Read) -> None:
    """Head, body, and the reuse of the connection."""
    assert read(response) == expected


@pytest.mark.parametrize(("response", "expected"), RESPONSES.values(), ids=RESPONSES.keys())
def test_a_response_is_read_in_any_pieces(response: bytes, expected: Read) -> None:
    """The response is split in two at every byte, and byte by byte; late trailers may prevent reuse."""
    ways = [[response[:at], response[at:]] for at in range(len(response) + 1)]
    for pieces in [*ways, [bytes([byte]) for byte in response]]:
        found = read(*pieces)
        assert found._replace(reusable=expected.reusable) == expected
        assert expected.reusable or not found.reusable
        assert found.reusable == expected.reusable or b"chunked" in response


WHOLE = {name: pair for name, pair in RESPONSES.items() if name != "trailers that have not come"}


@pytest.mark.parametrize(("response", "expected"), WHOLE.values(), ids=WHOLE.keys())
@pytest.mark.parametrize("more", [b"\r\n", b"\n", b"x", OK + b"\r\n"])
def test_bytes_after_a_response_prevent_reuse(response: bytes, expected: Read, more: bytes) -> None:
    """They are not read as part of it, at once or later (RFC 9112 §9.2)."""
    for pieces in ([response + more], [response, more]):
        assert read(*pieces) == expected._replace(reusable=False)


def test_a_response_to_head_has_no_body() -> None:
    """Its fields are those of a response to GET."""
    fields = [(b"Content-Length", b"9")]
    assert read(OK + b"Content-Length: 9\r\n\r\n", method="HEAD") == Read(200, fields, b"")
    assert read(CHUNKED, method="HEAD").reusable
    assert read(OK + b"\r\n", method="HEAD").reusable
    both = read(OK + b"Content-Length: 9\r\nTransfer-Encoding: chunked\r\n\r\n", method="HEAD")
    assert not both.reusable


@pytest.mark.parametrize("framing", [b"Content-Length: 2", b"Transfer-Encoding: chunked"])
def test_a_204_with_a_length_prevents_reuse(framing: bytes) -> None:
    """The body may follow (RFC 9110 §15.3.5)."""
    assert not read(b"HTTP/1.1 204 No Content\r\n" + framing + b"\r\n\r\n").reusable


def test_a_body_without_length_ends_with_the_connection() -> None:
    """It does not end before."""
    assert read(OK + b"\r\n", b"so ", b"far", ends=True) == Read(200, [], b"so far", reusable=False)
    reader = ResponseReader("GET")
    reader.feed(OK + b"\r\nso far")
    assert not reader.complete


@pytest.mark.parametrize(
    ("received", "message"),
    [
        (b"", "without a response"),
        (b"HT", "within the headers"),
        (OK, "within the headers"),
        (b"HTTP/1.1 100 Continue\r\n\r\n", "within the headers"),
        (OK + b"Content-Length: 9\r\n\r\nok", "7 bytes before the end"),
        (CHUNKED + b"2\r\nok\r\n", "before the last chunk"),
        (CHUNKED + b"2\r\no", "before the last chunk"),
    ],
)
def test_an_early_end_of_the_connection_truncates_the_response(received: bytes, message: str) -> None:
    """The error names the place. The bytes received so far stay."""
    reader = ResponseReader("GET")
    reader.feed(received)

    with pytest.raises(RemoteProtocolError, match=message):
        reader.end()

    assert not reader.complete
    assert reader.take() == (received.partition(b"\r\n\r\n")[2].removeprefix(b"2\r\n").removesuffix(b"\r\n"))


def test_a_connection_may_end_after_the_last_chunk() -> None:
    """The body is complete for any trailers (RFC 9112 §8)."""
    assert read(CHUNKED + b"2\r\nok\r\n0\r\nX:", ends=True).body == b"ok"


REFUSED = {
    "no HTTP": b"SSH-2.0-OpenSSH_9.6\r\n",
    "HTTP/0.9": b"<html>",
    "HTTP/2": b"HTTP/2.0 200 OK\r\n\r\n",
    "a TLS alert": b"\x15\x03\x01\x00\x02\x02\x46",
    "lower case": b"http/1.1 200 OK\r\n\r\n",
    "no status": b"HTTP/1.1 OK\r\n\r\n",
    "a status of four digits": b"HTTP/1.1 2000 OK\r\n\r\n",
    "a NUL in the phrase": b"HTTP/1.1 200 O\0K\r\n\r\n",
    "both framings": OK + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n",
    "an unknown coding": OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n",
    "two lengths": OK + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n",
    "a length that is no number": OK + b"Content-Length: 0x2\r\n\r\n",
    "a length of 19 digits": OK + b"Content-Length: 1000000000000000000\r\n\r\n",
    "an empty length": OK + b"Content-Length:\r\n\r\n",
    "an odd length": OK + b"Content-Length : 2\r\n\r\n",
}


@pytest.mark.parametrize("received", REFUSED.values(), ids=REFUSED.keys())
def test_a_response_that_cannot_be_framed_is_refused(received: bytes) -> None:
    """It is refused as soon as that is known, in any pieces. It has no head."""
    for pieces in ([received], [bytes([byte]) for byte in received]):
        reader = ResponseReader("GET")
        with pytest.raises(RemoteProtocolError):
            feed(reader, pieces)
        assert reader.head is None


BAD_CHUNKS = {
    "a sign": b"-2\r\n",
    "a plus": b"+2\r\n",
    "0x": b"0x2\r\n",
    "an underscore": b"2_0\r\n",
    "no size": b"\r\n",
    "no size, an extension": b";a\r\n",
    "a space before the size": b" 2\r\n",
    "17 digits": b"1" * 17 + b"\r\n",
    "a line feed alone": b"2\n",
    "a line feed alone behind an extension": b"2;a\n",
    "a carriage return alone": b"2\ro",
    "a carriage return in an extension": b"2;a\rb",
    "a NUL in an extension": b"2;\0\r\n",
    "a longer chunk than announced": b"2\r\nok!",
    "a line feed alone behind a chunk": b"2\r\nok\n",
    "nothing behind a chunk": b"2\r\nok0\r\n",
    "an endless extension": b"2;" + b"a" * 5000,
    "an endless size": b"0" * 5000,
}


@pytest.mark.parametrize("chunks", BAD_CHUNKS.values(), ids=BAD_CHUNKS.keys())
def test_an_invalid_chunk_size_is_refused_at_once(chunks: bytes) -> None:
    """The reader raises at the first invalid byte and keeps the chunks before it."""
    for pieces in ([chunks], [bytes([byte]) for byte in chunks]):
        reader = ResponseReader("GET")
        reader.feed(CHUNKED + b"2\r\nno\r\n")
        with pytest.raises(RemoteProtocolError, match="chunk"):
            feed(reader, pieces)
        assert reader.take() in {b"no", b"nook"}
        assert not reader.complete


def test_long_heads_are_refused() -> None:
    """It holds with and without an end, in one piece or many."""
    longest = OK + b"X: " + b"a" * (MAX_HEAD_BYTES - len(OK) - 7)
    assert read(longest + b"\r\n\r\n", ends=True).status == 200
    for pieces in ([longest + b"a\r\n\r\n"], [longest, b"aaaaa"], [longest + b"aaaaa"]):
        reader = ResponseReader("GET")
        with pytest.raises(RemoteProtocolError, match="more than 102400 bytes"):
            feed(reader, pieces)


@pytest.mark.parametrize("size_bytes", [25, 90_000])
def test_interim_heads_are_bounded(size_bytes: int) -> None:
    """The reader limits their number and their total size."""
    interim = b"HTTP/1.1 100 OK\r\nX:" + b"a" * (size_bytes - 23) + b"\r\n\r\n"
    reader = ResponseReader("GET")
    for _ in range(min(MAX_INTERIM_HEADS, MAX_INTERIM_BYTES // size_bytes)):
        reader.feed(interim)

    with pytest.raises(RemoteProtocolError, match="interim"):
        reader.feed(interim)
