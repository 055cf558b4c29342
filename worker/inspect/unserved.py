"""The fetches of a lane that no live worker can do."""

from collections import Counter
from collections.abc import Iterator, Mapping

from redis.asyncio import Redis

from fetchfleet.jobs import keys
from fetchfleet.jobs.contract.entry import BadEntryError, parse_entry
from fetchfleet.worker.fetch.rules.abilities import Ability, describe_worker, needs_of
from fetchfleet.worker.inspect.registration import abilities_of
from fetchfleet.worker.inspect.snapshot import worker_reports

PAGE = 500
MAX_ENTRIES = 20_000
"""The maximum number of entries to read from a lane. Fetches beyond it are not counted."""

Unserved = Mapping[frozenset[str], int]
"""The number of fetches that no live worker can do, by the abilities that they need."""


async def unserved(redis: Redis, lane: str) -> Unserved:
    """Count the retries of a lane that no live worker can do."""
    workers = [abilities_of(report.registration).names for report in (await worker_reports(redis)).values()]
    if not workers or any(frozenset(Ability) <= has for has in workers):
        return {}
    counts: Counter[frozenset[str]] = Counter()
    for start in range(0, MAX_ENTRIES, PAGE):
        elements: list[bytes] = await redis.zrange(keys.later(lane), start, start + PAGE - 1)
        for needs in _needs(elements):
            if not any(needs <= has for has in workers):
                counts[needs] += 1
        if len(elements) < PAGE:
            break
    return counts


def _needs(elements: list[bytes]) -> Iterator[frozenset[str]]:
    """Yield the abilities that each valid entry needs."""
    for element in elements:
        try:
            yield needs_of(parse_entry(element)).abilities
        except BadEntryError:
            continue


def sentence(counts: Unserved) -> str:
    """Return the counts in words; empty without any. Pure."""
    return "; ".join(
        f"{count:,} {'fetch waits' if count == 1 else 'fetches wait'} for {describe_worker(abilities)}"
        for abilities, count in sorted(counts.items(), key=lambda item: sorted(item[0]))
    )
