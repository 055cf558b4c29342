"""Arbitrary bytes as a response: read as another parser does, or refused, and never beyond its end."""

from typing import NamedTuple

import h11
from hypothesis import example, given
from hypothesis import strategies as st

from fetchfleet.worker.errors import RemoteProtocolError
from fetchfleet.worker.http.http1.messages import ResponseReader

OK = b"HTTP/1.1 200 OK\r\n"
NEXT = OK + b"Content-Length: 4\r\n\r\nnext"


class Found(NamedTuple):
    """A response that was read."""

    status: int
    body: bytes
    reusable: bool


def read_by_worker(pieces: list[bytes], method: str = "GET") -> Found | None:
    """Read a response whose connection ends after these bytes; None if it is refused or truncated."""
    reader, body = ResponseReader(method), b""
    try:
        for piece in pieces:
            reader.feed(piece)
            body += reader.take()
        if not reader.complete:
            reader.end()
    except RemoteProtocolError:
        return None
    assert reader.head is not None
    return Found(reader.head.status, body, reader.reusable)


def read_by_h11(received: bytes, method: str = "GET") -> tuple[int, bytes] | None:
    """Return the status and the body as h11 reads them."""
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method=method, target="/", headers=[("Host", "a")]))
    connection.send(h11.EndOfMessage())
    status, body, ended = 0, b"", False
    try:
        connection.receive_data(received)
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA and not ended:
                connection.receive_data(b"")
                ended = True
            elif isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                return status, body
            elif not isinstance(event, h11.InformationalResponse):
                return None
    except h11.RemoteProtocolError:
        return None


@st.composite
def responses(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """Return a valid response, and its body."""
    tokens = st.text("abcXYZ-_!09", min_size=1, max_size=8).map(str.encode)
    values = st.lists(st.binary(min_size=1, max_size=6), max_size=3).map(
        lambda words: b" ".join(bytes(byte for byte in word if byte > 32 and byte != 127) for word in words)
    )
    taken = {b"connection", b"content-length", b"transfer-encoding", b"upgrade"}
    fields = draw(
        st.lists(st.tuples(tokens.filter(lambda name: name.lower() not in taken), values), max_size=4)
    )
    body = draw(st.binary(max_size=60))
    lines = [name + b":" + draw(st.sampled_from([b"", b" ", b"\t "])) + value for name, value in fields]
    if draw(st.booleans()):
        framing, sent = b"Content-Length: %d" % len(body), body
    else:
        framing, sent, at = (
            draw(st.sampled_from([b"Transfer-Encoding: chunked", b"transfer-encoding:CHUNKED"])),
            b"",
            0,
        )
        while at < len(body):
            size = draw(st.integers(1, len(body) - at))
            extension = draw(st.sampled_from([b"", b";a", b";a=b", b'; a="b c"', b" "]))
            sent += b"%x" % size + extension + b"\r\n" + body[at : at + size] + b"\r\n"
            at += size
        sent += (
            draw(st.sampled_from([b"0", b"000"]))
            + b"\r\n"
            + draw(st.sampled_from([b"", b"X: y\r\n"]))
            + b"\r\n"
        )
    lines.insert(draw(st.integers(0, len(lines))), framing)
    interim = draw(
        st.sampled_from([b"", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 E\r\nLink: x\r\n\r\n"])
    )
    end = draw(st.sampled_from([b"\r\n", b"\r\n", b"\n"]))
    status_line = draw(st.sampled_from([b"HTTP/1.1 200 OK", b"HTTP/1.1 404 ", b"HTTP/1.1 599 \xe9\t"]))
    return interim + end.join([status_line, *lines, b"", b""]) + sent, body


def split(draw: st.DrawFn, data: bytes) -> list[bytes]:
    """Return the data in pieces."""
    ends = sorted(draw(st.lists(st.integers(0, len(data)), max_size=6)))
    return [data[begin:end] for begin, end in zip([0, *ends], [*ends, len(data)], strict=True)]


@given(responses(), st.data())
def test_a_valid_response_is_read_in_any_pieces(response: tuple[bytes, bytes], data: st.DataObject) -> None:
    """The result is that of h11. A second response after it stays unread."""
    sent, body = response
    found = read_by_worker([sent])
    assert found is not None
    assert (found.body, found.reusable) == (body, True)
    assert read_by_h11(sent) == (found.status, body)

    elsewhere = read_by_worker(data.draw(st.composite(split)(sent)))
    assert elsewhere is not None
    assert elsewhere._replace(reusable=True) == found
    assert read_by_worker([sent + NEXT]) == read_by_worker([sent, NEXT]) == found._replace(reusable=False)


MUTATIONS = st.sampled_from(
    [
        *(
            b" ",
            b"\t",
            b"\r",
            b"\n",
            b"\r\n",
            b"\0",
            b"\x0b",
            b"\xa0",
            b":",
            b",",
            b";",
            b"0",
            b"1",
            b"-",
            b"+",
            b"x",
        ),
        *(
            b"chunked",
            b"identity",
            b"Content-Length: 1\r\n",
            b"Transfer-Encoding: chunked\r\n",
            b"\r\n\r\n",
            NEXT,
        ),
        *(b"Connection: close\r\n", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.0"),
    ]
)


@given(
    responses(), st.lists(st.tuples(st.integers(0, 300), st.integers(0, 3), MUTATIONS), max_size=4), st.data()
)
@example((OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", b""), [(39, 0, b", identity")], None)
def test_a_broken_response_is_read_as_another_parser_does_or_refused(
    response: tuple[bytes, bytes], mutations: list[tuple[int, int, bytes]], data: st.DataObject | None
) -> None:
    """Pieces make no difference. The connection is reused only if the other parser agrees."""
    sent = response[0]
    for at, dropped, added in mutations:
        sent = sent[:at] + added + sent[at + dropped :]
    found, other = read_by_worker([sent]), read_by_h11(sent)

    if data is not None:
        elsewhere = read_by_worker(data.draw(st.composite(split)(sent)))
        assert (elsewhere and elsewhere[:2]) == (found and found[:2])
    if found is not None and other is not None:
        assert found[:2] == other
    if found is not None and found.reusable:
        assert other is not None
