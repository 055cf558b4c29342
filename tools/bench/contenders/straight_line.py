"""The lower bound of the cost of a fetch in Python, at each layer, without fetchfleet.

    python -m tools.bench.contenders.straight_line LAYER URLS OUT REDIS

LAYER is one of LAYERS, REDIS a Unix socket. Prints the CPU time of the process and the duration of the work,
in seconds, as JSON. No layer has retries, resumption, leases, rate limits or checks.
"""

import asyncio
import hashlib
import json
import os
import queue
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Awaitable, Coroutine, Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import NamedTuple, cast
from urllib.parse import urlsplit

import httptools
import msgspec
import uvloop
from redis.asyncio import Redis

PER_HOST = 8
CLAIMED = 16
FILES_A_BATCH = 64
SETTLE_EVERY_S = 0.02
RECEIVE_BYTES = 1 << 16
DONE = "done"
"""The stream of results in Redis."""

Claimed = Awaitable[list[bytes] | None]


class Target(NamedTuple):
    """A parsed URL, and its request."""

    name: str
    host: str
    port: int
    request: bytes


class Claim(msgspec.Struct):
    """A fetch that waits in Redis."""

    id: str
    url: str
    method: str = "GET"
    attempts: int = 0
    deadline_ms: int = 0


class Ended(msgspec.Struct):
    """The result of a fetch, which is also its log line."""

    id: str
    url: str
    outcome: str
    status: int
    bytes: int
    sha256: str
    path: str
    attempts: int
    ttfb_ms: float
    total_ms: float


def target(url: str) -> Target:
    """Parse a URL and build its request."""
    parts = urlsplit(url)
    fields = f"Host: {parts.netloc}\r\nUser-Agent: lower bound\r\nAccept: */*\r\nAccept-Encoding: identity"
    request = f"GET {parts.path} HTTP/1.1\r\n{fields}\r\n\r\n".encode()
    return Target(parts.path.rpartition("/")[2], parts.hostname or "", parts.port or 80, request)


def by_host(targets: Iterable[Target]) -> Iterator[tuple[str, list[Target]]]:
    """Yield each host with its targets."""
    for host, own in groupby(sorted(targets, key=lambda to: to.host), lambda to: to.host):
        yield host, list(own)


def loopback(targets: list[Target]) -> None:
    """Send each request and receive its response, on one connection a host.

    Only the Content-Length of the first response is parsed: all responses have the same size.
    """
    buffer = bytearray(RECEIVE_BYTES)
    for host, own in by_host(targets):
        with socket.create_connection((host, own[0].port)) as connection:
            connection.sendall(own[0].request)
            received = connection.recv(RECEIVE_BYTES)
            head, _, body = received.partition(b"\r\n\r\n")
            [length] = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
            whole = len(head) + 4 + int(length.partition(b":")[2])
            left = whole - len(head) - 4 - len(body)
            for to in own[1:]:
                while left:
                    left -= connection.recv_into(buffer)
                connection.sendall(to.request)
                left = whole
            while left:
                left -= connection.recv_into(buffer)


def files(targets: list[Target], out: Path, size_bytes: int) -> None:
    """Create a file for each target, write a body to it and rename it."""
    body = os.urandom(size_bytes)
    for to in targets:
        store(out, to.name, [body])


def digests(targets: list[Target], size_bytes: int) -> None:
    """Compute the SHA-256 of a body for each target."""
    body = os.urandom(size_bytes)
    for _ in targets:
        hashlib.sha256(body).hexdigest()


def store(out: Path, name: str, body: Iterable[bytes]) -> None:
    """Write a body to a temporary file and rename it, so that the file appears complete."""
    part, final = f"{out}/.{name}", f"{out}/{name}"
    file = os.open(part, os.O_CREAT | os.O_WRONLY, 0o644)
    for piece in body:
        os.write(file, piece)
    os.close(file)
    os.rename(part, final)  # noqa: PTH104 the fastest form


class Connection(asyncio.Protocol):
    """A connection that makes one exchange at a time; `status` and `body` are those of its last response."""

    def __init__(self) -> None:
        self.status = 0
        self.body: list[bytes] = []
        self.first_s = 0.0
        self._transport: asyncio.Transport | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._done: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport for requests."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is not a subclass

    def data_received(self, data: bytes) -> None:
        """Feed the parser."""
        if not self.first_s:
            self.first_s = time.monotonic()
        assert self._parser is not None
        self._parser.feed_data(data)

    def on_headers_complete(self) -> None:
        """Store the status."""
        assert self._parser is not None
        self.status = self._parser.get_status_code()

    def on_body(self, piece: bytes) -> None:
        """Store a piece of the body."""
        self.body.append(piece)

    def on_message_complete(self) -> None:
        """End the exchange."""
        assert self._done is not None
        self._done.set_result(None)

    async def get(self, request: bytes) -> None:
        """Send a request; return when the response is complete."""
        self._parser, self.body, self.first_s = httptools.HttpResponseParser(self), [], 0.0
        self._done = asyncio.get_running_loop().create_future()
        assert self._transport is not None
        self._transport.write(request)
        await self._done
        if self.status != 200:
            raise RuntimeError(f"status {self.status}")

    def close(self) -> None:
        """Close the connection."""
        assert self._transport is not None
        self._transport.close()


async def client(targets: list[Target]) -> None:
    """Fetch each target with httptools on uvloop; drop the bodies."""
    loop = asyncio.get_running_loop()

    async def one(waiting: deque[Target]) -> None:
        _, connection = await loop.create_connection(Connection, waiting[0].host, waiting[0].port)
        while waiting:
            await connection.get(waiting.popleft().request)
        connection.close()

    lanes = [deque(own) for _, own in by_host(targets)]
    async with asyncio.TaskGroup() as group:
        for waiting in lanes:
            for _ in range(min(PER_HOST, len(waiting))):
                group.create_task(one(waiting))


class FileThread(threading.Thread):
    """A thread that stores bodies in batches, each with its SHA-256."""

    def __init__(self, out: Path) -> None:
        super().__init__(daemon=True)
        self._out = out
        self._loop = asyncio.get_running_loop()
        self._queue: queue.SimpleQueue[tuple[asyncio.Future[str], str, list[bytes]]] = queue.SimpleQueue()

    def store(self, name: str, body: list[bytes]) -> asyncio.Future[str]:
        """Store a body; the future's result is its digest."""
        stored: asyncio.Future[str] = self._loop.create_future()
        self._queue.put((stored, name, body))
        return stored

    def run(self) -> None:
        """Store until the process ends."""
        while True:
            batch = [self._queue.get()]
            while len(batch) < FILES_A_BATCH and not self._queue.empty():
                batch.append(self._queue.get())
            done = []
            for stored, name, body in batch:
                digest = hashlib.sha256()
                for piece in body:
                    digest.update(piece)
                store(self._out, name, body)
                done.append((stored, digest.hexdigest()))
            self._loop.call_soon_threadsafe(self._report, done)

    @staticmethod
    def _report(done: list[tuple[asyncio.Future[str], str]]) -> None:
        for stored, digest in done:
            stored.set_result(digest)


class StraightLine:
    """The minimal worker: claims from Redis, an exchange, a digest, a file, a log line, a result in Redis."""

    def __init__(self, redis: Redis, out: Path) -> None:
        self._redis = redis
        self._files = FileThread(out)
        self._log = (out / "log").open("wb")
        self.stored = 0
        self._results: list[bytes] = []
        self._decode = msgspec.json.Decoder(Claim).decode
        self._encode = msgspec.json.Encoder().encode

    async def run(self, lanes: Iterable[str]) -> None:
        """Run every fetch that waits in the lanes."""
        self._files.start()
        ended = asyncio.Event()
        settling = asyncio.create_task(self._settle(ended))
        async with asyncio.TaskGroup() as group:
            for lane in lanes:
                group.create_task(self._serve(lane))
        ended.set()
        await settling
        self._log.close()

    async def _serve(self, lane: str) -> None:
        ready: deque[bytes] = deque()
        idle: list[Connection] = []
        running: set[asyncio.Task[None]] = set()
        one_ended = asyncio.Event()

        def end(task: asyncio.Task[None]) -> None:
            running.discard(task)
            one_ended.set()

        more = True
        while more or ready or running:
            if more and not ready:
                claimed = await cast("Claimed", self._redis.lpop(lane, CLAIMED))
                more = bool(claimed)
                ready.extend(claimed or ())
            while ready and len(running) < PER_HOST:
                task = asyncio.create_task(self._fetch(self._decode(ready.popleft()), idle))
                running.add(task)
                task.add_done_callback(end)
            if running:
                one_ended.clear()
                await one_ended.wait()
        for connection in idle:
            connection.close()

    async def _fetch(self, claim: Claim, idle: list[Connection]) -> None:
        began_s, to = time.monotonic(), target(claim.url)
        if idle:
            connection = idle.pop()
        else:
            loop = asyncio.get_running_loop()
            _, connection = await loop.create_connection(Connection, to.host, to.port)
        await connection.get(to.request)
        status, body, first_s = connection.status, connection.body, connection.first_s
        idle.append(connection)
        digest = await self._files.store(to.name, body)
        ttfb_ms, total_ms = (first_s - began_s) * 1e3, (time.monotonic() - began_s) * 1e3
        size = sum(map(len, body))
        times = (claim.attempts + 1, ttfb_ms, total_ms)
        ended = Ended(claim.id, claim.url, "stored", status, size, digest, to.name, *times)
        line = self._encode(ended)
        self._log.write(line + b"\n")
        self._results.append(line)
        self.stored += 1

    async def _settle(self, ended: asyncio.Event) -> None:
        while not ended.is_set():
            await asyncio.sleep(SETTLE_EVERY_S)
            await self._write_results()

    async def _write_results(self) -> None:
        if self._results:
            results, self._results = self._results, []
            pipe = self._redis.pipeline(transaction=False)
            for line in results:
                pipe.xadd(DONE, {"result": line})
            await pipe.execute()


def work(layer: str, urls: list[str], out: Path, redis_socket: str) -> tuple[float, float]:
    """Do the work of a layer; return the CPU time of this process and the duration, in seconds."""
    targets = [target(url) for url in urls]
    size_bytes = 10_000
    simple = {
        "loopback": lambda: loopback(targets),
        "file": lambda: files(targets, out, size_bytes),
        "digest": lambda: digests(targets, size_bytes),
    }

    async def straight() -> tuple[float, float]:
        async with Redis(unix_socket_path=redis_socket) as redis:
            pipe = redis.pipeline(transaction=False)
            for number, (url, to) in enumerate(zip(urls, targets, strict=True)):
                pipe.rpush(to.host, msgspec.json.encode(Claim(f"{number:016x}", url)))
            await pipe.execute()
            line = StraightLine(redis, out)
            timed = await _timed(line.run([host for host, _ in by_host(targets)]))
            if line.stored != len(urls):
                raise RuntimeError(f"{line.stored} of {len(urls)} were stored")
            return timed

    if layer in simple:
        began_s, cpu_s = time.monotonic(), time.process_time()
        simple[layer]()
        return time.process_time() - cpu_s, time.monotonic() - began_s
    return uvloop.run(_timed(client(targets)) if layer == "client" else straight())


async def _timed(doing: Coroutine[None, None, None]) -> tuple[float, float]:
    began_s, cpu_s = time.monotonic(), time.process_time()
    await doing
    return time.process_time() - cpu_s, time.monotonic() - began_s


LAYERS = ("loopback", "file", "digest", "client", "straight line")

if __name__ == "__main__":
    used_s, took_s = work(sys.argv[1], Path(sys.argv[2]).read_text().split(), Path(sys.argv[3]), sys.argv[4])
    print(json.dumps({"cpu_s": used_s, "took_s": took_s}))
