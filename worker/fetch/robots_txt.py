"""Asks an origin for its robots.txt, in the place of a fetch and under the same limits."""

import asyncio
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import NamedTuple

from fetchfleet.jobs.contract.entry import Entry, Hop
from fetchfleet.jobs.contract.lanes import lane_of_url
from fetchfleet.jobs.contract.urls import FetchUrl, UrlError, join_url, parse_url
from fetchfleet.worker.fetch.attempt import broken
from fetchfleet.worker.fetch.rules.decide import Answered, Happened, Held
from fetchfleet.worker.fetch.rules.redirects import is_redirect
from fetchfleet.worker.fetch.services import Parts
from fetchfleet.worker.gate.gate import Go, Shut, Why
from fetchfleet.worker.gate.retry_after import retry_after_s
from fetchfleet.worker.gate.robots_rules import MAX_BYTES, MAX_HOPS, Means, meaning
from fetchfleet.worker.http.base import Answer, Trace
from fetchfleet.worker.lanes.lane import Lane

MAX_EXCHANGE_S = 60.0
"""However long a host's bodies may take, this one is small."""


class Asked(NamedTuple):
    """What came of asking; body is that of a 2xx, None for any other end."""

    happened: Happened
    body: bytes | None = None


class Question:
    """One robots.txt asked for, over as many redirects as the RFC wants; `trace` tells how it went."""

    def __init__(self, origin: str, entry: Entry, lane: Lane, parts: Parts) -> None:
        self.origin = origin
        self.lane = lane
        self.parts = parts
        self.trace = Trace(entry)
        self._entry = entry
        self._status: int | None = None

    async def ask(self) -> Asked:
        """What happened; never raises but for cancellation."""
        url, asked = parse_url(f"{self.origin}/robots.txt"), Asked(Answered(status=404))
        timeouts = self.lane.policy.timeouts
        for hop in range(MAX_HOPS + 1):
            if hop and not await self._turn(url):
                return Asked(Held())
            try:
                async with asyncio.timeout(min(self._left_s(), timeouts.total_s, MAX_EXCHANGE_S)):
                    asked, target = await self._exchange(url)
            except Exception as error:  # noqa: BLE001 whatever it is, the fetch that waits must get its due
                if isinstance(error, TimeoutError) and not self._left_s():
                    return Asked(Held())  # another fetch may have the time to ask
                return Asked(broken(error, self._status, self._entry, self.lane, self.parts))
            if target is None:
                break
            url = target
        return asked

    def _left_s(self) -> float:
        """Until the deadline of the fetch in whose place we ask."""
        return max(0.0, (self._entry.deadline_ms - self.lane.clock.now_ms()) / 1000)

    async def _exchange(self, url: FetchUrl) -> tuple[Asked, FetchUrl | None]:
        """One request and its answer, and where a redirect leads that can be followed."""
        self._status = None
        timeouts = self.lane.policy.timeouts
        request = Hop("GET", url.text)
        async with (
            self._pool(url) as pool,
            self.parts.engine.open(request, pool, timeouts, self.trace) as answer,
        ):
            self._status = answer.status
            if meaning(answer.status) is Means.RULES:
                return Asked(Answered(status=answer.status), await _beginning(answer)), None
            await answer.discard()
            now_ms = self.lane.clock.now_ms()
            wait_s = retry_after_s(answer.header("retry-after"), answer.header("date"), now_ms)
            target = _target(url, answer) if is_redirect(answer.status) else None
            return Asked(Answered(status=answer.status, wait_s=wait_s)), target

    def _pool(self, url: FetchUrl) -> AbstractAsyncContextManager[str]:
        """The lane's, but for another host one with that host's own trust: ours is not shown to it."""
        name = lane_of_url(url.text)
        if name == self.lane.name:
            return nullcontext(self.lane.pool)
        policy = self.parts.policy().for_lane(name)
        return self.parts.pools.opened(f"{self.lane.pool} robots {self.origin} {name}", policy)

    async def _turn(self, url: FetchUrl) -> bool:
        """Whether a redirect may be followed, once the lane's pace lets it; another host's is not ours."""
        lane = self.lane
        if lane_of_url(url.text) != lane.name:
            return lane.serving
        while lane.serving:
            match lane.verdict(besides=1):
                case Go():
                    lane.count_start()
                    return True
                case Shut(until_ms=until_ms, why=Why.PACING):
                    await lane.changed(max(0.001, (until_ms - lane.clock.now_ms()) / 1000))
                case _:
                    return False
        return False


async def _beginning(answer: Answer) -> bytes:
    """As much of the body as is read of a robots.txt."""
    body = bytearray()
    async for chunk in answer.chunks():
        body += chunk
        if len(body) >= MAX_BYTES:
            break
    return bytes(body[:MAX_BYTES])


def _target(url: FetchUrl, answer: Answer) -> FetchUrl | None:
    try:
        return join_url(url, answer.header("location") or "")
    except UrlError:
        return None
