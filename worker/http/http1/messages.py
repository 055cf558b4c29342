"""HTTP/1.1 messages: request heads as bytes, and a reader of responses. Pure.

llhttp parses response heads. Heads that it rejects are parsed leniently if they are unambiguous (lenient.py).
"""

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache

import msgspec
from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from fetchfleet.worker.errors import InvalidRequestError, RemoteProtocolError
from fetchfleet.worker.http.http1.chunks import ChunkedBody
from fetchfleet.worker.http.http1.lenient import read_leniently
from fetchfleet.worker.http.wire import GetBuffer, Header

CHUNKED = -1
"""The length of a body in chunks."""

UNTIL_CLOSE = -2
"""The length of a body that ends with the connection."""

MAX_LENGTH_DIGITS = 18

MAX_HEAD_BYTES = 100 * 1024
"""The maximum size of a header section, in bytes."""

MAX_INTERIM_BYTES = 512 * 1024
MAX_INTERIM_HEADS = 100
"""The maximum number of interim header sections (1xx, RFC 9110 §15.2) before the final one."""

_BODYLESS = frozenset({101, 204, 304})

_HTTP1 = b"HTTP/1."

_HEAD_END = re.compile(rb"\n\r?\n")
"""A single line feed ends a line too (RFC 9112 §2.2)."""

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]++"
_STRICT_STATUS_LINE = re.compile(rb"HTTP/1\.[0-9] [0-9]{3}(?: ([^\0\r\n]*))?\r\n")
_STRICT_FIELD = re.compile(
    rb"^(" + _TOKEN + rb"):[ \t]*+([\t\x20-\x7e\x80-\xff]*(?<![ \t])|)[ \t]*+\r$", re.MULTILINE
)
"""A field line. The value group has no whitespace at its ends. Possessive, for linear time."""

_NO_CALLBACKS = object()
"""llhttp only validates; the fields are parsed by `_STRICT_FIELD`."""

_REQUEST_LINE = re.compile(_TOKEN + rb" [\x21-\x7e\x80-\xff]++ HTTP/1\.1\r\n")
_FIELD_LINE = re.compile(_TOKEN + rb": [\t\x20-\x7e\x80-\xff]*+\r\n")


def request_head(method: str, target: bytes, fields: Sequence[Header]) -> bytes:
    """Return the header section of a request. Raises InvalidRequestError if a line is malformed."""
    line = b"%b %b HTTP/1.1\r\n" % (method.encode(), target)
    if _REQUEST_LINE.fullmatch(line) is None:
        raise InvalidRequestError(f"malformed request line: {line[:100]!r}")
    return line + _field_lines(tuple(fields))


@lru_cache(maxsize=1024)
def _field_lines(fields: tuple[Header, ...]) -> bytes:
    """Return the field lines and the empty line. Cached, as most requests to a host have the same fields."""
    lines = [b"%b: %b\r\n" % field for field in fields]
    for line in lines:
        if _FIELD_LINE.fullmatch(line) is None:
            raise InvalidRequestError(f"malformed field line: {line[:100]!r}")
    return b"".join([*lines, b"\r\n"])


def by_name(fields: Sequence[Header]) -> dict[bytes, bytes]:
    """Return the value of each field by its name in lower case; several lines are joined with a comma."""
    named = {name.lower(): value for name, value in fields}
    if len(named) < len(fields):
        named.clear()
        for sent, value in fields:
            name = sent.lower()
            named[name] = named[name] + b"," + value if name in named else value
    return named


def body_length(named: Mapping[bytes, bytes]) -> int:
    """Return the length of the body after these fields, or CHUNKED or UNTIL_CLOSE (RFC 9112 §6.3).

    Several Content-Length lines with the same value count as one (RFC 9110 §8.6).
    named: by name in lower case. Raises RemoteProtocolError if readers could disagree on the length.
    """
    coding, value = named.get(b"transfer-encoding"), named.get(b"content-length")
    if coding is not None:
        if value is not None:
            raise RemoteProtocolError("both Content-Length and Transfer-Encoding")
        if coding.lower() != b"chunked":
            raise RemoteProtocolError(f"unsupported Transfer-Encoding {coding[:100]!r}")
        return CHUNKED
    if value is None:
        return UNTIL_CLOSE
    if value.isdigit() and len(value) <= MAX_LENGTH_DIGITS:
        return int(value)
    lengths = {length.strip(b" \t") for length in value.split(b",")}
    length = lengths.pop()
    if lengths or not length.isdigit() or len(length) > MAX_LENGTH_DIGITS:
        raise RemoteProtocolError(f"malformed or conflicting Content-Length {value[:100]!r}")
    return int(length)


class Head(msgspec.Struct, frozen=True, gc=False):
    """The status line and the fields of a response."""

    status: int
    phrase: bytes
    version: str
    """`HTTP/1.1` or `HTTP/1.0`."""
    fields: list[Header]
    by_name: Mapping[bytes, bytes]
    lenient: bool
    """True if only the lenient parser accepts it."""


def read_head(received: bytes, searched_bytes: int = 0) -> tuple[Head, int] | None:
    """Return the header section at the start of the bytes, and its length; None if it is not complete.

    received: begins with `HTTP/1.`. searched_bytes: the length of the beginning that was searched before.
    Raises RemoteProtocolError.
    """
    end = received.find(b"\r\n\r\n", searched_bytes) + 4
    if end >= 4 and (head := _read_strictly(received[:end])) is not None:
        return head, end
    lenient_end = _HEAD_END.search(received, searched_bytes)
    if lenient_end is None:
        return None
    end = lenient_end.end()
    reading = read_leniently(received[:end])
    named = by_name(reading.fields)
    return Head(reading.status, reading.phrase, reading.version, reading.fields, named, reading.needed), end


def _read_strictly(head: bytes) -> Head | None:
    """Parse a header section; return None if the lenient parser must decide about it."""
    parser = HttpResponseParser(_NO_CALLBACKS)
    try:
        parser.feed_data(head)
    except HttpParserError:
        return None
    except HttpParserUpgrade:  # a complete 101
        pass
    status_line = _STRICT_STATUS_LINE.match(head)
    if status_line is None:
        return None
    fields: list[Header] = _STRICT_FIELD.findall(head, status_line.end())
    if len(fields) != head.count(b"\n") - 2:  # all lines but the status line and the empty one are fields
        return None
    named = by_name(fields)
    coding = named.get(b"transfer-encoding")
    if coding is not None and coding.lower() != b"chunked":
        return None
    version = "HTTP/1.0" if head.startswith(b"HTTP/1.0") else "HTTP/1.1"
    return Head(parser.get_status_code(), status_line[1] or b"", version, fields, named, lenient=False)


class ResponseReader:
    """The reader of one response: call `feed` with received bytes, and `end` at the end of the connection.

    Bytes after the end of the response are ignored, and make the connection unusable for another request.
    method: of the request.
    """

    __slots__ = (
        "_chunks",
        "_has_body",
        "_interim_bytes",
        "_interim_heads",
        "_left_bytes",
        "_partial_head",
        "complete",
        "head",
        "lenient",
        "pieces",
        "reusable",
        "unread_bytes",
    )

    def __init__(self, method: str) -> None:
        self.head: Head | None = None
        """The final header section, once it is complete."""
        self.pieces: list[bytes] = []
        """The pieces of the body that are not yet taken."""
        self.unread_bytes = 0
        """The total length of `pieces`."""
        self.complete = False
        """True if the whole body was received."""
        self.reusable = False
        """True if the connection can be used for another request once this response is complete."""
        self.lenient = False
        """True if only the lenient parser accepts the header sections."""
        self._has_body = method != "HEAD"
        self._partial_head = b""
        """The received part of a header section."""
        self._interim_bytes = 0
        self._interim_heads = 0
        self._chunks: ChunkedBody | None = None
        self._left_bytes = 0
        """The missing bytes of the body, or CHUNKED, or UNTIL_CLOSE."""

    def feed(self, data: bytes) -> None:
        """Read received bytes. Raises RemoteProtocolError; body bytes received before stay readable."""
        if self.head is None:
            data = self._read_heads(data)
        if self.complete:
            if data:  # they could be mistaken for the next response (RFC 9112 §9.2)
                self.reusable = False
        elif data:
            self._read_body(data)

    def end(self) -> None:
        """End the response with the connection. Raises RemoteProtocolError if it is not complete."""
        self.reusable = False
        if self.head is None:
            begun = self._partial_head or self._interim_heads
            raise RemoteProtocolError(
                f"the host closed the connection {'within the headers of' if begun else 'without'} a response"
            )
        if self._left_bytes > 0:
            raise RemoteProtocolError(
                f"the host closed the connection {self._left_bytes} bytes before the end of the body"
            )
        if self._left_bytes == CHUNKED and not self.complete:
            raise RemoteProtocolError("the host closed the connection before the last chunk")
        self.complete = True

    def body_buffer(self, get_buffer: GetBuffer) -> memoryview | None:
        """Return the part of the buffer that may be filled with body bytes; None for a body in chunks.

        None too if `get_buffer` returns no buffer.
        """
        if self._chunks is not None or (buffer := get_buffer()) is None:
            return None
        return buffer if self._left_bytes == UNTIL_CLOSE else buffer[: self._left_bytes]

    def count_buffered(self, size_bytes: int) -> None:
        """Count bytes that were received into the body buffer, in place of `feed`."""
        if self._left_bytes != UNTIL_CLOSE:
            self._left_bytes -= size_bytes
            self.complete = not self._left_bytes

    def take(self) -> bytes:
        """Return the body bytes received since the last call."""
        piece = self.pieces[0] if len(self.pieces) == 1 else b"".join(self.pieces)
        self.pieces.clear()
        self.unread_bytes = 0
        return piece

    def _read_heads(self, data: bytes) -> bytes:
        """Read header sections up to the final one; return the bytes after it."""
        searched_bytes = max(0, len(self._partial_head) - 3)
        received, self._partial_head = self._partial_head + data, b""
        while True:
            if not received.startswith(_HTTP1):
                if received.startswith((b"\r", b"\n")):  # ignore empty lines (RFC 9112 §2.2)
                    received, searched_bytes, self.lenient = received.lstrip(b"\r\n"), 0, True
                if not received.startswith(_HTTP1) and not _HTTP1.startswith(received):
                    raise RemoteProtocolError(f"not an HTTP/1 response: {received[:100]!r}")
            head_end = read_head(received, searched_bytes)
            if (len(received) if head_end is None else head_end[1]) > MAX_HEAD_BYTES:
                raise RemoteProtocolError(f"response headers of more than {MAX_HEAD_BYTES} bytes")
            if head_end is None:
                self._partial_head = received
                return b""
            head, end = head_end
            received, searched_bytes = received[end:], 0
            if not 100 <= head.status <= 199 or head.status == 101:
                self._begin_body(head)
                return received
            self.lenient = self.lenient or head.lenient
            self._interim_heads += 1
            self._interim_bytes += end
            if self._interim_heads > MAX_INTERIM_HEADS or self._interim_bytes > MAX_INTERIM_BYTES:
                raise RemoteProtocolError(f"no final response after {self._interim_heads} interim responses")

    def _begin_body(self, head: Head) -> None:
        bodyless = not self._has_body or head.status in _BODYLESS
        self.lenient = self.lenient or head.lenient
        closing = head.version != "HTTP/1.1" or b"close" in head.by_name.get(b"connection", b"").lower()
        self.reusable = 200 <= head.status <= 599 and not (closing or self.lenient)  # RFC 9112 §9.3
        try:
            length = body_length(head.by_name)
        except RemoteProtocolError:
            if not bodyless:
                raise
            self.reusable = False
        else:
            if head.status == 204 and length not in {0, UNTIL_CLOSE}:
                self.reusable = False
            if not bodyless:
                self._left_bytes = length
        if self._left_bytes == CHUNKED:
            self._chunks = ChunkedBody()
        elif self._left_bytes == UNTIL_CLOSE:
            self.reusable = False
        self.complete = not self._left_bytes
        self.head = head

    def _read_body(self, data: bytes) -> None:
        if self._chunks is not None:
            pieces: list[bytes] = []
            try:
                self._chunks.feed(data, pieces)
            finally:
                if piece := b"".join(pieces):
                    self.pieces.append(piece)
                    self.unread_bytes += len(piece)
            self.complete = self._chunks.ended
            self.reusable = self.reusable and not self._chunks.unclean_end
            return
        if self._left_bytes != UNTIL_CLOSE:
            if len(data) > self._left_bytes:
                data, self.reusable = data[: self._left_bytes], False
            self._left_bytes -= len(data)
            self.complete = not self._left_bytes
        self.pieces.append(data)
        self.unread_bytes += len(data)
