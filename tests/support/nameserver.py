"""A scripted nameserver over UDP and TCP on loopback."""

import asyncio
import socket
import struct
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from ipaddress import ip_address
from itertools import pairwise
from typing import Any, NamedTuple

NAME = "origin.example"
A, CNAME, SOA, AAAA = 1, 5, 6, 28
NOERROR, FORMERR, SERVFAIL, NXDOMAIN, REFUSED = 0, 1, 2, 3, 5
MAX_UDP_BYTES = 1232
"""Longer replies are truncated, so that the client repeats the query over TCP (RFC 9715 §3)."""

_ANSWER, _TRUNCATED = 0x8180, 0x0200  # QR, RD and RA; TC (RFC 1035 §4.1.1)
_NEGATIVE_TTL_S = 900


class DnsReply(NamedTuple):
    """The reply to queries for a name."""

    addresses: tuple[str, ...] = ()
    """IPv4 and IPv6; a query gets those of its record type."""
    ttl_s: int = 0
    code: int = NOERROR
    aliases: tuple[tuple[str, str], ...] = ()
    """CNAME records: owner and target."""
    silent: bool = False
    """True to send no reply."""


def addresses(*texts: str, ttl_s: int = 0) -> DnsReply:
    """Return a reply with these addresses, IPv4 and IPv6."""
    return DnsReply(texts, ttl_s)


def cname_chain(*names: str, ends_at: tuple[str, ...] = (), ttl_s: int = 0) -> DnsReply:
    """Return a chain of CNAME records that ends at these addresses."""
    return DnsReply(ends_at, ttl_s, aliases=tuple(pairwise(names)))


def dns_error(code: int) -> DnsReply:
    """Return a reply with this error code."""
    return DnsReply(code=code)


NO_SUCH_NAME = dns_error(NXDOMAIN)
NO_REPLY = DnsReply(silent=True)


class Nameserver:
    """Replies to each name with its `replies` in turn, the last one repeatedly; with NXDOMAIN to others."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.replies: dict[str, list[DnsReply]] = {}
        self.queries: Counter[tuple[str, int]] = Counter()
        """The number of queries by name and record type."""
        self.unanswered: set[int] = set()
        """Record types that get no reply."""
        self.streams: set[asyncio.StreamWriter] = set()

    def query_count(self, name: str = NAME) -> int:
        """Return the number of address queries for a name; an A and an AAAA query count as one."""
        return max(self.queries[name, A], self.queries[name, AAAA])

    def reply_to(self, query: bytes, *, max_bytes: int) -> bytes | None:
        """Return the reply to a query, None to send none."""
        name, kind = _queried(query)
        turn = self.queries[name, kind]
        self.queries[name, kind] += 1
        replies = self.replies.get(name, [NO_SUCH_NAME])
        reply = replies[min(turn, len(replies) - 1)]
        silent = reply.silent or kind in self.unanswered
        return None if silent else _message(query, name, kind, reply, max_bytes)


@asynccontextmanager
async def nameserver(host: str) -> AsyncIterator[Nameserver]:
    """Yield a nameserver that listens on this address, on a free port."""
    loop = asyncio.get_running_loop()
    streams = socket.create_server((host, 0))
    port = streams.getsockname()[1]
    serving = Nameserver(f"{host}:{port}")
    datagrams, _ = await loop.create_datagram_endpoint(lambda: _Datagrams(serving), (host, port))
    server = await asyncio.start_server(lambda *ends: _stream(serving, *ends), sock=streams)
    try:
        yield serving
    finally:
        datagrams.close()
        server.close()
        for stream in serving.streams:
            stream.close()  # since Python 3.12 wait_closed waits for them
        await server.wait_closed()


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, server: Nameserver) -> None:
        self._server = server

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, sender: tuple[str, int]) -> None:
        reply = self._server.reply_to(data, max_bytes=MAX_UDP_BYTES)
        if reply is not None:
            self._transport.sendto(reply, sender)


async def _stream(server: Nameserver, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    server.streams.add(writer)
    try:
        while True:
            (length,) = struct.unpack("!H", await reader.readexactly(2))
            reply = server.reply_to(await reader.readexactly(length), max_bytes=0xFFFF)
            if reply is not None:
                writer.write(struct.pack("!H", len(reply)) + reply)
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


def _queried(message: bytes) -> tuple[str, int]:
    """Return the name and the record type of a query."""
    labels, place = [], 12
    while length := message[place]:
        labels.append(message[place + 1 : place + 1 + length].decode())
        place += 1 + length
    return ".".join(labels).lower(), int.from_bytes(message[place + 1 : place + 3], "big")


def _message(query: bytes, name: str, kind: int, reply: DnsReply, max_bytes: int) -> bytes:
    answers = [_record(owner, CNAME, reply.ttl_s, _encoded(target)) for owner, target in reply.aliases]
    owner = reply.aliases[-1][1] if reply.aliases else name
    answers += [_record(owner, kind, reply.ttl_s, packed) for packed in _packed(reply.addresses, kind)]
    authority = [] if answers else [_record(name, SOA, _NEGATIVE_TTL_S, _soa())]
    question = _encoded(name) + struct.pack("!HH", kind, 1)
    flags = _ANSWER | reply.code
    if 12 + len(question) + sum(map(len, answers)) > max_bytes:
        answers, flags = [], flags | _TRUNCATED
    head = query[:2] + struct.pack("!5H", flags, 1, len(answers), len(authority), 0)
    return head + question + b"".join(answers + authority)


def _packed(addresses: Iterable[str], kind: int) -> list[bytes]:
    version = {A: 4, AAAA: 6}.get(kind)
    return [ip_address(text).packed for text in addresses if ip_address(text).version == version]


def _record(name: str, kind: int, ttl_s: int, data: bytes) -> bytes:
    return _encoded(name) + struct.pack("!HHIH", kind, 1, ttl_s, len(data)) + data


def _soa() -> bytes:
    return _encoded("ns.example") * 2 + struct.pack("!5I", 1, 2, 3, 4, _NEGATIVE_TTL_S)


def _encoded(name: str) -> bytes:
    return b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0"
