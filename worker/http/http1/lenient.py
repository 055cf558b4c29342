"""A lenient parser for header sections that llhttp rejects, if their meaning is unambiguous. Pure.

A malformed field that the worker does not need must not cost the body. Fields that frame the body are parsed
strictly: if two readers disagree on its length, one response can be smuggled into another.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from fetchfleet.worker.errors import RemoteProtocolError
from fetchfleet.worker.http.wire import Header

_FRAMING = frozenset({b"content-length", b"transfer-encoding"})

_CONTROL = re.compile(rb"[\0-\x08\x0b-\x1f\x7f]")
_HIDDEN_FRAMING = re.compile(rb"[\0\v\f\r][ \t]*(?:content-length|transfer-encoding)", re.IGNORECASE)
_IS_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]++")  # RFC 9110 §5.6.2
_NOT_IN_A_TOKEN = re.compile(rb"[^!#$%&'*+.^_`|~0-9A-Za-z-]")
_LINE_BREAKING = re.compile(rb"[\v\f\r\n]")
_STATUS_LINE = re.compile(rb"HTTP/1\.([0-9]) ([0-9]{3})(?: (.*))?", re.DOTALL)


class LenientReading(NamedTuple):
    """The status line and the fields of a response."""

    status: int
    phrase: bytes
    version: str
    fields: list[Header]
    needed: bool
    """True if the header section violates the grammar; llhttp also rejects some valid ones."""


def read_leniently(head: bytes) -> LenientReading:
    """Parse a header section that llhttp rejects. Raises RemoteProtocolError if its meaning is ambiguous."""
    if hidden := _HIDDEN_FRAMING.search(head):
        raise RemoteProtocolError(f"framing field after a character that may end a line: {hidden[0]!r}")
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
        raise RemoteProtocolError(f"malformed status line: {first[:100]!r}")
    conforms = (
        fields == sent
        and status_line == first.rstrip(b" ")
        and _CONTROL.search(head.replace(b"\r\n", b"")) is None
    )
    version = "HTTP/1.0" if match[1] == b"0" else "HTTP/1.1"
    return LenientReading(int(match[2]), match[3] or b"", version, fields, not conforms)


def usable_fields(fields: Sequence[Header]) -> list[Header]:
    """Return the fields with a valid name, in order. Raises RemoteProtocolError if a field is ambiguous.

    fields: as they were sent, folds included; a line without a colon is a name that begins with a space.

    - Whitespace between a name and its colon is dropped (RFC 9112 §5.1).
    - Folds, line ends, vertical tabs and form feeds in a value become a space (RFC 9110 §5.5, RFC 9112 §5.2).
      A NUL is rejected, as some readers end a value there.
    - Several `chunked` count as one; `identity` is not a transfer coding.
    """
    usable: list[Header] = []
    for raw_name, raw_value in fields:
        name = raw_name.rstrip(b" \t")
        is_token = _IS_TOKEN.fullmatch(name) is not None
        bare = _NOT_IN_A_TOKEN.sub(b"", name).lower()
        frames = bare in _FRAMING or (not (is_token or raw_value) and bare.startswith(tuple(_FRAMING)))
        is_plain = is_token and name == raw_name and _LINE_BREAKING.search(raw_value) is None
        if (frames and not is_plain) or b"\0" in raw_name + raw_value:
            raise RemoteProtocolError(f"ambiguous field line: {(raw_name + b':' + raw_value)[:100]!r}")
        if is_token:
            usable.append((name, _without_folds(raw_value)))
    return _with_one_framing(usable)


def _without_folds(value: bytes) -> bytes:
    parts = [_LINE_BREAKING.sub(b" ", part).strip(b" \t") for part in value.split(b"\n")]
    return b" ".join(part for part in parts if part)


def _with_one_framing(fields: list[Header]) -> list[Header]:
    """Return the fields with one Transfer-Encoding for several `chunked`, and without `identity`.

    Ambiguous ones stay as they are; `body_length` rejects them.
    """
    lines = [value.lower() for name, value in fields if name.lower() == b"transfer-encoding"]
    codings = [coding.strip(b" \t") for value in lines for coding in value.split(b",")]
    codings = [coding for coding in codings if coding]
    if lines in ([], [b"chunked"]) or not set(codings) <= {b"chunked", b"identity"}:
        return fields
    if b"chunked" in codings and codings[-1] != b"chunked":  # some readers read to the end of the connection
        return fields
    if b"chunked" not in codings and any(name.lower() == b"content-length" for name, _ in fields):
        return fields
    others = [field for field in fields if field[0].lower() != b"transfer-encoding"]
    return [*others, (b"Transfer-Encoding", b"chunked")] if b"chunked" in codings else others
