"""Formats the records of a WARC segment (WARC 1.1, ISO 28500:2017), and finds where one ends. Pure."""

import re
from collections.abc import Iterable
from typing import NamedTuple

from fetchfleet.worker.http.wire import Header, Wire

VERSION = b"WARC/1.1\r\n"
END = b"\r\n\r\n"

ORIGINAL = b"X-Orig-"
"""Prefix of a header that described the bytes on the wire, and does not describe the record."""

MAX_HEAD_BYTES = 64 * 1024
"""Limit for the head of a record, generous for the sake of long URLs."""

_LENGTH = re.compile(rb"\r\nContent-Length: ([0-9]{1,18})\r\n", re.IGNORECASE)

_BASE32 = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567".ljust(256)
"""The characters of 32 values, as a table of bytes.translate."""

_BASE32_CHARS = 64
"""Characters that are computed at once: a digest has 52, which are the last ones."""


def _halvings() -> list[tuple[int, int, int]]:
    """Return the steps that spread groups of 5 bits to bytes: the low halves, the high ones, their shift."""
    steps, groups = [], _BASE32_CHARS
    while groups > 1:
        half_bits = 5 * groups // 2
        low = sum((1 << half_bits) - 1 << 8 * at for at in range(0, _BASE32_CHARS, groups))
        steps.append((low, low << half_bits, 3 * groups // 2))
        groups //= 2
    return steps


_HALVINGS = _halvings()

_CHUNKED_FIELD = b"transfer-encoding"


class RecordedExchange(NamedTuple):
    """An exchange to be recorded, without the body of the response."""

    wire: Wire
    fetch_id: str
    date: str
    body: bytes = b""
    """The body of the request."""
    cut: bool = False
    """Whether the request had a body that is not recorded."""


def info(record_id: str, date: str, filename: str, user_agent: str) -> bytes:
    """Return the first record of a segment, which names the software."""
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
    """Return the record of the request."""
    wire = exchange.wire
    lines = _lines(wire.request_headers)
    block = b"%b %b HTTP/1.1\r\n%b\r\n%b" % (wire.method.encode(), wire.target, lines, exchange.body)
    cut = "WARC-Truncated: length\r\n" if exchange.cut else ""
    head = (
        f"WARC/1.1\r\nWARC-Type: request\r\nWARC-Record-ID: <{record_id}>\r\nWARC-Date: {exchange.date}\r\n"
        f"WARC-Target-URI: {wire.url}\r\nWARC-Concurrent-To: <{response_id}>\r\n"
        f"Fetchfleet-ID: {exchange.fetch_id}\r\nContent-Type: application/http;msgtype=request\r\n"
        f"{cut}Content-Length: {len(block)}\r\n\r\n"
    )
    return head.encode() + block + END


def response_head(wire: Wire) -> bytes:
    """Return the head of the response as its record has it.

    HTTP/2 has no text form: its head is written as HTTP/1.1, and the record's WARC-Protocol says h2. Stored
    bodies have no chunks any more, so Transfer-Encoding is renamed.
    """
    version = wire.version if wire.version in {"HTTP/1.0", "HTTP/1.1"} else "HTTP/1.1"
    lines = _lines(wire.headers)
    if _CHUNKED_FIELD in lines.lower():
        lines = _lines(
            [
                (ORIGINAL + name if name.lower() == _CHUNKED_FIELD else name, value)
                for name, value in wire.headers
            ]
        )
    return b"%b %d %b\r\n%b\r\n" % (version.encode(), wire.status, wire.phrase, lines)


def response(
    exchange: RecordedExchange,
    ids: tuple[str, str],
    block_digest: bytes,
    payload_digest: bytes,
    length_bytes: int,
) -> bytes:
    """Return the head of the record of the response.

    ids: the record's own and that of its request. The digests are sha256.
    """
    record_id, request_id = ids
    wire = exchange.wire
    address = f"WARC-IP-Address: {wire.address}\r\n" if wire.address else ""
    protocol = "WARC-Protocol: h2\r\n" if wire.version.startswith("HTTP/2") else ""
    head = (
        f"WARC/1.1\r\nWARC-Type: response\r\nWARC-Record-ID: <{record_id}>\r\nWARC-Date: {exchange.date}\r\n"
        f"WARC-Target-URI: {wire.url}\r\nWARC-Concurrent-To: <{request_id}>\r\n"
        f"Fetchfleet-ID: {exchange.fetch_id}\r\n{address}{protocol}"
        f"WARC-Block-Digest: {digest_text(block_digest)}\r\n"
        f"WARC-Payload-Digest: {digest_text(payload_digest)}\r\n"
        f"Content-Type: application/http;msgtype=response\r\nContent-Length: {length_bytes}\r\n\r\n"
    )
    return head.encode()


def record_id(chance: bytes) -> str:
    """Return the URN of a random UUID (version 4) of these 16 bytes, in a third of the time of `uuid`."""
    digits = chance.hex()
    variant = "89ab"[int(digits[16], 16) & 3]
    return f"urn:uuid:{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{variant}{digits[17:20]}-{digits[20:]}"


def digest_text(sha256: bytes) -> str:
    """Format a digest as WARC tools write and check it: in base32, faster than by `base64`."""
    bits = int.from_bytes(sha256, "big") << 4
    for low, high, shift in _HALVINGS:
        bits = bits & low | (bits & high) << shift
    return f"sha256:{bits.to_bytes(_BASE32_CHARS, 'big')[12:].translate(_BASE32).decode()}===="


def block_bytes(found: bytes) -> tuple[int, int] | None:
    """Return the length of a record's head and of its block; None if the head is incomplete."""
    ends = found.find(END)
    if ends < 0 or not found.startswith(VERSION):
        return None
    length = _LENGTH.search(found, 0, ends + 2)
    return None if length is None else (ends + len(END), int(length[1]))


def _lines(headers: Iterable[Header]) -> bytes:
    return b"\r\n".join([*map(b": ".join, headers), b""])
