"""What a record of a WARC segment looks like (WARC 1.1, ISO 28500:2017), and where whole ones end. Pure."""

import base64
import re
from collections.abc import Iterable
from typing import NamedTuple

from fetchfleet.worker.http.wire import Header, Wire

VERSION = b"WARC/1.1\r\n"
END = b"\r\n\r\n"
CRLF = b"\r\n"

ORIGINAL = b"X-Orig-"
"""Goes before the name of a field that was true of the wire and is not of the record."""

MAX_HEAD_BYTES = 64 * 1024
"""Of a record's own head: longer than any that we write, but for the URL's sake."""

_LENGTH = re.compile(rb"\r\nContent-Length: ([0-9]{1,18})\r\n", re.IGNORECASE)

Field = tuple[str, str]


class Sent(NamedTuple):
    """One exchange, to be recorded: its heads and what the request brought along.

    cut: the request had a body that is not here.
    """

    wire: Wire
    fetch_id: str
    date: str
    body: bytes = b""
    cut: bool = False


def head(kind: str, record_id: str, date: str, fields: Iterable[Field], length_bytes: int) -> bytes:
    """The head of a record of that kind, up to its block; of so many bytes that is."""
    named = (("WARC-Type", kind), ("WARC-Record-ID", f"<{record_id}>"), ("WARC-Date", date), *fields)
    lines = "".join(f"{name}: {value}\r\n" for name, value in named)
    return VERSION + lines.encode() + b"Content-Length: %d\r\n\r\n" % length_bytes


def info(record_id: str, date: str, filename: str, user_agent: str) -> bytes:
    """The first record of a segment: what made it."""
    said = (
        ("software", "fetchfleet"),
        ("format", "WARC File Format 1.1"),
        ("conformsTo", "http://iipc.github.io/warc-specifications/specifications/warc-format/warc-1.1/"),
        ("http-header-user-agent", user_agent),
    )
    block = "".join(f"{name}: {value}\r\n" for name, value in said).encode()
    fields = (("WARC-Filename", filename), ("Content-Type", "application/warc-fields"))
    return head("warcinfo", record_id, date, fields, len(block)) + block + END


def request(sent: Sent, record_id: str, response_id: str) -> bytes:
    """The record of the request."""
    wire = sent.wire
    block = b"%s %s HTTP/1.1\r\n%s\r\n" % (wire.method.encode(), wire.target, _lines(wire.request_headers))
    block += sent.body
    fields = [
        *_of(sent, response_id),
        ("Content-Type", "application/http;msgtype=request"),
        *((("WARC-Truncated", "length"),) if sent.cut else ()),
    ]
    return head("request", record_id, sent.date, fields, len(block)) + block + END


def response_head(wire: Wire) -> bytes:
    """The head of the answer, as its record has it.

    HTTP/2 has no text of its own: it is written as HTTP/1.1, and the record's WARC-Protocol says so. The
    chunks of HTTP/1.1 are gone by the time that a body is kept, so Transfer-Encoding has another name.
    """
    version = wire.version if wire.version in {"HTTP/1.0", "HTTP/1.1"} else "HTTP/1.1"
    line = b"%s %d %s\r\n" % (version.encode(), wire.status, wire.phrase)
    return line + _lines(_true_of_the_record(header) for header in wire.headers) + CRLF


def response(
    sent: Sent, ids: tuple[str, str], block_digest: bytes, payload_digest: bytes, length_bytes: int
) -> bytes:
    """The head of the record of the answer; ids: its own and its request's; the digests are sha256."""
    record_id, request_id = ids
    wire = sent.wire
    fields = [
        *_of(sent, request_id),
        *((("WARC-IP-Address", wire.address),) if wire.address else ()),
        *((("WARC-Protocol", "h2"),) if wire.version.startswith("HTTP/2") else ()),
        ("WARC-Block-Digest", digest_text(block_digest)),
        ("WARC-Payload-Digest", digest_text(payload_digest)),
        ("Content-Type", "application/http;msgtype=response"),
    ]
    return head("response", record_id, sent.date, fields, length_bytes)


def digest_text(sha256: bytes) -> str:
    """A digest as WARC tools write and check it."""
    return "sha256:" + base64.b32encode(sha256).decode()


def block_bytes(found: bytes) -> tuple[int, int] | None:
    """How long a record's head is and the block after it; None if no whole head is there."""
    ends = found.find(END)
    if ends < 0 or not found.startswith(VERSION):
        return None
    said = _LENGTH.search(found, 0, ends + 2)
    return None if said is None else (ends + len(END), int(said[1]))


def _of(sent: Sent, other_id: str) -> tuple[Field, ...]:
    return (
        ("WARC-Target-URI", sent.wire.url),
        ("WARC-Concurrent-To", f"<{other_id}>"),
        ("Fetchfleet-ID", sent.fetch_id),
    )


def _true_of_the_record(header: Header) -> Header:
    name, value = header
    return (ORIGINAL + name, value) if name.lower() == b"transfer-encoding" else header


def _lines(headers: Iterable[Header]) -> bytes:
    return b"".join(b"%s: %s\r\n" % header for header in headers)
