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
"""Longer responses are truncated, so that the client asks again over TCP (RFC 9715 §3)."""

_ANSWER, _TRUNCATED = 0x8180, 0x0200  # QR, RD and RA; TC (RFC 1035 §4.1.1)
_NEGATIVE_TTL_S = 900


class Says(NamedTuple):
    """The response for a name."""

    addresses: tuple[str, ...] = ()
    ttl_s: int = 0
    code: int = NOERROR
    aliases: tuple[tuple[str, str], ...] = ()
    silent: bool = False


def at(*addresses: str, ttl_s: int = 0) -> Says:
    """Return a response with these addresses, IPv4 and IPv6."""
    return Says(addresses, ttl_s)


def alias(*names: str, ends_at: tuple[str, ...] = (), ttl_s: int = 0) -> Says:
    """Return a chain of CNAME records that ends at these addresses."""
    return Says(ends_at, ttl_s, aliases=tuple(pairwise(names)))


def fails(code: int) -> Says:
    """Return an error response."""
    return Says(code=code)


NO_SUCH_NAME = fails(NXDOMAIN)
SILENCE = Says(silent=True)


class Nameserver:
    """Responds by `says`: for each name its responses in turn, the last one repeated; NXDOMAIN for others."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.says: dict[str, list[Says]] = {}
        self.questions: Counter[tuple[str, int]] = Counter()
        self.mute: set[int] = set()
        """Record types without a response."""
        self.streams: set[asyncio.StreamWriter] = set()

    def asked(self, name: str = NAME) -> int:
        """Return the number of address queries for a name."""
        return max(self.questions[name, A], self.questions[name, AAAA])

    def answer(self, question: bytes, *, most_bytes: int) -> bytes | None:
        """Return the response to a query, None for no response."""
        name, kind = _asked_for(question)
        turn, self.questions[name, kind] = self.questions[name, kind], self.questions[name, kind] + 1
        turns = self.says.get(name, [NO_SUCH_NAME])
        says = turns[min(turn, len(turns) - 1)]
        silent = says.silent or kind in self.mute
        return None if silent else _message(question, name, kind, says, most_bytes)


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

    def datagram_received(self, data: bytes, whence: tuple[str, int]) -> None:
        answer = self._server.answer(data, most_bytes=MAX_UDP_BYTES)
        if answer is not None:
            self._transport.sendto(answer, whence)


async def _stream(server: Nameserver, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    server.streams.add(writer)
    try:
        while True:
            (length,) = struct.unpack("!H", await reader.readexactly(2))
            answer = server.answer(await reader.readexactly(length), most_bytes=0xFFFF)
            if answer is not None:
                writer.write(struct.pack("!H", len(answer)) + answer)
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


def _asked_for(message: bytes) -> tuple[str, int]:
    labels, place = [], 12
    while length := message[place]:
        labels.append(message[place + 1 : place + 1 + length].decode())
        place += 1 + length
    return ".".join(labels).lower(), int.from_bytes(message[place + 1 : place + 3], "big")


def _message(question: bytes, name: str, kind: int, says: Says, most_bytes: int) -> bytes:
    answers = [_record(of, CNAME, says.ttl_s, _spelt(to)) for of, to in says.aliases]
    owner = says.aliases[-1][1] if says.aliases else name
    answers += [_record(owner, kind, says.ttl_s, packed) for packed in _packed(says.addresses, kind)]
    authority = [] if answers else [_record(name, SOA, _NEGATIVE_TTL_S, _soa())]
    asked = _spelt(name) + struct.pack("!HH", kind, 1)
    flags = _ANSWER | says.code
    if 12 + len(asked) + sum(map(len, answers)) > most_bytes:
        answers, flags = [], flags | _TRUNCATED
    head = question[:2] + struct.pack("!5H", flags, 1, len(answers), len(authority), 0)
    return head + asked + b"".join(answers + authority)


def _packed(addresses: Iterable[str], kind: int) -> list[bytes]:
    version = {A: 4, AAAA: 6}.get(kind)
    return [ip_address(text).packed for text in addresses if ip_address(text).version == version]


def _record(name: str, kind: int, ttl_s: int, data: bytes) -> bytes:
    return _spelt(name) + struct.pack("!HHIH", kind, 1, ttl_s, len(data)) + data


def _soa() -> bytes:
    return _spelt("ns.example") * 2 + struct.pack("!5I", 1, 2, 3, 4, _NEGATIVE_TTL_S)


def _spelt(name: str) -> bytes:
    return b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0"
