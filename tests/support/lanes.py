"""Lanes as tests drive them: by the Store and the Settler, with the bare keys to look at."""

from collections.abc import Sequence
from itertools import product
from typing import Any, Self

import msgspec
from redis.asyncio import Redis

from fetchfleet import Batch, Fetch, Fleet, Outcome, Reason, Result
from fetchfleet.jobs import keys
from fetchfleet.jobs.contract.entry import Entry, parse_entry, serialize_entry
from fetchfleet.jobs.contract.ids import FETCH_ID_CHARS, fetch_id
from fetchfleet.jobs.contract.model import decode_result
from fetchfleet.jobs.notifications import LaneNotification
from fetchfleet.jobs.scripts import runner
from fetchfleet.jobs.scripts.lanes import Claim, ReclaimedLane, RemovalKind, Withdrawal
from fetchfleet.worker.gate.state import GateState, to_json
from fetchfleet.worker.lanes import settler
from fetchfleet.worker.lanes.lane import Lane
from fetchfleet.worker.lanes.settler import Settlement, Settler
from fetchfleet.worker.lanes.store import AcquiredLane, BatchCancelled, LaneStore, Removal
from fetchfleet.worker.policy.model import LanePolicy
from fetchfleet.worker.scheduler.sweep import reclaim_overdue
from fetchfleet.worker.util.clock import RedisClock

LANE = "a.example"
LEASE_MS = 60_000
HOUR_MS = 3600 * 1000
NEVER_MS = 10**12 * 9
BATCH_ID = "0123456789abcdef"


def url(path: str, lane: str = LANE) -> str:
    """A URL of that lane."""
    return f"http://{lane}{path}"


def entry(place: int = 0, *, lane: str = LANE, deadline_ms: int = NEVER_MS) -> Entry:
    """An entry of a batch that was never submitted; its path is its place."""
    return Entry(
        id=fetch_id(BATCH_ID, place), deadline_ms=deadline_ms, fetch=Fetch(url=url(f"/{place}", lane))
    )


def paths(elements: Sequence[bytes]) -> list[str]:
    """Which fetches the elements are."""
    return ["/" + parse_entry(element).fetch.url.split("/", 3)[3] for element in elements]


async def ask(redis: Redis, *command: str | bytes | int) -> Any:
    """What Redis answers to a bare command."""
    return await redis.execute_command(*command)  # type: ignore[no-untyped-call]


async def now_ms(redis: Redis) -> int:
    """Redis's Unix time."""
    seconds, micros = await redis.time()
    return int(seconds) * 1000 + int(micros) // 1000


async def everything(redis: Redis) -> dict[bytes, Any]:
    """Every key with what it holds, to see whether a call has changed anything."""
    return {name: await _value(redis, name) for name in sorted(await redis.keys("*"))}


async def _value(redis: Redis, name: bytes) -> Any:
    match await redis.type(name):
        case b"hash":
            return await ask(redis, "HGETALL", name)
        case b"set":
            return sorted(await ask(redis, "SMEMBERS", name))
        case b"list":
            return await ask(redis, "LRANGE", name, 0, -1)
        case b"zset":
            return await ask(redis, "ZRANGE", name, 0, -1, "WITHSCORES")
        case b"stream":
            return await ask(redis, "XRANGE", name, "-", "+")
        case _:
            return await ask(redis, "GET", name)


async def fields(redis: Redis, lane: str = LANE) -> dict[str, str]:
    """The lane's hash."""
    found = await ask(redis, "HGETALL", keys.lane(lane))
    return {name.decode(): value.decode() for name, value in found.items()}


async def state(redis: Redis, lane: str = LANE) -> str | None:
    """idle, scheduled or held; None for a lane that was never used."""
    return (await fields(redis, lane)).get("state")


async def waiting(redis: Redis, where: str = "normal", lane: str = LANE) -> list[bytes]:
    """The elements in one of the lane's lists."""
    found: list[bytes] = await ask(redis, "LRANGE", keys.waiting_at(lane, where), 0, -1)
    return found


async def later(redis: Redis, lane: str = LANE) -> dict[bytes, float]:
    """The lane's retries, each with when it is due."""
    return dict(await redis.zrange(keys.later(lane), 0, -1, withscores=True))


async def claimed(redis: Redis, lane: str = LANE) -> list[bytes]:
    """The elements that the lane's owner is at work on, in the order of their ids."""
    found: list[bytes] = await ask(redis, "HVALS", keys.claimed(lane))
    return sorted(found)


async def attention_ms(redis: Redis, lane: str = LANE) -> float | None:
    """When somebody must look at the lane; None for an idle one."""
    score: float | None = await redis.zscore(keys.ATTENTION, lane)
    return score


async def results(redis: Redis, batch: Batch) -> list[Result]:
    """The batch's results so far."""
    rows = await ask(redis, "XRANGE", keys.results(batch.id), "-", "+")
    return [decode_result(row[b"r"]) for _, row in rows]


async def hand_offs(redis: Redis) -> dict[str, float]:
    """The jobs in arq's queue, each with when it is due."""
    found = await redis.zrange(keys.QUEUE, 0, -1, withscores=True)
    return {job.decode(): due_ms for job, due_ms in found}


async def backlog(redis: Redis) -> int:
    """How many fetches without a result the fleet counts."""
    return int(await redis.get(keys.BACKLOG) or 0)


async def open_in(redis: Redis, lane: str = LANE) -> int:
    """How many fetches without a result the lane counts."""
    return int((await fields(redis, lane)).get("open", 0))


async def lapse(redis: Redis, lane: str = LANE) -> None:
    """The lease ended long ago, or the wake was lost long ago."""
    await redis.zadd(keys.ATTENTION, {lane: 1})


async def reclaim(redis: Redis, limit: int = 200) -> list[ReclaimedLane]:
    """Sweep once."""
    return (await reclaim_overdue(redis, limit)).lanes


async def lose_a_claim(redis: Redis, lane: str = LANE) -> None:
    """The next fetch is claimed, and nobody hears of it."""
    element: bytes = await ask(redis, "LPOP", keys.waiting_at(lane, "normal"))
    await ask(redis, "HSET", keys.claimed(lane), element[:FETCH_ID_CHARS], element)


async def put(redis: Redis, *elements: bytes, where: str = "normal", lane: str = LANE) -> None:
    """Put elements into a lane behind everybody's back."""
    await ask(redis, "RPUSH", keys.waiting_at(lane, where), *elements)


def stored(element: bytes, size_bytes: int = 3) -> Settlement:
    """The fetch's body is on disk."""
    return ended(element, Outcome.STORED, size_bytes)


def ended(
    element: bytes, outcome: Outcome, size_bytes: int | None = None, reason: Reason | None = None
) -> Settlement:
    """The fetch has its result."""
    of = parse_entry(element)
    result = Result(
        id=of.id, url=of.fetch.url, outcome=outcome, reason=reason, worker="test", bytes=size_bytes
    )
    return settler.finished(result, lambda: None)


def retried(element: bytes, wait_s: float) -> Settlement:
    """The fetch failed once more and waits."""
    of = parse_entry(element)
    after = Entry(id=of.id, deadline_ms=of.deadline_ms, fetch=of.fetch, attempts=of.attempts + 1)
    return settler.retried(after, wait_s, lambda: None)


def noted(element: bytes) -> Settlement:
    """The fetch is about to be begun."""
    return settler.started(msgspec.structs.replace(parse_entry(element), begun=True), lambda: None)


def handed_back(element: bytes) -> Settlement:
    """The element is put back as it is."""
    return settler.handed_back(parse_entry(element).id, 0, lambda: None)


def interrupted(element: bytes) -> bytes:
    """The element with another ledger."""
    of = parse_entry(element)
    return serialize_entry(
        Entry(id=of.id, deadline_ms=of.deadline_ms, fetch=of.fetch, interruptions=of.interruptions + 1)
    )


class Stay:
    """A lane held by an owner, or once held: each call carries the token of then."""

    def __init__(self, redis: Redis, store: LaneStore, name: str, held: AcquiredLane) -> None:
        self.redis = redis
        self.store = store
        self.held = held
        self.lane = Lane(name, held.token, LanePolicy(), held.gate, RedisClock())
        self._settler = Settler(redis, lambda _: None)

    @classmethod
    async def begin(cls, redis: Redis, owner: str = "owner", name: str = LANE) -> Self:
        """Take the lane as arq would hand it over."""
        store = LaneStore(redis, owner, LEASE_MS)
        held = await store.acquire(name, int((await fields(redis, name))["generation"]))
        assert isinstance(held, AcquiredLane), held
        return cls(redis, store, name, held)

    async def claim(self, count: int = 100) -> Claim:
        """Claim waiting fetches."""
        return await self.store.claim(self.lane.name, self.held.token, count)

    async def take_out(self, kind: Removal, where: str = "normal", offset: int = 0) -> Withdrawal:
        """Claim fetches of a kind, wherever in that queue they wait."""
        return await self.store.withdraw(self.lane.name, self.held.token, kind, where, offset)

    def settlement(self, *settlements: Settlement) -> runner.Call:
        """The call that writes these settlements."""
        return self._settler._call(self.lane, settlements)

    async def settle(self, *settlements: Settlement) -> Any:
        """The reply to these settlements: [] when the token is refused."""
        call = self.settlement(*settlements)
        return await runner.run(self.redis, call.script, call.keys, call.args)

    async def release(
        self,
        *changed: bytes,
        shut_until_ms: int = 0,
        why: str = "",
        gate: GateState | None = None,
    ) -> LaneNotification | None:
        """Give the lane back."""
        return await self.store.release(
            self.lane.name, self.held.token, to_json(gate or GateState()), shut_until_ms, why, changed
        )

    async def transfer(
        self, element: bytes, to_lane: str, priority: str = "normal"
    ) -> LaneNotification | BatchCancelled | None:
        """Hand a claimed fetch to another lane."""
        of = parse_entry(element).id
        return await self.store.transfer(self.lane.name, self.held.token, of, element, to_lane, priority)

    async def withdraw(self, *batches: Batch) -> list[bytes]:
        """Claim all that waits of cancelled batches, and give it its results; what it was."""
        found: list[bytes] = []
        for batch, queue in product(batches, keys.LANE_QUEUES):
            offset: int | None = 0
            while offset is not None:
                kind = Removal(RemovalKind.BATCH, batch.id)
                found_here = await self.store.withdraw(self.lane.name, self.held.token, kind, queue, offset)
                found += found_here.serialized
                offset = found_here.go_on
        await self.settle(*(ended(element, Outcome.CANCELLED) for element in found))
        return found

    async def withdrawn(self, *batches: Batch) -> list[bytes]:
        """Say that nothing of these batches waits here; what of them is claimed still."""
        ids = {batch.id for batch in batches}
        return await self.store.withdrawn(self.lane.name, self.held.token, ids)

    async def adopt(self, *elements: bytes) -> None:
        """Rewrite claimed elements."""
        await self.store.adopt(self.lane.name, self.held.token, elements)

    async def renew(self) -> bool:
        """Whether the lane is still ours; if so, for longer."""
        _, kept = await self.store.renew([(self.lane.name, self.held.token)])
        return kept == [True]

    async def finish(self, count: int = 100) -> list[str]:
        """Store all that can be claimed and give the lane back; which fetches these were."""
        elements = (await self.claim(count)).serialized
        assert await self.settle(*(stored(element) for element in elements))
        await self.release()
        return paths(elements)


async def live_a_lane_life(redis_url: str, redis: Redis) -> None:
    """Submit, take, claim, retry, crash, rescue, finish: once through a lane's whole life."""
    async with Fleet(redis_url) as fleet:
        batch = await fleet.submit([url("/1"), url("/2"), url("/3")])
        first = await Stay.begin(redis, "first")
        one, two = (await first.claim(2)).serialized
        assert await first.settle(stored(one), retried(two, 0))
        (two_again,) = (await first.claim(1)).serialized
        assert parse_entry(two_again).attempts == 1

        await lapse(redis)
        ((wake, lost),) = await reclaim(redis)
        assert (wake.lane, lost) == (LANE, "first")
        second = await Stay.begin(redis, "second")
        assert second.held.orphans == [two_again]
        assert await first.settle(stored(two_again)) == []
        assert await second.settle(stored(two_again))
        assert await second.finish() == ["/3"]

        assert await state(redis) == "idle"
        assert [result.url async for result in batch.results()] == [url("/1"), url("/2"), url("/3")]
