"""The lines of a CDXJ index: one for each record with a response. Pure.

A line has the sort key of the URL, the time, and a JSON object. Keys, values and their order are those of the
package `cdxj-indexer`.
"""

import json
import re
from typing import NamedTuple

import msgspec

from fetchfleet.worker.sink.cdxj.surt import surt

REVISIT_MIME = "warc/revisit"
"""The `mime` of a line for a revisit record, which has no body."""

_INDEXED = frozenset({"response", "revisit"})
_END_OF_HEAD = b"\r\n\r\n"
_NO_DIGITS = re.compile(r"\D")
_AFTER_MIME = re.compile(r"[;\s]")
_SECONDS_DIGITS = 14
_quoted = json.JSONEncoder().encode


class IndexedRecord(msgspec.Struct, frozen=True):
    """The JSON object of a line."""

    url: str
    digest: str
    length: str
    """Size of the record in the segment, in bytes; without its last line breaks if it is not compressed."""
    offset: str
    filename: str
    """The name of the segment."""
    mime: str = ""
    status: str = ""

    @property
    def record_bytes(self) -> int:
        """Size of the whole record in the segment. Raises ValueError."""
        return int(self.length) + _end_bytes(self.filename)


class Capture(NamedTuple):
    """The content of a line, besides the place of its record."""

    url: str
    date: str
    """The WARC-Date."""
    mime: str | None
    """The Content-Type of the response, if there is one, or REVISIT_MIME."""
    status: str | None
    digest: str
    """The WARC-Payload-Digest."""


class RecordHead(NamedTuple):
    """The head of a WARC record, and the head of its HTTP message."""

    fields: dict[str, str]
    """By name in lower case; the first of several with one name."""
    http_start: str
    """The first line of the HTTP message; empty without one."""
    http_fields: dict[str, str]


def head_of(start: bytes) -> RecordHead:
    """Parse the start of a record, which has both heads."""
    head, _, block = start.partition(_END_OF_HEAD)
    _, fields = _head(head)
    if not fields.get("content-type", "").startswith("application/http"):
        return RecordHead(fields, "", {})
    return RecordHead(fields, *_head(block.partition(_END_OF_HEAD)[0]))


def capture_of(start: bytes) -> Capture | None:
    """Return the capture of a record; None if it is of a type that is not indexed.

    start: the start of the record, with the head of its HTTP message.
    """
    fields, http_start, http_fields = head_of(start)
    kind = fields.get("warc-type")
    if kind not in _INDEXED:
        return None
    return Capture(
        url=fields.get("warc-target-uri", ""),
        date=fields.get("warc-date", ""),
        mime=REVISIT_MIME if kind == "revisit" else http_fields.get("content-type"),
        status=http_start.partition(" ")[2].strip().partition(" ")[0] if http_start else None,
        digest=fields.get("warc-payload-digest", ""),
    )


def line_of(capture: Capture, offset: int, length: int, filename: str) -> bytes:
    """Return the line of a record in the segment of this name."""
    url, date, mime, status, digest = capture
    time = _NO_DIGITS.sub("", date)[:_SECONDS_DIGITS]
    members = f'"url": {_quoted(url)}, '  # a dict and `json.dumps` would take twice the time
    if mime is not None:
        members += f'"mime": {_quoted(_AFTER_MIME.split(mime, 1)[0])}, '
    if status is not None:
        members += f'"status": {_quoted(status)}, '
    members += (
        f'"digest": {_quoted(digest)}, "length": "{length - _end_bytes(filename)}", "offset": "{offset}"'
    )
    return f'{surt(url)} {time} {{{members}, "filename": {_quoted(filename)}}}\n'.encode()


_decode = msgspec.json.Decoder(IndexedRecord).decode


def parsed(line: bytes) -> IndexedRecord | None:
    """Return the JSON object of a line; None if the line is malformed."""
    try:
        return _decode(line.split(b" ", 2)[2])
    except (IndexError, msgspec.DecodeError, UnicodeError):
        return None


def _end_bytes(filename: str) -> int:
    """Return the size of a record's last line breaks if the index does not count them, else 0."""
    return 0 if filename.endswith(".gz") else len(_END_OF_HEAD)


def _head(head: bytes) -> tuple[str, dict[str, str]]:
    """Return the first line of a head, and its fields."""
    first, *lines = map(decoded, head.split(b"\r\n"))
    fields: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        fields.setdefault(name.lower(), value.strip())
    return first, fields


def decoded(line: bytes) -> str:
    """Return the text of a line or of a field's value, which may have any bytes."""
    try:
        return line.decode()
    except UnicodeDecodeError:
        return line.decode("iso-8859-1")
