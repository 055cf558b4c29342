"""Header sections of HTTP/1. Responses are read strictly by llhttp, else leniently if unambiguous. Pure.

A field that no part of the worker needs must not cost the body. Fields that frame the body are read strictly:
if two readers disagree on its length, one response can be smuggled into another.
"""

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache

import msgspec
from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from fetchfleet.worker.errors import InvalidRequestError, RemoteProtocolError
from fetchfleet.worker.http.wire import Header, body_length, by_name

_FRAMING = frozenset({b"content-length", b"transfer-encoding"})

_HEAD_END = re.compile(rb"\n\r?\n")
"""A line feed alone ends a line too (RFC 9112 §2.2)."""

_CONTROL = re.compile(rb"[\0-\x08\x0b-\x1f\x7f]")
_HIDDEN_FRAMING = re.compile(rb"[\0\v\f\r][ \t]*(?:content-length|transfer-encoding)", re.IGNORECASE)
_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]++"
_IS_TOKEN = re.compile(_TOKEN)  # RFC 9110 §5.6.2
_NOT_IN_A_TOKEN = re.compile(rb"[^!#$%&'*+.^_`|~0-9A-Za-z-]")
_LINE_BREAKING = re.compile(rb"[\v\f\r\n]")
_STATUS_LINE = re.compile(rb"HTTP/1\.([0-9]) ([0-9]{3})(?: (.*))?", re.DOTALL)

_STRICT_STATUS_LINE = re.compile(rb"HTTP/1\.[0-9] [0-9]{3}(?: ([\t\x20-\x7e\x80-\xff]*))?\r\n")
_STRICT_FIELD = re.compile(rb"^(" + _TOKEN + rb"):[ \t]*([\t\x20-\x7e\x80-\xff]*)(?<![ \t])\r$", re.MULTILINE)

_NO_CALLBACKS = object()
"""llhttp calls nothing: the fields are taken from their lines."""

_REQUEST_LINE = re.compile(_TOKEN + rb" [\x21-\x7e\x80-\xff]++ HTTP/1\.1\r\n")
_FIELD_LINE = re.compile(_TOKEN + rb": [\t\x20-\x7e\x80-\xff]*+\r\n")


class Head(msgspec.Struct, frozen=True, gc=False):
    """The status line and the fields of a response."""

    status: int
    phrase: bytes
    version: str
    """`HTTP/1.1` or `HTTP/1.0`."""
    fields: list[Header]
    by_name: Mapping[bytes, bytes]
    lenient: bool
    """Whether only a lenient reading made sense of it."""

    @property
    def persistent(self) -> bool:
        """Whether the host keeps the connection open after the response (RFC 9112 §9.3)."""
        options = self.by_name.get(b"connection", b"")
        return self.version == "HTTP/1.1" and b"close" not in options.lower()

    @property
    def body_length(self) -> int:
        """The length of a body that follows, CHUNKED or UNTIL_CLOSE; see wire.py."""
        return body_length(self.by_name)


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
    return _read_leniently(received[:end]), end


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


def _read_leniently(head: bytes) -> Head:
    """Read what llhttp refuses, if its meaning is unambiguous."""
    if hidden := _HIDDEN_FRAMING.search(head):
        raise RemoteProtocolError(f"a field behind what some take for a line end: {hidden[0]!r}")
    first, *lines = head.replace(b"\r\n", b"\n").rstrip(b"\n").split(b"\n")
    parts: list[tuple[bytes, list[bytes]]] = []
    for line in lines:
        if parts and line[:1] in {b" ", b"\t"}:
            parts[-1][1].append(line)
        else:
            name, colon, value = line.partition(b":")
            parts.append((name if colon else b" " + name, [value.strip(b" \t")]))
    sent = [(name, b"\n".join(values)) for name, values in parts]
    fields = usable_fields(sent)
    status_line = b" ".join(_LINE_BREAKING.sub(b" ", first).split(None, 2))  # RFC 9112 §4
    match = _STATUS_LINE.fullmatch(status_line)
    if match is None or b"\0" in status_line:
        raise RemoteProtocolError(f"no status line of HTTP/1: {first[:100]!r}")
    plain = (
        fields == sent
        and status_line == first.rstrip(b" ")
        and _CONTROL.search(head.replace(b"\r\n", b"")) is None
    )
    version = "HTTP/1.0" if match[1] == b"0" else "HTTP/1.1"
    return Head(int(match[2]), match[3] or b"", version, fields, by_name(fields), lenient=not plain)


def usable_fields(fields: Sequence[Header]) -> list[Header]:
    """Return the fields that have a valid name, in their order. Raises RemoteProtocolError.

    fields: as they were sent, folds included; a line without a colon is a name that begins with a space.

    - Whitespace between a name and its colon is dropped (RFC 9112 §5.1).
    - Folds, line ends, vertical tabs and form feeds in a value are read as a space (RFC 9110 §5.5, RFC 9112
      §5.2). A NUL is refused: some readers end a value there.
    - `chunked` counts once, in however many lines it was sent; `identity` is no transfer coding.
    """
    usable: list[Header] = []
    for raw_name, raw_value in fields:
        name = raw_name.rstrip(b" \t")
        is_token = _IS_TOKEN.fullmatch(name) is not None
        bare = _NOT_IN_A_TOKEN.sub(b"", name).lower()
        frames = bare in _FRAMING or (not (is_token or raw_value) and bare.startswith(tuple(_FRAMING)))
        is_plain = is_token and name == raw_name and _LINE_BREAKING.search(raw_value) is None
        if (frames and not is_plain) or b"\0" in raw_name + raw_value:
            raise RemoteProtocolError(f"odd field line {(raw_name + b':' + raw_value)[:100]!r}")
        if is_token:
            usable.append((name, _without_folds(raw_value)))
    return _with_one_framing(usable)


def _without_folds(value: bytes) -> bytes:
    parts = [_LINE_BREAKING.sub(b" ", part).strip(b" \t") for part in value.split(b"\n")]
    return b" ".join(part for part in parts if part)


def _with_one_framing(fields: list[Header]) -> list[Header]:
    """Return the fields with one Transfer-Encoding if it means `chunked`, with none if it means none."""
    lines = [value.lower() for name, value in fields if name.lower() == b"transfer-encoding"]
    codings = [coding.strip(b" \t") for value in lines for coding in value.split(b",")]
    codings = [coding for coding in codings if coding]
    if lines in ([], [b"chunked"]) or not set(codings) <= {b"chunked", b"identity"}:
        return fields
    if b"chunked" in codings and codings[-1] != b"chunked":  # read to the end of the connection by some
        return fields
    if b"chunked" not in codings and any(name.lower() == b"content-length" for name, _ in fields):
        return fields
    others = [field for field in fields if field[0].lower() != b"transfer-encoding"]
    return [*others, (b"Transfer-Encoding", b"chunked")] if b"chunked" in codings else others


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
