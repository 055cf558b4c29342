"""Responses that two readers could end at different bytes: refused, or the last of their connections.

The variants are those of the published lists for requests (PortSwigger, http-garden, Http11Probe, curl's
tests), turned round: a host sends them, so that its bytes are taken for the response to the next request.
"""

import tomllib
from pathlib import Path

import pytest

from fetchfleet.worker.errors import RemoteProtocolError
from fetchfleet.worker.http.http1.messages import ResponseReader

OK = b"HTTP/1.1 200 OK\r\n"
POISON = OK + b"Content-Length: 6\r\n\r\npoison"
CHUNKS = b"2\r\nok\r\n0\r\n\r\n"
LLHTTP = tomllib.loads(Path(__file__).with_name("llhttp_vectors.toml").read_text())


def fields(*lines: bytes, body: bytes = CHUNKS) -> bytes:
    """Return a response with these field lines, followed by another one."""
    return OK + b"".join(line + b"\r\n" for line in lines) + b"\r\n" + body + POISON


def chunks(body: bytes) -> bytes:
    """Return a response with this chunked body, followed by another one."""
    return OK + b"Transfer-Encoding: chunked\r\n\r\n" + body + POISON


REFUSED = {
    # Both framings, in either order and in odd spellings.
    "CL.TE": fields(b"Content-Length: 2", b"Transfer-Encoding: chunked"),
    "TE.CL": fields(b"Transfer-Encoding: chunked", b"Content-Length: 2"),
    "CL.TE, cases mixed": fields(b"content-LENGTH: 2", b"transfer-ENCODING: ChUnKeD"),
    "CL 0 with TE": fields(b"Content-Length: 0", b"Transfer-Encoding: chunked"),
    "CL with TE identity": fields(b"Content-Length: 2", b"Transfer-Encoding: identity"),
    "CL with an unknown TE": fields(b"Content-Length: 2", b"Transfer-Encoding: xchunked"),
    "CL with an empty TE": fields(b"Content-Length: 2", b"Transfer-Encoding:"),
    # Transfer codings other than chunked.
    "xchunked": fields(b"Transfer-Encoding: xchunked"),
    "chunkedx": fields(b"Transfer-Encoding: chunkedx"),
    "chunk": fields(b"Transfer-Encoding: chunk"),
    "quoted": fields(b'Transfer-Encoding: "chunked"'),
    "single-quoted": fields(b"Transfer-Encoding: 'chunked'"),
    "with a parameter": fields(b"Transfer-Encoding: chunked;q=1"),
    "with a semicolon": fields(b"Transfer-Encoding: chunked;"),
    "in two words": fields(b"Transfer-Encoding: chun ked"),
    "with a no-break space": fields(b"Transfer-Encoding: \xa0chunked"),
    "with a vertical tab": fields(b"Transfer-Encoding: \x0bchunked"),
    "with a form feed": fields(b"Transfer-Encoding: chunked\x0c"),
    "with a NUL": fields(b"Transfer-Encoding: chunked\0"),
    "with a control": fields(b"Transfer-Encoding: \x01chunked"),
    "with a carriage return": fields(b"Transfer-Encoding: chunked\rx"),
    "gzip, chunked": fields(b"Transfer-Encoding: gzip, chunked"),
    "chunked, gzip": fields(b"Transfer-Encoding: chunked, gzip"),
    "chunked, then gzip": fields(b"Transfer-Encoding: chunked", b"Transfer-Encoding: gzip"),
    "chunked, identity": fields(b"Transfer-Encoding: chunked, identity"),
    "chunked, then identity": fields(b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity"),
    "folded TE": fields(b"Transfer-Encoding:", b" chunked"),
    "folded TE, a tab": fields(b"Transfer-Encoding:", b"\tchunked"),
    "TE with a folded tail": fields(b"Transfer-Encoding: chunked", b" , gzip"),
    # Odd field lines that some read as framing.
    "a space before the colon of TE": fields(b"Transfer-Encoding : chunked"),
    "a tab before the colon of TE": fields(b"Transfer-Encoding\t: chunked"),
    "a space before the colon of CL": fields(b"Content-Length : 2", body=b"ok"),
    "a control in the name": fields(b"Transfer-Encoding\x0b: chunked"),
    "a NUL in the name": fields(b"Content-Length\0: 2", body=b"ok"),
    "a space before TE": fields(b" Transfer-Encoding: chunked"),
    "a space in TE": fields(b"Transfer -Encoding: chunked"),
    "TE without a colon": fields(b"Transfer-Encoding chunked"),
    "TE behind a carriage return": fields(b"X: a\rTransfer-Encoding: chunked"),
    "CL behind a carriage return": fields(b"X: a\r Content-Length: 2", b"Content-Length: 5", body=b"ok"),
    "TE behind a NUL": fields(b"X: a\0Transfer-Encoding: chunked"),
    "TE behind a carriage return of the status line": OK[:-2]
    + b"\rTransfer-Encoding: chunked\r\n\r\n"
    + CHUNKS,
    # Lengths.
    "two lengths": fields(b"Content-Length: 2", b"Content-Length: 37", body=b"ok"),
    "two lengths in a list": fields(b"Content-Length: 2, 37", body=b"ok"),
    "a length and nothing": fields(b"Content-Length: 2,", body=b"ok"),
    "an empty length": fields(b"Content-Length: ", body=b"ok"),
    "a plus": fields(b"Content-Length: +2", body=b"ok"),
    "a minus": fields(b"Content-Length: -2", body=b"ok"),
    "two numbers": fields(b"Content-Length: 2 2", body=b"ok"),
    "hexadecimal": fields(b"Content-Length: 0x2", body=b"ok"),
    "an underscore": fields(b"Content-Length: 0_2", body=b"ok"),
    "a fraction": fields(b"Content-Length: 2.0", body=b"ok"),
    "an exponent": fields(b"Content-Length: 2e0", body=b"ok"),
    "other digits": fields("Content-Length: ٢".encode(), body=b"ok"),
    "a superscript": fields(b"Content-Length: \xb2", body=b"ok"),
    "a parameter": fields(b"Content-Length: 2;x", body=b"ok"),
    "a comment": fields(b"Content-Length: 2 (two)", body=b"ok"),
    "a quoted length": fields(b'Content-Length: "2"', body=b"ok"),
    "a folded length": fields(b"Content-Length:", b" 2", body=b"ok"),
    "a length and a folded one": fields(b"Content-Length: 2", b" 37", body=b"ok"),
    "2^64 + 2": fields(b"Content-Length: 18446744073709551618", body=b"ok"),
    "2^32 + 2 and 2": fields(b"Content-Length: 4294967298", b"Content-Length: 2", body=b"ok"),
    # Lines before chunks.
    "a size with a plus": chunks(b"+2\r\nok\r\n0\r\n\r\n"),
    "a size with a minus": chunks(b"-2\r\nok\r\n0\r\n\r\n"),
    "a size with 0x": chunks(b"0x2\r\nok\r\n0\r\n\r\n"),
    "a size with an underscore": chunks(b"0_2\r\nok\r\n0\r\n\r\n"),
    "a size with a space before": chunks(b" 2\r\nok\r\n0\r\n\r\n"),
    "a size with a space within": chunks(b"0 2\r\nok\r\n0\r\n\r\n"),
    "a size with a NUL": chunks(b"2\0\r\nok\r\n0\r\n\r\n"),
    "a size of 2^64 + 2": chunks(b"10000000000000002\r\nok\r\n0\r\n\r\n"),
    "a size of 2^68": chunks(b"100000000000000000\r\nok\r\n0\r\n\r\n"),
    "no size": chunks(b"\r\nok\r\n0\r\n\r\n"),
    "an extension without a size": chunks(b";a=b\r\nok\r\n0\r\n\r\n"),
    "an extension without a semicolon": chunks(b"2 a\r\nok\r\n0\r\n\r\n"),
    "a size that ends with a line feed": chunks(b"2\nok\r\n0\r\n\r\n"),
    "a size that ends with a carriage return": chunks(b"2\rok\r\n0\r\n\r\n"),
    "a size that ends with two": chunks(b"2\r\rok\r\n0\r\n\r\n"),
    "an extension that ends with a line feed (TERM.EXT)": chunks(b"2;\nok\r\n0\r\n\r\n"),
    "an extension with a carriage return": chunks(b"2;a\rb\r\nok\r\n0\r\n\r\n"),
    "an extension with a quoted line end": chunks(b'2;a="\r\n"\r\nok\r\n0\r\n\r\n'),
    "a chunk that ends with a line feed": chunks(b"2\r\nok\n0\r\n\r\n"),
    "a chunk that ends with a carriage return": chunks(b"2\r\nok\r0\r\n\r\n"),
    "a chunk that does not end (SPILL)": chunks(b"2\r\nok0\r\n\r\n"),
    "a chunk that is too long": chunks(b"2\r\nokay\r\n0\r\n\r\n"),
    "a last chunk with a line feed": chunks(b"2\r\nok\r\n0\n\n"),
    # Bytes that are not an HTTP/1 response.
    "HTTP/2.0": b"HTTP/2.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
    "HTTP/0.9": b"ok",
    "HTTP/1,1": b"HTTP/1,1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    "a status with a sign": b"HTTP/1.1 +20 OK\r\nContent-Length: 2\r\n\r\nok",
    "a body behind an interim head": b"HTTP/1.1 103 Early\r\nContent-Length: 2\r\n\r\nok" + POISON,
}

LAST_OF_ITS_CONNECTION = {
    "chunked twice": (fields(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"), b"ok"),
    "chunked twice in a list": (fields(b"Transfer-Encoding: chunked, chunked"), b"ok"),
    "identity, chunked": (fields(b"Transfer-Encoding: identity, chunked"), b"ok"),
    "chunked in a list with empty elements": (fields(b"Transfer-Encoding: ,chunked,"), b"ok"),
    "chunked of HTTP/1.0": (fields(b"Transfer-Encoding: chunked").replace(b"1.1", b"1.0", 1), b"ok"),
    "a name that looks like TE": (
        fields(b"Transfer_Encoding: chunked", b"Content-Length: 2", body=b"ok"),
        b"ok",
    ),
    "a name that looks like CL": (fields(b"Content-Length-X: 9", b"Content-Length: 2", body=b"ok"), b"ok"),
    "no semicolon but whitespace": (chunks(b"2 \t\r\nok\r\n0\r\n\r\n"), b"ok"),
    "leading zeros of a size": (chunks(b"0" * 30 + b"2\r\nok\r\n000\r\n\r\n"), b"ok"),
    "a length in trailers": (chunks(b"2\r\nok\r\n0\r\nContent-Length: 9\r\n\r\n"), b"ok"),
    "a carriage return in trailers": (chunks(b"2\r\nok\r\n0\r\nX: a\r\r\n\r\n"), b"ok"),
    "a line feed behind the last chunk": (chunks(b"2\r\nok\r\n0\r\n\n"), b"ok"),
    "a length and a second response": (fields(b"Content-Length: 2", body=b"ok"), b"ok"),
    "204 with a length": (b"HTTP/1.1 204 No\r\nContent-Length: 37\r\n\r\n" + POISON, b""),
    "304 with chunks": (b"HTTP/1.1 304 No\r\nTransfer-Encoding: chunked\r\n\r\n" + CHUNKS, b""),
    "304 with both framings": (
        b"HTTP/1.1 304 No\r\nTransfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n" + CHUNKS,
        b"",
    ),
    "close, and more": (fields(b"Content-Length: 2", b"Connection: close", body=b"ok"), b"ok"),
    "no framing": (OK + b"\r\n" + POISON, POISON),
    "identity alone": (OK + b"Transfer-Encoding: identity\r\n\r\n" + POISON, POISON),
    "a folded field": (fields(b"X: a", b" Content-Length: 9", b"Content-Length: 2", body=b"ok"), b"ok"),
    "101": (b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n" + POISON, b""),
}


def read(response: bytes) -> tuple[bytes, bool] | None:
    """Return the body, and if the connection can be reused; None if the response is refused."""
    reader = ResponseReader("GET")
    try:
        reader.feed(response)
        if not reader.complete:
            reader.end()
    except RemoteProtocolError:
        return None
    return reader.take(), reader.reusable


@pytest.mark.parametrize("response", REFUSED.values(), ids=REFUSED.keys())
def test_a_response_with_an_ambiguous_end_is_refused(response: bytes) -> None:
    """Its connection is closed, and no byte of it counts as another response."""
    assert read(response) is None


@pytest.mark.parametrize(
    ("response", "body"), LAST_OF_ITS_CONNECTION.values(), ids=LAST_OF_ITS_CONNECTION.keys()
)
def test_a_response_that_is_odd_or_followed_by_more_is_the_last_of_its_connection(
    response: bytes, body: bytes
) -> None:
    """It is read by RFC 9112."""
    assert read(response) == (body, False)


@pytest.mark.parametrize("vector", LLHTTP.values(), ids=LLHTTP.keys())
def test_vectors_of_llhttp(vector: dict[str, str]) -> None:
    """Each has its body, or is refused; also byte by byte."""
    response = vector["response"].encode("latin-1")
    found = read(response)
    assert (found and found[0].decode("latin-1")) == vector.get("body")

    reader, body = ResponseReader("GET"), b""
    try:
        for byte in response:
            reader.feed(bytes([byte]))
            body += reader.take()
        if not reader.complete:
            reader.end()
    except RemoteProtocolError:
        assert found is None
    else:
        assert found is not None
        assert found[0] == body
