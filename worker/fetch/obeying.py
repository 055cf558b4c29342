"""Before the first fetch to an origin its robots.txt is asked, once for all that wait for it."""

import asyncio

from redis.exceptions import RedisError

from fetchfleet.jobs.contract.entry import Entry
from fetchfleet.jobs.contract.lanes import origin_of_url
from fetchfleet.worker.fetch.robots_txt import Asked, Question
from fetchfleet.worker.fetch.rules.decide import Answered, Broke, Held, asks_for_quiet
from fetchfleet.worker.fetch.run import learn, wait_for_robots
from fetchfleet.worker.fetch.services import Parts
from fetchfleet.worker.gate import gate, robots_rules
from fetchfleet.worker.gate.robots_rules import Kept, Means, Rules
from fetchfleet.worker.lanes.lane import Lane
from fetchfleet.worker.lanes.retry import patiently
from fetchfleet.worker.observability import events


async def rules_for(entry: Entry, lane: Lane, parts: Parts) -> Rules | None:
    """What the next request's origin lets us do, None if nobody in the fleet knows."""
    url = entry.url
    rules = lane.rules(url)
    if rules is not None or lane.is_asking(url):
        return rules
    origin, token = origin_of_url(url), robots_rules.token_of(parts.settings.user_agent)
    text = await patiently(lane, parts, lambda: parts.store.robots(origin))
    kept = robots_rules.from_json(text, token, lane.clock.now_ms()) if text else None
    return await _known(origin, kept, lane, 0) if kept is not None else None


async def ask_first(entry: Entry, lane: Lane, parts: Parts) -> None:
    """Ask the origin in the place of this fetch, which is first in line once the answer is known."""
    origin = origin_of_url(entry.url)
    question = Question(origin, entry, lane, parts)
    try:
        asked = await question.ask()
        events.robots(lane, origin, asked.happened, parts.log)
        learn(question.trace, asked.happened, lane, parts)
        kept = await _kept(asked, lane, parts)
        if kept is not None:
            await _known(origin, kept, lane, lane.clock.now_ms())
            await _share(origin, kept, asked, lane, parts)
        if kept is not None or isinstance(asked.happened, Held):
            lane.ready.appendleft(entry)
            return
    finally:
        lane.asking.pop(origin, None)
    if not asks_for_quiet(asked.happened):
        lane.gate = gate.kept_out(lane.gate, lane.policy, lane.clock.now_ms(), parts.chance())
        parts.settler.save_gate(lane)
    await wait_for_robots(entry, asked.happened, lane, parts)


async def _kept(asked: Asked, lane: Lane, parts: Parts) -> Kept | None:
    """What the answer lets us do, None if it has to be waited for."""
    token, now_ms = robots_rules.token_of(parts.settings.user_agent), lane.clock.now_ms()
    match asked.happened:
        case Answered(status=status) if robots_rules.meaning(status) is not Means.WAIT:
            return await asyncio.to_thread(robots_rules.kept_of, token, status, asked.body or b"", now_ms)
        case Broke(final=True):  # it can never be asked; nor can the fetch, which is to say so itself
            return robots_rules.unaskable(token, now_ms)
    return None


async def _known(origin: str, kept: Kept, lane: Lane, asked_ms: int) -> Rules:
    """The rules are the lane's from here on; asked_ms: when the host was asked for them, if it was."""
    rules = await asyncio.to_thread(Rules, kept.groups, kept.token)
    lane.robots.learn(origin, rules, kept.until_ms)
    lane.gate = gate.spaced(lane.gate, lane.robots.crawl_delay_s(), asked_ms)
    return rules


async def _share(origin: str, kept: Kept, asked: Asked, lane: Lane, parts: Parts) -> None:
    """The fleet need not ask again; where Redis does not take it, it will."""
    if not isinstance(asked.happened, Answered):
        return
    ttl_ms = kept.until_ms - lane.clock.now_ms()
    try:
        await parts.store.keep_robots(origin, robots_rules.to_json(kept), ttl_ms)
    except (RedisError, OSError) as error:
        parts.trouble(error)
