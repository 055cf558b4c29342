"""Formats WARC records (WARC 1.1, ISO 28500:2017), and parses their length. Pure."""

import itertools
import re
from collections.abc import Iterable
from typing import NamedTuple

from fetchfleet.worker.http.wire import Header, Wire
from fetchfleet.worker.sink.cdxj.line import REVISIT_MIME, Capture, decoded

VERSION = b"WARC/1.1\r\n"
END = b"\r\n\r\n"

ORIGINAL_PREFIX = b"X-Orig-"
"""Prefix of a header that describes the bytes on the wire, but not the stored body."""

MAX_HEAD_BYTES = 64 * 1024
"""The maximum size of a record's head, which has the URL."""

_LENGTH = re.compile(rb"\r\nContent-Length: ([0-9]{1,18})\r\n", re.IGNORECASE)

_BASE32 = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567".ljust(256)
"""The base32 alphabet (RFC 4648) as a table for bytes.translate."""

_BASE32_CHARS = 64
"""Characters that are computed at once. The 52 of a digest are the last ones."""


def _halvings() -> list[tuple[int, int, int]]:
    """Return the steps that spread groups of 5 bits to bytes: masks of low and high half, and a shift."""
    steps, groups = [], _BASE32_CHARS
    while groups > 1:
        half_bits = 5 * groups // 2
        low = sum((1 << half_bits) - 1 << 8 * at for at in range(0, _BASE32_CHARS, groups))
        steps.append((low, low << half_bits, 3 * groups // 2))
        groups //= 2
    return steps


_HALVINGS = _halvings()

_CHUNKED_FIELD = b"transfer-encoding"

IDENTICAL_PAYLOAD = "http://netpreserve.org/warc/1.1/revisit/identical-payload-digest"
"""The profile of revisit records of responses with the body of an earlier one."""


class RecordedExchange(NamedTuple):
    """An exchange to be recorded, without the body of the response."""

    wire: Wire
    fetch_id: str
    date: str
    """The WARC-Date of its records."""
    request_body: bytes = b""
    body_omitted: bool = False
    """The request had a body that is not recorded."""

    def capture(self, payload_digest: str, *, revisit: bool) -> Capture:
        """Return the capture of the response or revisit record, for the index."""
        wire = self.wire
        values = (decoded(value).strip() for name, value in wire.headers if name.lower() == b"content-type")
        mime = REVISIT_MIME if revisit else next(values, None)
        return Capture(wire.url, self.date, mime, str(wire.status), payload_digest)


class OriginalRecord(NamedTuple):
    """The response record that has the body of a revisit record."""

    path: str
    """Its segment, relative to the out folder."""
    offset: int
    length: int
    record_id: str = ""
    """Its WARC-Record-ID, in angle brackets."""
    url: str = ""
    date: str = ""
    """Its WARC-Date."""


def info(record_id: str, date: str, filename: str, user_agent: str) -> bytes:
    """Return the warcinfo record, the first record of a segment."""
    fields = (
        ("software", "fetchfleet"),
        ("format", "WARC File Format 1.1"),
        ("conformsTo", "http://iipc.github.io/warc-specifications/specifications/warc-format/warc-1.1/"),
        ("http-header-user-agent", user_agent),
    )
    block = "".join(f"{name}: {value}\r\n" for name, value in fields).encode()
    head = (
        f"WARC/1.1\r\nWARC-Type: warcinfo\r\nWARC-Record-ID: <{record_id}>\r\nWARC-Date: {date}\r\n"
        f"WARC-Filename: {filename}\r\nContent-Type: application/warc-fields\r\n"
        f"Content-Length: {len(block)}\r\n\r\n"
    )
    return head.encode() + block + END


def request(exchange: RecordedExchange, record_id: str, response_id: str) -> bytes:
    """Return the request record."""
    wire = exchange.wire
    lines = _lines(wire.request_headers)
    block = b"%b %b HTTP/1.1\r\n%b\r\n%b" % (wire.method.encode(), wire.target, lines, exchange.request_body)
    truncated = "WARC-Truncated: length\r\n" if exchange.body_omitted else ""
    head = (
        f"WARC/1.1\r\nWARC-Type: request\r\nWARC-Record-ID: <{record_id}>\r\nWARC-Date: {exchange.date}\r\n"
        f"WARC-Target-URI: {wire.url}\r\nWARC-Concurrent-To: <{response_id}>\r\n"
        f"Fetchfleet-ID: {exchange.fetch_id}\r\nContent-Type: application/http;msgtype=request\r\n"
        f"{truncated}Content-Length: {len(block)}\r\n\r\n"
    )
    return head.encode() + block + END


def response_head(wire: Wire) -> bytes:
    """Return the head of the HTTP response, as it is recorded.

    An HTTP/2 head, which has no text form, is written as HTTP/1.1; the record's WARC-Protocol is h2. Stored
    bodies are not chunked, so Transfer-Encoding is renamed.
    """
    version = wire.version if wire.version in {"HTTP/1.0", "HTTP/1.1"} else "HTTP/1.1"
    lines = _lines(wire.headers)
    if _CHUNKED_FIELD in lines.lower():
        lines = _lines(
            [
                (ORIGINAL_PREFIX + name if name.lower() == _CHUNKED_FIELD else name, value)
                for name, value in wire.headers
            ]
        )
    return b"%b %d %b\r\n%b\r\n" % (version.encode(), wire.status, wire.phrase, lines)


def response(
    exchange: RecordedExchange, ids: tuple[str, str], http_head: bytes, payload_digest: str, body_bytes: int
) -> bytes:
    """Return the response record up to the body.

    ids: the IDs of this record and of its request record. payload_digest: in the form of the field.
    """
    length_bytes = len(http_head) + body_bytes
    return _response_head(exchange, "response", ids, payload_digest, length_bytes) + http_head


def revisit(
    exchange: RecordedExchange,
    ids: tuple[str, str],
    http_head: bytes,
    payload_digest: str,
    original: OriginalRecord,
) -> bytes:
    """Return the revisit record of a response with the body of another record (WARC 1.1, section 6.7.2)."""
    fields = (
        f"WARC-Profile: {IDENTICAL_PAYLOAD}\r\n"
        f"WARC-Refers-To: {original.record_id}\r\n"
        f"WARC-Refers-To-Target-URI: {original.url}\r\n"
        f"WARC-Refers-To-Date: {original.date}\r\n"
        "WARC-Truncated: length\r\n"
    )
    head = _response_head(exchange, "revisit", ids, payload_digest, len(http_head), fields)
    return head + http_head + END


def _response_head(
    exchange: RecordedExchange,
    kind: str,
    ids: tuple[str, str],
    payload_digest: str,
    length_bytes: int,
    fields: str = "",
) -> bytes:
    """Return the head of a record of a response. fields: those of its kind alone.

    It has no WARC-Block-Digest, which would be a second hash of the whole body.
    """
    record_id, request_id = ids
    wire = exchange.wire
    address = f"WARC-IP-Address: {wire.address}\r\n" if wire.address else ""
    protocol = "WARC-Protocol: h2\r\n" if wire.version.startswith("HTTP/2") else ""
    head = (
        f"WARC/1.1\r\nWARC-Type: {kind}\r\nWARC-Record-ID: <{record_id}>\r\nWARC-Date: {exchange.date}\r\n"
        f"WARC-Target-URI: {wire.url}\r\nWARC-Concurrent-To: <{request_id}>\r\n"
        f"Fetchfleet-ID: {exchange.fetch_id}\r\n{address}{protocol}{fields}"
        f"WARC-Payload-Digest: {payload_digest}\r\n"
        f"Content-Type: application/http;msgtype=response\r\nContent-Length: {length_bytes}\r\n\r\n"
    )
    return head.encode()


class RecordIds:
    """Makes the IDs of a worker's records: UUIDs of version 8 (RFC 9562). Thread-safe.

    The first 10 bytes are random, and the last 6 a counter. Random bytes for each record cost a system call.
    """

    def __init__(self, random_bytes: bytes) -> None:
        digits = random_bytes[:10].hex()
        variant = "89ab"[int(digits[16], 16) & 3]
        self._prefix = f"urn:uuid:{digits[:8]}-{digits[8:12]}-8{digits[13:16]}-{variant}{digits[17:20]}-"
        self._numbers = itertools.count()

    def next(self) -> str:
        """Return the URN of a new ID."""
        return f"{self._prefix}{next(self._numbers):012x}"


def digest_text(sha256: bytes) -> str:
    """Format a digest in base32, as WARC tools expect. Faster than `base64`."""
    bits = int.from_bytes(sha256, "big") << 4
    for low, high, shift in _HALVINGS:
        bits = bits & low | (bits & high) << shift
    return f"sha256:{bits.to_bytes(_BASE32_CHARS, 'big')[12:].translate(_BASE32).decode()}===="


def block_bytes(record: bytes) -> tuple[int, int] | None:
    """Return the sizes of a record's head and block; None if the head is incomplete or not WARC 1.1."""
    ends = record.find(END)
    if ends < 0 or not record.startswith(VERSION):
        return None
    length = _LENGTH.search(record, 0, ends + 2)
    return None if length is None else (ends + len(END), int(length[1]))


def _lines(headers: Iterable[Header]) -> bytes:
    return b"\r\n".join([*map(b": ".join, headers), b""])
