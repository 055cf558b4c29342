"""Behaviours for the recording origin."""

import asyncio
import hashlib
import itertools
import time
from collections import Counter
from collections.abc import (
    Callable,
    Iterable,
    Iterator,
    Mapping,
)
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import lru_cache

from tools.origin.server import BLOCK_BYTES, Behaviour, Exchange, Headers


def ok(body: bytes | Callable[[str], bytes] = b"ok", headers: Headers = ()) -> Behaviour:
    """Respond with 200 and a body; a callable makes the body from the target."""

    async def answer(x: Exchange) -> None:
        await x.respond(200, headers, body(x.request.target) if callable(body) else body)

    return answer


def status(code: int, headers: Headers = (), body: bytes = b"") -> Behaviour:
    """Respond with this status."""

    async def answer(x: Exchange) -> None:
        await x.respond(code, headers, body)

    return answer


OK = ok()
NOT_FOUND = status(404)


def redirect(location: str | Callable[[str], str], code: int = 302) -> Behaviour:
    """Redirect to a location; a callable makes the location from the target."""

    async def answer(x: Exchange) -> None:
        target = location(x.request.target) if callable(location) else location
        await x.respond(code, [("Location", target)])

    return answer


def set_cookie(*cookies: str, body: bytes = b"ok") -> Behaviour:
    """Respond with 200 and one Set-Cookie field for each cookie ("name=value; Path=/")."""
    return ok(body, [("Set-Cookie", cookie) for cookie in cookies])


def chunked(chunks: Iterable[bytes]) -> Behaviour:
    """Respond with 200 and a body in these chunks, none of which may be empty."""
    pieces = tuple(chunks)

    async def answer(x: Exchange) -> None:
        await x.send_head(200, [("Transfer-Encoding", "chunked")])
        for piece in pieces:
            await x.send(_chunk(piece))
        await x.send(_chunk(b""))

    return answer


def big(size_bytes: int) -> "Big":
    """Respond with 200 and a deterministic body of this size; `.sha256` is its digest."""
    return Big(size_bytes)


@dataclass(frozen=True)
class Big:
    """The behaviour of `big`."""

    size_bytes: int

    @property
    def sha256(self) -> str:
        """The body's digest in hex, computed once for each size."""
        return _big_sha256(self.size_bytes)

    async def __call__(self, x: Exchange) -> None:
        """Stream the body in blocks."""
        await x.send_head(200, [("Content-Length", str(self.size_bytes))])
        for block in _blocks(self.size_bytes):
            await x.send(block)


def retry_after(wait: float | str, code: int = 429) -> Behaviour:
    """Respond with Retry-After, in seconds or as the given text; record the back-off window."""
    text = wait if isinstance(wait, str) else f"{wait:.10g}"

    async def answer(x: Exchange) -> None:
        from_s = time.monotonic()
        await x.respond(code, [("Retry-After", text)])
        if (wait_s := _wait_s(text)) is not None:
            x.windows.append((time.monotonic(), from_s + wait_s))

    return answer


def throttle_window(after_n: int, retry_after_s: float, then: Behaviour = OK) -> Behaviour:
    """Serve the first `after_n` requests of every second; respond to the others with 429."""
    throttle = retry_after(retry_after_s)
    arrivals: Counter[int] = Counter()

    async def answer(x: Exchange) -> None:
        second = int(x.request.arrived_s)
        arrivals[second] += 1
        await (throttle if arrivals[second] > after_n else then)(x)

    return answer


def latency(for_s: float, then: Behaviour = OK) -> Behaviour:
    """Wait before each response."""

    async def answer(x: Exchange) -> None:
        await asyncio.sleep(for_s)
        await then(x)

    return answer


def slow(chunk: bytes, every_s: float, total_chunks: int) -> Behaviour:
    """Send a whole body slowly, one chunk at a time."""

    async def answer(x: Exchange) -> None:
        await x.send_head(200, [("Content-Length", str(len(chunk) * total_chunks))])
        for _ in range(total_chunks):
            await asyncio.sleep(every_s)
            await x.send(chunk)

    return answer


def fail_for(
    for_s: float, code: int, then: Behaviour = OK, clock: Callable[[], float] = time.monotonic
) -> Behaviour:
    """Fail for `for_s` after the first request, then recover."""
    failing = status(code)
    heals_s: float | None = None

    async def answer(x: Exchange) -> None:
        nonlocal heals_s
        heals_s = clock() + for_s if heals_s is None else heals_s
        await (failing if clock() < heals_s else then)(x)

    return answer


def fail_times(n: int, code: int, then: Behaviour = OK) -> Behaviour:
    """Fail the first n requests, then recover."""
    return sequence(*[status(code)] * n, then)


def truncated(body: bytes, declared_bytes: int, headers: Headers = ()) -> Behaviour:
    """Send fewer bytes than Content-Length announces, then close."""

    async def answer(x: Exchange) -> None:
        await x.send_head(200, [*headers, ("Content-Length", str(declared_bytes))])
        await x.send(body)
        x.close()

    return answer


def cut_chunked(body: bytes) -> Behaviour:
    """Send one complete chunk, then close without the last chunk."""

    async def answer(x: Exchange) -> None:
        await x.send_head(200, [("Transfer-Encoding", "chunked")])
        await x.send(_chunk(body))
        x.close()

    return answer


def stall_headers(for_s: float) -> Behaviour:
    """Send nothing for `for_s`, then close without a response."""

    async def answer(x: Exchange) -> None:
        await asyncio.sleep(for_s)
        x.close()

    return answer


def held(until: asyncio.Event, then: Behaviour = OK) -> Behaviour:
    """Send nothing until the event is set."""

    async def answer(x: Exchange) -> None:
        await until.wait()
        await then(x)

    return answer


class HalfBody:
    """Send half of a body, and the other half once `resume` is set."""

    def __init__(self, half_bytes: int = 1 << 20) -> None:
        self.resume = asyncio.Event()
        self._half = b"x" * half_bytes

    async def __call__(self, x: Exchange) -> None:
        """Send one body in two halves."""
        await x.send_head(200, [("Content-Length", str(2 * len(self._half)))])
        await x.send(self._half)
        await self.resume.wait()
        await x.send(self._half)


def garbage(raw: bytes) -> Behaviour:
    """Send these bytes instead of HTTP, then close."""

    async def answer(x: Exchange) -> None:
        await x.raw(raw)
        x.close()

    return answer


def reset_after(n_bytes: int) -> Behaviour:
    """Send a response header and `n_bytes` of the body, then reset the connection."""

    async def answer(x: Exchange) -> None:
        await x.send_head(200, [("Content-Length", str(n_bytes + 1))])
        await x.send(b"x" * n_bytes)
        x.abort()

    return answer


async def silent(_: Exchange) -> None:
    """Read the request and never respond."""
    await asyncio.Event().wait()


async def unframed(x: Exchange) -> None:
    """Send a body that only the end of the connection delimits."""
    await x.send_head(200)
    await x.send(b"until the end")
    x.close()


async def reset(x: Exchange) -> None:
    """Reset the connection without a response."""
    x.abort()


def sequence(*behaviours: Behaviour) -> Behaviour:
    """Apply the nth behaviour to the nth request; the last one repeats."""
    remaining = itertools.chain(behaviours, itertools.repeat(behaviours[-1]))

    async def answer(x: Exchange) -> None:
        await next(remaining)(x)

    return answer


def by_path(routes: Mapping[str, Behaviour], otherwise: Behaviour = NOT_FOUND) -> Behaviour:
    """Choose the behaviour by the longest matching prefix of the target."""
    prefixes = sorted(routes, key=len, reverse=True)

    async def answer(x: Exchange) -> None:
        prefix = next(filter(x.request.target.startswith, prefixes), None)
        await (otherwise if prefix is None else routes[prefix])(x)

    return answer


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _wait_s(retry_after_text: str) -> float | None:
    """Return the delay of a Retry-After field; None if it cannot be parsed."""
    with suppress(ValueError):
        return float(retry_after_text)
    with suppress(ValueError):
        return parsedate_to_datetime(retry_after_text).timestamp() - time.time()
    return None


def _blocks(size_bytes: int) -> Iterator[bytes]:
    """Yield the body of `big` in blocks, each of which starts with its number, so that no two are equal."""
    filler = bytes(range(256)) * (BLOCK_BYTES // 256)
    for number, start in enumerate(range(0, size_bytes, BLOCK_BYTES)):
        block = number.to_bytes(8) + filler[8:]
        yield block[: size_bytes - start]


@lru_cache
def _big_sha256(size_bytes: int) -> str:
    digest = hashlib.sha256()
    for block in _blocks(size_bytes):
        digest.update(block)
    return digest.hexdigest()
