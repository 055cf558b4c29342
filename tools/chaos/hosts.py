"""Misbehaving hosts. The response to a request is a pure function of seed, target and request number.

Paths: /f/NAME serves a body, /gone/NAME a 404, /go/HOST:PORT/NAME a redirect to /f/NAME on that host,
/post/NAME accepts a POST, /kill/NAME kills the worker that requests it. A body is derived from its name.
"""

import asyncio
import functools
import hashlib
import os
import random
import signal
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from enum import StrEnum
from pathlib import Path

from tools.origin import behaviours as o
from tools.origin.server import Behaviour, Exchange, Origin

Answer = Callable[[Exchange, random.Random], Awaitable[None]]

HOSTS = tuple(f"127.0.8.{number}" for number in range(1, 9))
CONCURRENCY = 4

MAX_BYTES = 48 * 1024
"""Fits the kernel's socket buffers, so a response ends even if the client is stopped."""

MAX_FAULTS = 3
"""The host behaves normally after this many requests for a target, so that every fetch can succeed."""

RETRY_AFTER_S = 1


class Act(StrEnum):
    """The behaviour of a host for one request."""

    NORMAL = "normal"
    DELAYED = "delayed"
    SLOW = "slow"
    STATUS_500 = "500"
    STATUS_503 = "503"
    THROTTLE = "429"
    RESET = "reset"
    RESET_IN_BODY = "reset in the body"
    TRUNCATED = "truncated"
    CUT_CHUNKED = "cut in chunks"


GOOD = frozenset({Act.NORMAL, Act.DELAYED, Act.SLOW})
CHARGED = frozenset(Act) - GOOD - {Act.THROTTLE}
"""Behaviours that charge the fetch an attempt."""

_WEIGHTS = {
    Act.NORMAL: 80,
    Act.DELAYED: 8,
    Act.SLOW: 4,
    Act.STATUS_500: 2,
    Act.STATUS_503: 1,
    Act.THROTTLE: 1,
    Act.RESET: 1,
    Act.RESET_IN_BODY: 1,
    Act.TRUNCATED: 1,
    Act.CUT_CHUNKED: 1,
}


def act_of(seed: int, target: str, nth: int) -> Act:
    """Return the behaviour for request number `nth`, from 0, for a target."""
    if not target.startswith("/f/") or nth >= MAX_FAULTS:
        return Act.NORMAL
    chance = _chance(seed, target, nth)
    return chance.choices(list(_WEIGHTS), list(_WEIGHTS.values()))[0]


def body_of(name: str) -> bytes:
    """Return the body of a name, at most about MAX_BYTES; the first 32 bytes are the digest of the name."""
    digest = hashlib.sha256(name.encode()).digest()
    size_bytes = 32 + int.from_bytes(digest[:4]) % (MAX_BYTES if digest[4] < 32 else 2048)
    return (digest * (size_bytes // len(digest) + 1))[:size_bytes]


def name_of(url_or_target: str) -> str:
    """Return the name at the end of a URL or target."""
    return url_or_target.rpartition("/")[2]


def behaviours(seed: int) -> Mapping[str, Behaviour]:
    """Return the behaviour of each host."""
    return {host: _host(seed) for host in HOSTS}


def hosts_of_seed(seed: int) -> Callable[[], Mapping[str, Behaviour]]:
    """Return a function that makes the hosts; a child process can import it."""
    return functools.partial(behaviours, seed)


def _chance(seed: int, target: str, nth: int) -> random.Random:
    return random.Random(f"{seed} {target} {nth}")  # noqa: S311 reproducible by seed


def _host(seed: int) -> Behaviour:
    counts: Counter[str] = Counter()

    async def answer(x: Exchange) -> None:
        target = x.request.target
        nth = counts[target]
        counts[target] += 1
        chance = _chance(seed, target, nth)
        await asyncio.sleep(chance.uniform(0.0, 0.05))
        await _ACTS[act_of(seed, target, nth)](x, chance)

    return answer


async def _normal(x: Exchange, _: random.Random) -> None:
    target, name = x.request.target, name_of(x.request.target)
    if target.startswith("/gone/"):
        await x.respond(404)
    elif target.startswith("/kill/"):
        kill_worker(Origin.header(x.request, "user-agent") or "")
        await asyncio.Event().wait()
    elif target.startswith("/go/"):
        await x.respond(302, [("Location", f"http://{target.split('/')[2]}/f/{name}")])
    else:
        await x.respond(200, body=body_of(name))


async def _delayed(x: Exchange, chance: random.Random) -> None:
    await asyncio.sleep(chance.choice([0.2, 0.5, 1.0, 3.0]))
    await _normal(x, chance)


async def _slow(x: Exchange, chance: random.Random) -> None:
    body = body_of(name_of(x.request.target))
    pieces = [body[at : at + len(body) // 4 + 1] for at in range(0, len(body), len(body) // 4 + 1)]
    await x.send_head(200, [("Content-Length", str(len(body)))])
    for piece in pieces:
        await asyncio.sleep(chance.uniform(0.05, 0.4))
        await x.send(piece)


async def _throttle(x: Exchange, _: random.Random) -> None:
    await o.retry_after(RETRY_AFTER_S)(x)


def kill_worker(name: str) -> None:
    """Kill the worker process of that name, a sibling of this process, with SIGKILL."""
    mark = f"FETCHFLEET_WORKER_ID={name}".encode()
    siblings = Path(f"/proc/{os.getppid()}/task/{os.getppid()}/children").read_text().split()
    for pid in siblings:
        with suppress(OSError):
            if mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                os.kill(int(pid), signal.SIGKILL)


def _with_body(behave: Callable[[bytes], Behaviour]) -> Answer:
    """Adapt a behaviour that depends on the body alone."""

    async def answer(x: Exchange, _: random.Random) -> None:
        await behave(body_of(name_of(x.request.target)))(x)

    return answer


_ACTS: Mapping[Act, Answer] = {
    Act.NORMAL: _normal,
    Act.DELAYED: _delayed,
    Act.SLOW: _slow,
    Act.THROTTLE: _throttle,
    Act.STATUS_500: _with_body(lambda _: o.status(500)),
    Act.STATUS_503: _with_body(lambda _: o.status(503)),
    Act.RESET: _with_body(lambda _: o.reset),
    Act.RESET_IN_BODY: _with_body(lambda body: o.reset_after(len(body) // 2)),
    Act.TRUNCATED: _with_body(lambda body: o.truncated(body[:-1], len(body))),
    Act.CUT_CHUNKED: _with_body(lambda body: o.cut_chunked(body[:-1])),
}
