"""Messages of HTTP/1.1: the head of a request as bytes, and a response read from the bytes that come. Pure.

Response heads are read strictly by llhttp, else leniently if unambiguous (lenient.py).
"""

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache

import msgspec
from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from fetchfleet.worker.errors import InvalidRequestError, RemoteProtocolError
from fetchfleet.worker.http.http1.chunks import ChunkedBody
from fetchfleet.worker.http.http1.lenient import read_leniently
from fetchfleet.worker.http.wire import Header, Room

CHUNKED = -1
"""The body is sent in chunks."""

UNTIL_CLOSE = -2
"""The body ends with the connection."""

MAX_LENGTH_DIGITS = 18

MAX_HEAD_BYTES = 100 * 1024
"""The longest header section."""

MAX_INTERIM_BYTES = 512 * 1024
MAX_INTERIM_HEADS = 100
"""The bounds of the interim header sections (1xx, RFC 9110 §15.2) before the final one."""

_BODYLESS = frozenset({101, 204, 304})

_HTTP1 = b"HTTP/1."

_HEAD_END = re.compile(rb"\n\r?\n")
"""A line feed alone ends a line too (RFC 9112 §2.2)."""

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]++"
_STRICT_STATUS_LINE = re.compile(rb"HTTP/1\.[0-9] [0-9]{3}(?: ([^\0\r\n]*))?\r\n")
_STRICT_FIELD = re.compile(
    rb"^(" + _TOKEN + rb"):[ \t]*+([\t\x20-\x7e\x80-\xff]*(?<![ \t])|)[ \t]*+\r$", re.MULTILINE
)
"""The value has no whitespace at its ends. Possessive, so that a long head takes time in proportion."""

_NO_CALLBACKS = object()
"""llhttp calls nothing: the fields are taken from their lines."""

_REQUEST_LINE = re.compile(_TOKEN + rb" [\x21-\x7e\x80-\xff]++ HTTP/1\.1\r\n")
_FIELD_LINE = re.compile(_TOKEN + rb": [\t\x20-\x7e\x80-\xff]*+\r\n")


def request_head(method: str, target: bytes, fields: Sequence[Header]) -> bytes:
    """Return the header section of a request.

    Raises InvalidRequestError for what could be read as something else.
    """
    line = b"%b %b HTTP/1.1\r\n" % (method.encode(), target)
    if _REQUEST_LINE.fullmatch(line) is None:
        raise InvalidRequestError(f"no request line: {line[:100]!r}")
    return line + _field_lines(tuple(fields))


@lru_cache(maxsize=1024)
def _field_lines(fields: tuple[Header, ...]) -> bytes:
    """Return the lines, and the empty one. Most requests to a host have the same."""
    lines = [b"%b: %b\r\n" % field for field in fields]
    for line in lines:
        if _FIELD_LINE.fullmatch(line) is None:
            raise InvalidRequestError(f"no field line: {line[:100]!r}")
    return b"".join([*lines, b"\r\n"])


def by_name(fields: Sequence[Header]) -> dict[bytes, bytes]:
    """Return the value of each field by its name in lower case; several lines are joined by a comma."""
    named = {name.lower(): value for name, value in fields}
    if len(named) < len(fields):
        named.clear()
        for sent, value in fields:
            name = sent.lower()
            named[name] = named[name] + b"," + value if name in named else value
    return named


def body_length(named: Mapping[bytes, bytes]) -> int:
    """Return the length of a body that follows these fields, CHUNKED or UNTIL_CLOSE (RFC 9112 §6.3).

    A Content-Length that was sent twice with one value counts once (RFC 9110 §8.6).
    Raises RemoteProtocolError if two readers could disagree.
    """
    coding, value = named.get(b"transfer-encoding"), named.get(b"content-length")
    if coding is not None:
        if value is not None:
            raise RemoteProtocolError("both Content-Length and Transfer-Encoding")
        if coding.lower() != b"chunked":
            raise RemoteProtocolError(f"Transfer-Encoding {coding[:100]!r}")
        return CHUNKED
    if value is None:
        return UNTIL_CLOSE
    if value.isdigit() and len(value) <= MAX_LENGTH_DIGITS:
        return int(value)
    lengths = {length.strip(b" \t") for length in value.split(b",")}
    length = lengths.pop()
    if lengths or not length.isdigit() or len(length) > MAX_LENGTH_DIGITS:
        raise RemoteProtocolError(f"Content-Length {value[:100]!r}")
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
    """True if only a lenient reading made sense of it."""


def read_head(received: bytes, searched: int = 0) -> tuple[Head, int] | None:
    """Return the header section at the beginning and where it ends; None if it has not ended.

    It begins with `HTTP/1.`. searched: up to where no end was found. Raises RemoteProtocolError.
    """
    end = received.find(b"\r\n\r\n", searched) + 4
    if end >= 4 and (head := _read_strictly(received[:end])) is not None:
        return head, end
    lenient_end = _HEAD_END.search(received, searched)
    if lenient_end is None:
        return None
    end = lenient_end.end()
    read = read_leniently(received[:end])
    named = by_name(read.fields)
    return Head(read.status, read.phrase, read.version, read.fields, named, read.needed), end


def _read_strictly(head: bytes) -> Head | None:
    """Read what llhttp accepts, unless its meaning must be looked at more closely."""
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
    if len(fields) != head.count(b"\n") - 2:  # besides the status line and the empty one, each is a field
        return None
    named = by_name(fields)
    coding = named.get(b"transfer-encoding")
    if coding is not None and coding.lower() != b"chunked":
        return None
    version = "HTTP/1.0" if head.startswith(b"HTTP/1.0") else "HTTP/1.1"
    return Head(parser.get_status_code(), status_line[1] or b"", version, fields, named, lenient=False)


class ResponseReader:
    """Reads one response: `feed` it what arrives, call `end` at the end of the connection.

    Its fields show what has been read so far. Nothing behind the end of the response is read.
    method: of the request.
    """

    __slots__ = (
        "_chunks",
        "_has_body",
        "_interim_bytes",
        "_interim_heads",
        "_left_bytes",
        "_received",
        "complete",
        "head",
        "held_bytes",
        "lenient",
        "pieces",
        "reusable",
    )

    def __init__(self, method: str) -> None:
        self.head: Head | None = None
        """The final header section, once it is complete."""
        self.pieces: list[bytes] = []
        """The parts of the body that were not read yet."""
        self.held_bytes = 0
        """The length of `pieces`."""
        self.complete = False
        """True if the whole body has come."""
        self.reusable = False
        """True if the connection can be used for another request once this response is complete."""
        self.lenient = False
        """True if only a lenient reading made sense of the header sections."""
        self._has_body = method != "HEAD"
        self._received = b""
        """The part of a header section that has come."""
        self._interim_bytes = 0
        self._interim_heads = 0
        self._chunks: ChunkedBody | None = None
        self._left_bytes = 0
        """The bytes that the body still lacks, or CHUNKED, or UNTIL_CLOSE."""

    def feed(self, data: bytes) -> None:
        """Take the next bytes. Raises RemoteProtocolError; what was read before stays readable."""
        if self.head is None:
            data = self._read_heads(data)
        if self.complete:
            if data:  # another response, or what a reader could take for one (RFC 9112 §9.2)
                self.reusable = False
        elif data:
            self._read_body(data)

    def end(self) -> None:
        """Take the end of the connection. Raises RemoteProtocolError if the response is not complete."""
        self.reusable = False
        if self.head is None:
            begun = self._received or self._interim_heads
            raise RemoteProtocolError(
                f"the host closed the connection {'within the headers of' if begun else 'without'} a response"
            )
        if self._left_bytes > 0:
            raise RemoteProtocolError(
                f"the host closed the connection {self._left_bytes} bytes before the end"
            )
        if self._left_bytes == CHUNKED and not self.complete:
            raise RemoteProtocolError("the host closed the connection before the last chunk")
        self.complete = True

    def part_of(self, room: Room) -> memoryview | None:
        """Return the part of a room that the loop may fill with the next bytes of the body; None if none."""
        if self._chunks is not None or (found := room()) is None:
            return None
        return found if self._left_bytes == UNTIL_CLOSE else found[: self._left_bytes]

    def skip(self, size_bytes: int) -> None:
        """Count bytes of the body that were received into such a part, without `feed`."""
        if self._left_bytes != UNTIL_CLOSE:
            self._left_bytes -= size_bytes
            self.complete = not self._left_bytes

    def take(self) -> bytes:
        """Return what has come of the body since the last call."""
        taken = self.pieces[0] if len(self.pieces) == 1 else b"".join(self.pieces)
        self.pieces.clear()
        self.held_bytes = 0
        return taken

    def _read_heads(self, data: bytes) -> bytes:
        """Read header sections up to the final one; return what comes behind it."""
        searched, received, self._received = max(0, len(self._received) - 3), self._received + data, b""
        while True:
            if not received.startswith(_HTTP1):
                if received.startswith((b"\r", b"\n")):  # empty lines mean nothing here (RFC 9112 §2.2)
                    received, searched, self.lenient = received.lstrip(b"\r\n"), 0, True
                if not received.startswith(_HTTP1) and not _HTTP1.startswith(received):
                    raise RemoteProtocolError(f"no response of HTTP/1: {received[:100]!r}")
            found = read_head(received, searched)
            if (len(received) if found is None else found[1]) > MAX_HEAD_BYTES:
                raise RemoteProtocolError(f"response headers of more than {MAX_HEAD_BYTES} bytes")
            if found is None:
                self._received = received
                return b""
            head, end = found
            received, searched = received[end:], 0
            if not 100 <= head.status <= 199 or head.status == 101:
                self._begin_body(head)
                return received
            self.lenient = self.lenient or head.lenient
            self._interim_heads += 1
            self._interim_bytes += end
            if self._interim_heads > MAX_INTERIM_HEADS or self._interim_bytes > MAX_INTERIM_BYTES:
                raise RemoteProtocolError(f"no final response after {self._interim_heads} interim ones")

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
                    self.held_bytes += len(piece)
            self.complete = self._chunks.ended
            self.reusable = self.reusable and not self._chunks.unclean_end
            return
        if self._left_bytes != UNTIL_CLOSE:
            if len(data) > self._left_bytes:
                data, self.reusable = data[: self._left_bytes], False
            self._left_bytes -= len(data)
            self.complete = not self._left_bytes
        self.pieces.append(data)
        self.held_bytes += len(data)
