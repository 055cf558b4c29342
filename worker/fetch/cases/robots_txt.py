"""Request an origin's robots.txt in the slot of a fetch, under the limits of its lane."""

import asyncio
from contextlib import closing, nullcontext
from typing import NamedTuple

from redis.exceptions import RedisError

from fetchfleet.jobs.contract.entry import Entry, Hop
from fetchfleet.jobs.contract.urls import FetchUrl, UrlError, lane_of_url, origin_of_url, parse_url
from fetchfleet.worker.fetch.cases.host_signals import host_state, learn, requested_wait_s
from fetchfleet.worker.fetch.error_mapping import failure_of
from fetchfleet.worker.fetch.rules.decide import Finish, Retry, defer_for_robots
from fetchfleet.worker.fetch.rules.outcome import (
    Answered,
    AttemptOutcome,
    Failed,
    Interrupted,
    note_of,
    throttle_of,
)
from fetchfleet.worker.fetch.rules.redirects import is_redirect, target_of
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
"""The maximum time for one exchange, whatever the policy's total timeout: the body is small."""


class RobotsAnswer(NamedTuple):
    """The outcome of a request for a robots.txt."""

    outcome: AttemptOutcome
    body: bytes | None = None
    """The body of a 2xx response, None otherwise."""


class RobotsRequest:
    """A request for a robots.txt, and the redirects that it follows (RFC 9309 §2.3.1.2)."""

    def __init__(self, session: FetchSession, entry: Entry, origin: str) -> None:
        self.session = session
        self.entry = entry
        self.origin = origin
        self.trace = Trace(entry)
        self.off_host_status: int | None = None
        """The status of the redirect to another host; None if the last response came from the lane's host."""
        self._status: int | None = None

    async def send(self) -> RobotsAnswer:
        """Return the answer. Raises nothing but CancelledError."""
        lane = self.session.lane
        url, answer = parse_url(f"{self.origin}/robots.txt"), RobotsAnswer(Answered(status=404))
        for hop in range(MAX_HOPS + 1):
            if hop and not await self._may_follow(url):
                return RobotsAnswer(Interrupted())
            left_s = max(0.0, (self.entry.deadline_ms - lane.clock.now_ms()) / 1000)
            try:
                async with asyncio.timeout(min(left_s, lane.policy.timeouts.total_s, MAX_EXCHANGE_S)):
                    answer, target = await self._exchange(url)
            except Exception as error:  # noqa: BLE001 after any error, the fetch that waits must be settled
                if isinstance(error, TimeoutError) and lane.clock.now_ms() >= self.entry.deadline_ms:
                    return RobotsAnswer(Interrupted())  # a fetch with a later deadline may make the request
                return RobotsAnswer(await failure_of(self.session, self.entry, error, self._status))
            if target is None:
                break
            url = target
            self.off_host_status = self._status if lane_of_url(url.text) != lane.name else None
        return answer

    async def _exchange(self, url: FetchUrl) -> tuple[RobotsAnswer, FetchUrl | None]:
        """Make one request; return the answer, and the target of a redirect that can be followed."""
        lane, services = self.session.lane, self.session.services
        self._status = None
        name = lane_of_url(url.text)
        # Another host gets a pool of its own, without this host's client certificate.
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
        wait_s = requested_wait_s(answer, now_ms)
        target = None
        if is_redirect(answer.status):
            try:
                target = target_of(url, answer.header("location") or "")
            except UrlError:
                target = None
        return RobotsAnswer(Answered(status=answer.status, wait_s=wait_s)), target

    async def _may_follow(self, url: FetchUrl) -> bool:
        """Return whether to follow a redirect, after a wait for the lane's rate limit, within the deadline.

        A request to another host does not count in this lane's rate.
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
    """Return the rules for the next request of the fetch, from the lane or the fleet's cache.

    None if they must be requested from the host, or are being requested.
    """
    lane, services = session.lane, session.services
    rules = lane.rules(entry.url)
    if rules is not None or lane.is_requesting_robots(entry.url):
        return rules
    origin, token = origin_of_url(entry.url), robots_rules.token_of(services.user_agent)
    text = await session.retry_until_lost(lambda: services.robots.get(origin))
    cached = robots_rules.from_json(text, token, lane.clock.now_ms()) if text else None
    return await _adopt_rules(session, origin, cached, requested_ms=0) if cached is not None else None


async def request_robots(session: FetchSession, entry: Entry) -> None:
    """Request the robots.txt of the fetch's next origin, in the slot of the fetch.

    The fetch becomes the first in the lane's queue once the rules are known, else it ends or waits.
    """
    lane, services, origin = session.lane, session.services, origin_of_url(entry.url)
    token = robots_rules.token_of(services.user_agent)
    request = RobotsRequest(session, entry, origin)
    try:
        outcome, body = await request.send()
        answered = outcome.status if isinstance(outcome, Answered | Failed) else None
        reason = outcome.reason if isinstance(outcome, Failed) else None
        log_events.robots(lane.name, origin, answered, reason, note_of(outcome), services.log)
        off_host_status = request.off_host_status
        learn(
            session, request.trace, outcome if off_host_status is None else Answered(status=off_host_status)
        )
        cached: CachedRobots | None = None
        throttle = throttle_of(outcome) if off_host_status is None else None
        match outcome:
            case Answered(status=status) if not throttle and status_of(status) is not RobotsStatus.WAIT:
                now_ms = lane.clock.now_ms()
                cached = await asyncio.to_thread(robots_rules.cached_of, token, status, body or b"", now_ms)
            case Failed(final=True):  # no request to this origin can succeed; the fetch itself will fail too
                cached = robots_rules.unavailable(token, lane.clock.now_ms())
        if cached is not None:
            await _adopt_rules(session, origin, cached, requested_ms=lane.clock.now_ms())
            if isinstance(outcome, Answered):
                ttl_ms = cached.until_ms - lane.clock.now_ms()
                try:
                    await services.robots.put(origin, robots_rules.to_json(cached), ttl_ms)
                except (RedisError, OSError) as error:  # another worker will request the robots.txt again
                    services.report_redis_error(error)
        if cached is not None or isinstance(outcome, Interrupted):
            lane.requeue(entry)
            return
    finally:
        lane.end_robots_request(origin)
    if not throttle:
        requested_s = outcome.wait_s if isinstance(outcome, Answered) else None
        state = gate.robots_unavailable(
            lane.gate, lane.policy, lane.clock.now_ms(), services.chance(), requested_s
        )
        session.change_gate(state, save=True)
    # Decide after the change of the gate: the decision reads when the lane opens.
    match defer_for_robots(entry, outcome, lane.clock.now_ms(), host_state(session)):
        case Finish() as finish:
            await finish_fetch(session, entry, finish)
        case Retry() as retry:
            settle_retry(session, retry, outcome)


async def _adopt_rules(
    session: FetchSession, origin: str, cached: CachedRobots, *, requested_ms: int
) -> RobotsRules:
    """Apply the rules in this lane.

    requested_ms: when this worker requested them from the host, 0 if another worker did.
    """
    lane = session.lane
    rules = await asyncio.to_thread(RobotsRules, cached.groups, cached.token)
    delay_s = lane.set_rules(origin, rules, cached.until_ms)
    session.change_gate(gate.crawl_delay_received(lane.gate, delay_s, requested_ms))
    return rules
