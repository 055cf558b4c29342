"""Asks an origin for its robots.txt, in the place of a fetch and under the same limits."""

import asyncio
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import NamedTuple

from redis.exceptions import RedisError

from fetchfleet.jobs.contract.entry import Entry, Hop
from fetchfleet.jobs.contract.urls import FetchUrl, UrlError, join_url, lane_of_url, origin_of_url, parse_url
from fetchfleet.worker.fetch import log_events
from fetchfleet.worker.fetch.attempt import broken
from fetchfleet.worker.fetch.rules.outcome import Answered, AttemptOutcome, Failed, Interrupted, throttle_of
from fetchfleet.worker.fetch.rules.redirects import is_redirect
from fetchfleet.worker.fetch.run import learn, wait_for_robots
from fetchfleet.worker.fetch.services import FetchServices
from fetchfleet.worker.gate import gate, robots_rules
from fetchfleet.worker.gate.gate import Admit, Closed, WaitReason
from fetchfleet.worker.gate.retry_after import retry_after_s
from fetchfleet.worker.gate.robots_rules import (
    MAX_BYTES,
    MAX_HOPS,
    CachedRobots,
    RobotsRules,
    RobotsStatus,
    status_of,
)
from fetchfleet.worker.http.base import Answer, Trace
from fetchfleet.worker.lanes.lane import Lane
from fetchfleet.worker.lanes.retry import retry_until_lost

MAX_EXCHANGE_S = 60.0
"""However long a host's bodies may take, this one is small."""


class Asked(NamedTuple):
    """What came of asking; body is that of a 2xx, None for any other end."""

    happened: AttemptOutcome
    body: bytes | None = None


class Question:
    """One robots.txt asked for, over as many redirects as the RFC wants; `trace` tells how it went."""

    def __init__(self, origin: str, entry: Entry, lane: Lane, services: FetchServices) -> None:
        self.origin = origin
        self.lane = lane
        self.services = services
        self.trace = Trace(entry)
        self._entry = entry
        self._status: int | None = None

    async def ask(self) -> Asked:
        """What happened; never raises but for cancellation."""
        url, asked = parse_url(f"{self.origin}/robots.txt"), Asked(Answered(status=404))
        timeouts = self.lane.policy.timeouts
        for hop in range(MAX_HOPS + 1):
            if hop and not await self._turn(url):
                return Asked(Interrupted())
            try:
                async with asyncio.timeout(min(self._left_s(), timeouts.total_s, MAX_EXCHANGE_S)):
                    asked, target = await self._exchange(url)
            except Exception as error:  # noqa: BLE001 whatever it is, the fetch that waits must get its due
                if isinstance(error, TimeoutError) and not self._left_s():
                    return Asked(Interrupted())  # another fetch may have the time to ask
                return Asked(broken(error, self._status, self._entry, self.lane, self.services))
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
            self.services.engine.open(request, pool, timeouts, self.trace) as answer,
        ):
            self._status = answer.status
            if status_of(answer.status) is RobotsStatus.RULES:
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
        policy = self.services.policy().for_lane(name)
        return self.services.pools.opened(f"{self.lane.pool} robots {self.origin} {name}", policy)

    async def _turn(self, url: FetchUrl) -> bool:
        """Whether a redirect may be followed, once the lane's pace lets it; another host's is not ours."""
        lane = self.lane
        if lane_of_url(url.text) != lane.name:
            return lane.serving
        while lane.serving:
            match lane.verdict(besides=1):
                case Admit():
                    lane.count_start()
                    return True
                case Closed(until_ms=until_ms, why=WaitReason.RATE_LIMIT):
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


async def rules_for(entry: Entry, lane: Lane, services: FetchServices) -> RobotsRules | None:
    """What the next request's origin lets us do, None if nobody in the fleet knows."""
    url = entry.url
    rules = lane.rules(url)
    if rules is not None or lane.is_asking(url):
        return rules
    origin, token = origin_of_url(url), robots_rules.token_of(services.user_agent)
    text = await retry_until_lost(lane, services, lambda: services.store.robots(origin))
    kept = robots_rules.from_json(text, token, lane.clock.now_ms()) if text else None
    return await _known(origin, kept, lane, 0) if kept is not None else None


async def ask_first(entry: Entry, lane: Lane, services: FetchServices) -> None:
    """Ask the origin in the place of this fetch, which is first in line once the answer is known."""
    origin = origin_of_url(entry.url)
    question = Question(origin, entry, lane, services)
    try:
        asked = await question.ask()
        log_events.robots(lane, origin, asked.happened, services.log)
        learn(question.trace, asked.happened, lane, services)
        kept = await _kept(asked, lane, services)
        if kept is not None:
            await _known(origin, kept, lane, lane.clock.now_ms())
            await _share(origin, kept, asked, lane, services)
        if kept is not None or isinstance(asked.happened, Interrupted):
            lane.ready.appendleft(entry)
            return
    finally:
        lane.asking.pop(origin, None)
    if not throttle_of(asked.happened):
        lane.gate = gate.robots_unavailable(lane.gate, lane.policy, lane.clock.now_ms(), services.chance())
        services.settler.save_gate(lane)
    await wait_for_robots(entry, asked.happened, lane, services)


async def _kept(asked: Asked, lane: Lane, services: FetchServices) -> CachedRobots | None:
    """What the answer lets us do, None if it has to be waited for."""
    token, now_ms = robots_rules.token_of(services.user_agent), lane.clock.now_ms()
    match asked.happened:
        case Answered(status=status) if robots_rules.status_of(status) is not RobotsStatus.WAIT:
            return await asyncio.to_thread(robots_rules.cached_of, token, status, asked.body or b"", now_ms)
        case Failed(final=True):  # it can never be asked; nor can the fetch, which is to say so itself
            return robots_rules.unavailable(token, now_ms)
    return None


async def _known(origin: str, kept: CachedRobots, lane: Lane, asked_ms: int) -> RobotsRules:
    """The rules are the lane's from here on; asked_ms: when the host was asked for them, if it was."""
    rules = await asyncio.to_thread(RobotsRules, kept.groups, kept.token)
    lane.robots.learn(origin, rules, kept.until_ms)
    lane.gate = gate.crawl_delay_learnt(lane.gate, lane.robots.crawl_delay_s(), asked_ms)
    return rules


async def _share(origin: str, kept: CachedRobots, asked: Asked, lane: Lane, services: FetchServices) -> None:
    """The fleet need not ask again; where Redis does not take it, it will."""
    if not isinstance(asked.happened, Answered):
        return
    ttl_ms = kept.until_ms - lane.clock.now_ms()
    try:
        await services.store.keep_robots(origin, robots_rules.to_json(kept), ttl_ms)
    except (RedisError, OSError) as error:
        services.report_redis_error(error)
