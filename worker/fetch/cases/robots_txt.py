"""Request an origin's robots.txt, in the place of a fetch and under the same limits."""

import asyncio
from contextlib import closing, nullcontext
from typing import NamedTuple

from redis.exceptions import RedisError

from fetchfleet.jobs.contract.entry import Entry, Hop
from fetchfleet.jobs.contract.urls import FetchUrl, UrlError, lane_of_url, origin_of_url, parse_url
from fetchfleet.worker.fetch.cases.host_signals import asked_s, host_state, learn
from fetchfleet.worker.fetch.error_mapping import failure_of
from fetchfleet.worker.fetch.rules.decide import Finish, Retry, defer_for_robots
from fetchfleet.worker.fetch.rules.location import target_of
from fetchfleet.worker.fetch.rules.outcome import (
    Answered,
    AttemptOutcome,
    Failed,
    Interrupted,
    note_of,
    throttle_of,
)
from fetchfleet.worker.fetch.rules.redirects import is_redirect
from fetchfleet.worker.fetch.run import finish_fetch, settle_retry
from fetchfleet.worker.fetch.services import FetchSession
from fetchfleet.worker.gate import gate, robots_rules
from fetchfleet.worker.gate.gate import Admit, Closed, WaitReason
from fetchfleet.worker.gate.robots_rules import (
    MAX_BYTES,
    MAX_HOPS,
    CachedRobots,
    RobotsRules,
    RobotsStatus,
    status_of,
)
from fetchfleet.worker.http.exchange import Answer, Trace
from fetchfleet.worker.lanes import log_events

MAX_EXCHANGE_S = 60.0
"""For one request, however long the policy lets the host's bodies take: this body is small."""


class RobotsAnswer(NamedTuple):
    """The outcome of the request."""

    outcome: AttemptOutcome
    body: bytes | None = None
    """Of a 2xx response, None otherwise."""


class RobotsRequest:
    """A request for a robots.txt, with the redirects that RFC 9309 allows; `trace` has its timings."""

    def __init__(self, session: FetchSession, entry: Entry, origin: str) -> None:
        self.session = session
        self.entry = entry
        self.origin = origin
        self.trace = Trace(entry)
        self.away: int | None = None
        """The status of the redirect that led to another host; None while none did."""
        self._status: int | None = None

    async def send(self) -> RobotsAnswer:
        """Return the answer; raise nothing but CancelledError."""
        lane = self.session.lane
        url, answer = parse_url(f"{self.origin}/robots.txt"), RobotsAnswer(Answered(status=404))
        for hop in range(MAX_HOPS + 1):
            if hop and not await self._may_follow(url):
                return RobotsAnswer(Interrupted())
            left_s = max(0.0, (self.entry.deadline_ms - lane.clock.now_ms()) / 1000)
            try:
                async with asyncio.timeout(min(left_s, lane.policy.timeouts.total_s, MAX_EXCHANGE_S)):
                    answer, target = await self._exchange(url)
            except Exception as error:  # noqa: BLE001 whatever it is, the fetch that waits must be settled
                if isinstance(error, TimeoutError) and lane.clock.now_ms() >= self.entry.deadline_ms:
                    return RobotsAnswer(Interrupted())  # another fetch may have the time for the request
                return RobotsAnswer(await failure_of(self.session, self.entry, error, self._status))
            if target is None:
                break
            url = target
            self.away = self._status if lane_of_url(url.text) != lane.name else None
        return answer

    async def _exchange(self, url: FetchUrl) -> tuple[RobotsAnswer, FetchUrl | None]:
        """Make one request; return the answer, and the target of a redirect that can be followed."""
        lane, services = self.session.lane, self.session.services
        self._status = None
        name = lane_of_url(url.text)
        # Another host gets a pool with its own TLS settings: this host's client certificate stays here.
        opened = services.pools.opened(
            f"{lane.pool} robots {self.origin} {name}", name, services.policy().for_lane(name)
        )
        async with nullcontext(lane.pool) if name == lane.name else opened as pool:
            hop, timeouts = Hop("GET", url.text), lane.policy.timeouts
            with closing(await services.engine.open(hop, pool, timeouts, self.trace)) as answer:
                return await self._read(url, answer)

    async def _read(self, url: FetchUrl, answer: Answer) -> tuple[RobotsAnswer, FetchUrl | None]:
        """Read the response; return the answer, and the target of a redirect that can be followed."""
        self._status = answer.status
        if status_of(answer.status) is RobotsStatus.RULES:
            body = bytearray()
            while len(body) < MAX_BYTES and (piece := await answer.read()):
                body += piece
            return RobotsAnswer(Answered(status=answer.status), bytes(body[:MAX_BYTES])), None
        await answer.discard()
        now_ms = self.session.lane.clock.now_ms()
        wait_s = asked_s(answer, now_ms)
        target = None
        if is_redirect(answer.status):
            try:
                target = target_of(url, answer.header("location") or "")
            except UrlError:
                target = None
        return RobotsAnswer(Answered(status=answer.status, wait_s=wait_s)), target

    async def _may_follow(self, url: FetchUrl) -> bool:
        """Return whether a redirect may be followed, once the lane's rate allows it, within the deadline.

        The rate of another host is not this lane's matter.
        """
        lane = self.session.lane
        if lane_of_url(url.text) != lane.name:
            return lane.serving
        while lane.serving and (left_ms := self.entry.deadline_ms - lane.clock.now_ms()) > 0:
            match lane.admission(excluding=1):
                case Admit():
                    self.session.count_start()
                    return True
                case Closed(until_ms=until_ms, why=WaitReason.RATE_LIMIT):
                    await lane.changed(max(1, min(until_ms - lane.clock.now_ms(), left_ms)) / 1000)
                case _:
                    return False
        return False


async def rules_for(session: FetchSession, entry: Entry) -> RobotsRules | None:
    """Return the rules for the next request of the fetch, None if no worker of the fleet knows them."""
    lane, services = session.lane, session.services
    rules = lane.rules(entry.url)
    if rules is not None or lane.is_asking(entry.url):
        return rules
    origin, token = origin_of_url(entry.url), robots_rules.token_of(services.user_agent)
    text = await session.retry_until_lost(lambda: services.robots.get(origin))
    cached = robots_rules.from_json(text, token, lane.clock.now_ms()) if text else None
    return await _adopt_rules(session, origin, cached, asked_ms=0) if cached is not None else None


async def request_robots(session: FetchSession, entry: Entry) -> None:
    """Request the robots.txt in the place of this fetch, which is first in line once the rules are known."""
    lane, services, origin = session.lane, session.services, origin_of_url(entry.url)
    token = robots_rules.token_of(services.user_agent)
    request = RobotsRequest(session, entry, origin)
    try:
        outcome, body = await request.send()
        answered = outcome.status if isinstance(outcome, Answered | Failed) else None
        reason = outcome.reason if isinstance(outcome, Failed) else None
        log_events.robots(lane.name, origin, answered, reason, note_of(outcome), services.log)
        away = request.away
        learn(session, request.trace, outcome if away is None else Answered(status=away))
        cached: CachedRobots | None = None
        throttle = throttle_of(outcome) if away is None else None
        match outcome:
            case Answered(status=status) if not throttle and status_of(status) is not RobotsStatus.WAIT:
                now_ms = lane.clock.now_ms()
                cached = await asyncio.to_thread(robots_rules.cached_of, token, status, body or b"", now_ms)
            case Failed(final=True):  # it can never be requested; nor can the fetch, which fails by itself
                cached = robots_rules.unavailable(token, lane.clock.now_ms())
        if cached is not None:
            await _adopt_rules(session, origin, cached, asked_ms=lane.clock.now_ms())
            if isinstance(outcome, Answered):
                ttl_ms = cached.until_ms - lane.clock.now_ms()
                try:
                    await services.robots.put(origin, robots_rules.to_json(cached), ttl_ms)
                except (RedisError, OSError) as error:  # other workers request the robots.txt again
                    services.report_redis_error(error)
        if cached is not None or isinstance(outcome, Interrupted):
            lane.put_back(entry)
            return
    finally:
        lane.end_asking(origin)
    if not throttle:
        asked_s = outcome.wait_s if isinstance(outcome, Answered) else None
        state = gate.robots_unavailable(
            lane.gate, lane.policy, lane.clock.now_ms(), services.chance(), asked_s
        )
        session.change_gate(state, save=True)
    # The decision follows: it reads when the lane opens, which the lines above may have changed.
    match defer_for_robots(entry, outcome, lane.clock.now_ms(), host_state(session)):
        case Finish() as finish:
            await finish_fetch(session, entry, finish)
        case Retry() as retry:
            settle_retry(session, retry, outcome)


async def _adopt_rules(
    session: FetchSession, origin: str, cached: CachedRobots, *, asked_ms: int
) -> RobotsRules:
    """Apply the rules in this lane; asked_ms: when this worker requested them from the host, 0 if not."""
    lane = session.lane
    rules = await asyncio.to_thread(RobotsRules, cached.groups, cached.token)
    delay_s = lane.learn_rules(origin, rules, cached.until_ms)
    session.change_gate(gate.crawl_delay_received(lane.gate, delay_s, asked_ms))
    return rules
