"""The fetches of a lane that no live worker can do."""

from collections import Counter
from collections.abc import Iterator, Mapping

from redis.asyncio import Redis

from fetchfleet.jobs import keys
from fetchfleet.jobs.contract.entry import BadEntryError, parse_entry
from fetchfleet.worker.fetch.rules.abilities import Ability, describe_worker, needs_of
from fetchfleet.worker.inspect.registration import abilities_of
from fetchfleet.worker.inspect.snapshot import worker_reports

LOOK_AT = 500
MOST = 20_000
"""How many entries are looked at; those beyond are not counted."""

Unserved = Mapping[frozenset[str], int]
"""How many fetches wait for a worker with abilities that no live worker has together."""


async def unserved(redis: Redis, lane: str) -> Unserved:
    """Count the fetches that wait for another attempt and need what no live worker can do."""
    workers = [abilities_of(report.registration).names for report in (await worker_reports(redis)).values()]
    if not workers or any(frozenset(Ability) <= has for has in workers):
        return {}
    found: Counter[frozenset[str]] = Counter()
    for start in range(0, MOST, LOOK_AT):
        elements: list[bytes] = await redis.zrange(keys.later(lane), start, start + LOOK_AT - 1)
        for needs in _needs(elements):
            if not any(needs <= has for has in workers):
                found[needs] += 1
        if len(elements) < LOOK_AT:
            break
    return found


def _needs(elements: list[bytes]) -> Iterator[frozenset[str]]:
    for element in elements:
        try:
            yield needs_of(parse_entry(element)).abilities
        except BadEntryError:
            continue


def sentence(found: Unserved) -> str:
    """Return the counts for people; empty without any. Pure."""
    return "; ".join(
        f"{count} {'fetch waits' if count == 1 else 'fetches wait'} for {describe_worker(abilities)}"
        for abilities, count in sorted(found.items(), key=lambda one: sorted(one[0]))
    )
