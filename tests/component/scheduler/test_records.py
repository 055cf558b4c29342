"""Results: each counts once, and only for a fetch of its batch."""

from collections import Counter

from redis.asyncio import Redis

from fetchfleet import Fetch, Fleet
from fetchfleet.jobs import keys
from fetchfleet.jobs.contract.entry import Entry, serialize_entry
from fetchfleet.jobs.contract.ids import fetch_id
from tests.component.conftest import HOST, OTHER_HOST, Lines, Start
from tests.support.lanes import NEVER_MS, ask, backlog, open_in, put, results, waiting
from tests.support.waiting import wait_until
from tools.origin import behaviours as o
from tools.origin.server import Origin


def quarantined(lines: Lines) -> Counter[str]:
    """Return the number of quarantined entries by reason, from the heartbeat lines of the log."""
    beats = [line["quarantined"] for line in lines if line["event"] == "worker.heartbeat"]
    return sum(map(Counter, beats), Counter[str]())


async def test_only_fetches_of_a_batch_have_results_in_it(
    fleet: Fleet, origin: Origin, other: Origin, start: Start, redis: Redis, lines: Lines
) -> None:
    """Forged IDs and copied entries are quarantined. The lanes are those of a redirect and its target."""
    origin.behaviour = o.by_path({"/away": o.redirect(other.url("/there")), "/": o.OK})
    batch = await fleet.submit([origin.url("/1"), origin.url("/2"), origin.url("/away")])
    own = await waiting(redis, lane=HOST)
    places = ((batch.id, 0), (batch.id, 1), (batch.id, 9), ("0" * 16, 0))
    forged = [
        serialize_entry(
            Entry(id=fetch_id(of, place), deadline_ms=NEVER_MS, fetch=Fetch(url=origin.url("/x")))
        )
        for of, place in places
    ]
    damaged = own[0][:-1]
    await put(redis, *forged, damaged, where="high", lane=HOST)
    await put(redis, *own, where="low", lane=HOST)
    await put(redis, own[0], where="high", lane=OTHER_HOST)
    await fleet.submit([other.url("/3")])
    worker = await start()
    expected = Counter(not_its_fetch=2, unknown_batch=1, unreadable=1, wrong_lane=1, ended=4)

    async def counted() -> bool:
        worker.runtime.stats.log_line()
        return quarantined(lines) == expected

    await wait_until(counted, "the forgeries to be quarantined")
    found = [(result.id, result.url) for result in await results(redis, batch)]
    urls = [origin.url("/1"), origin.url("/2"), origin.url("/away")]
    assert sorted(found) == [(fetch_id(batch.id, place), of) for place, of in enumerate(urls)]
    counts = await batch.counts()
    assert (counts.total, counts.stored, counts.ended) == (3, 3, True)
    assert "/x" not in [request.target for request in origin.requests]

    async def at_rest() -> bool:
        return not (await backlog(redis) or await open_in(redis, HOST) or await open_in(redis, OTHER_HOST))

    await wait_until(at_rest, "the lanes to be empty")
    invalid = [row[b"reason"] for _, row in await ask(redis, "XRANGE", keys.DEAD, "-", "+")]
    assert invalid == [b"invalid"] * expected.total()
