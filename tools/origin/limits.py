"""Hosts with limits: capacities, quotas, and unusual ways to ask the client to back off."""

import asyncio
import time
from collections.abc import Callable, Sequence
from email.utils import formatdate

from tools.origin.behaviours import OK, status
from tools.origin.server import Behaviour, Exchange, Header

Schedule = Sequence[tuple[float, int]]
Announce = Callable[[int, float], list[Header]]
"""Makes the header fields from the number of remaining requests and the seconds to the end of the window."""


class Capacity:
    """Serve a limited number of requests at once and refuse the others.

    schedule: pairs of seconds since the first request and the capacity from then on, in order. refuse: the
    response above capacity.
    """

    def __init__(self, schedule: Schedule, refuse: Behaviour, latency_s: float) -> None:
        self._schedule = schedule
        self._refuse = refuse
        self._latency_s = latency_s
        self._serving = 0
        self._began_s: float | None = None

    async def __call__(self, x: Exchange) -> None:
        """Serve or refuse a request."""
        if self._began_s is None:
            self._began_s = time.monotonic()
        for_s = time.monotonic() - self._began_s
        capacity = [capacity for from_s, capacity in self._schedule if from_s <= for_s][-1]
        if self._serving >= capacity:
            await self._refuse(x)
            return
        self._serving += 1
        try:
            await asyncio.sleep(self._latency_s)
            await OK(x)
        finally:
            self._serving -= 1


class Quota:
    """Allow a number of requests in each window, announce it, and respond with 429 to further requests.

    strict: False to announce the quota without enforcing it.
    """

    def __init__(self, requests: int, window_s: float, announce: Announce, *, strict: bool = True) -> None:
        self._requests = requests
        self._window_s = window_s
        self._announce = announce
        self._strict = strict
        self._ends_s = 0.0
        self._used = 0

    async def __call__(self, x: Exchange) -> None:
        """Count a request; serve or refuse it with the quota fields."""
        now_s = time.monotonic()
        if now_s >= self._ends_s:
            self._ends_s, self._used = now_s + self._window_s, 0
        self._used += 1
        left = max(0, self._requests - self._used)
        over = self._strict and self._used > self._requests
        await x.respond(429 if over else 200, self._announce(left, self._ends_s - now_s), b"ok")


def ietf(left: int, in_s: float) -> list[Header]:
    """Return RateLimit as a structured field (draft-ietf-httpapi-ratelimit-headers-11)."""
    return [("RateLimit", f'"default";r={left};t={_whole(in_s)}')]


def trio(left: int, in_s: float) -> list[Header]:
    """Return the three fields of earlier drafts; Reset is a delay in s."""
    return [
        ("RateLimit-Limit", "100"),
        ("RateLimit-Remaining", str(left)),
        ("RateLimit-Reset", str(_whole(in_s))),
    ]


def epoch(left: int, in_s: float) -> list[Header]:
    """Return the common X-RateLimit fields, which no standard defines; Reset is a Unix time."""
    return [("X-RateLimit-Remaining", str(left)), ("X-RateLimit-Reset", str(_whole(time.time() + in_s)))]


def retry_on(wait_s: int, clock_off_s: float) -> Behaviour:
    """Respond with 429 and an HTTP-date by a clock that is off; record the back-off window."""

    async def answer(x: Exchange) -> None:
        from_s, host_now_s = time.monotonic(), time.time() + clock_off_s
        date, until = (formatdate(at_s, usegmt=True) for at_s in (host_now_s, host_now_s + wait_s))
        await x.respond(429, [("Date", date), ("Retry-After", until)])
        x.windows.append((time.monotonic(), from_s + wait_s))

    return answer


def throttle(retry_after: str | None) -> Behaviour:
    """Respond with 429 and this Retry-After; record no back-off window."""
    return status(429, [] if retry_after is None else [("Retry-After", retry_after)])


def after(count: int, times: int, then: Behaviour) -> Behaviour:
    """Serve the first `count` requests, apply `then` to the next `times`, and serve the rest."""
    seen = 0

    async def answer(x: Exchange) -> None:
        nonlocal seen
        seen += 1
        await (then if count < seen <= count + times else OK)(x)

    return answer


def _whole(seconds: float) -> int:
    return -int(-seconds // 1)
