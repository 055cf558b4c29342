"""Quarantine: entries of a lane that are not fetches of its host are removed, and the lane continues."""

from collections import Counter
from pathlib import Path
from typing import Any

from redis.asyncio import Redis

from fetchfleet import Fetch, Outcome
from fetchfleet.jobs import keys
from fetchfleet.jobs.contract.entry import Entry, Hop, serialize_entry
from tests.component.conftest import HOST, OTHER_HOST, Lines, Start
from tests.support.lanes import NEVER_MS, ask
from tests.support.waiting import wait_until
from tools.origin import behaviours as o
from tools.origin.server import Origin

FOREIGN_BATCH = "00ff00ff00ff00ff"


def forged(place: int, url: str, **fields: Any) -> bytes:
    """Return a serialized entry of a batch that was never submitted."""
    entry = Entry(id=f"{FOREIGN_BATCH}-{place:08x}", deadline_ms=NEVER_MS, fetch=Fetch(url=url), **fields)
    return serialize_entry(entry)


async def lanes_of_letters(redis: Redis) -> Counter[str]:
    """Return the number of dead letters of invalid entries by lane."""
    rows = [row for _, row in await ask(redis, "XRANGE", keys.DEAD, "-", "+")]
    return Counter(row[b"lane"].decode() for row in rows if row[b"reason"] == b"invalid")


async def test_only_fetches_of_the_lanes_host_are_made_in_a_lane(
    origin: Origin, other: Origin, start: Start, redis: Redis, lines: Lines, tmp_path: Path
) -> None:
    """Otherwise forged entries could send other files, or exceed the concurrency of another host."""
    (tmp_path / "in").mkdir()
    (tmp_path / "secret").write_text("secret")
    origin.behaviour = o.latency(0.02)
    forgeries = {
        HOST: [
            forged(1, origin.url("/1"), hop=Hop("POST", origin.url("/1"), body_file="../secret"), hops=1),
            forged(2, origin.url("/2"), hop=Hop("GET", origin.url("/2"), (("X", "a\r\nY: b"),)), hops=1),
            forged(3, origin.url("/3"), attempts=-10),
            forged(4, other.url("/4")),
            forged(5, origin.url("/5"))[:-1],
            b"x" * 10,
        ],
        OTHER_HOST: [forged(place, origin.url(f"/{place}")) for place in range(10, 14)],
        "localhost": [forged(place, origin.url(f"/{place}")) for place in range(20, 24)],
    }
    for lane, elements in forgeries.items():
        await redis.rpush(keys.waiting_at(lane, "high"), *elements)  # type: ignore[misc]

    worker = await start(in_folder=tmp_path / "in", policy={"concurrency": 2, "attempts": 1})
    good = [origin.url(f"/good/{number}") for number in range(6)]
    results = await worker.results([*good, other.url("/good"), "http://localhost:1/"])
    expected = {lane: len(elements) for lane, elements in forgeries.items()}

    async def all_quarantined() -> bool:
        return await lanes_of_letters(redis) == expected

    await wait_until(all_quarantined, "the dead letters")

    assert [Outcome.STORED] * 7 == [result.outcome for result in results[:7]]
    assert set(good) == {origin.url(request.target) for request in origin.requests}
    assert (6, 1) == (len(origin.requests), len(other.requests))
    assert origin.high_water <= 2
    logged = {(line["lane"], line["why"]) for line in lines if line["event"] == "lane.invalid"}
    every = {(HOST, "unreadable"), *((lane, "wrong_lane") for lane in forgeries)}
    assert every == logged
    worker.runtime.stats.log_line()
    [beat] = [line for line in lines if line["event"] == "worker.heartbeat"][-1:]
    assert {"unreadable": 5, "wrong_lane": 9} == beat["quarantined"]
