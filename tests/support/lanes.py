"""Helpers that drive lanes through the store and the settler, and read their keys."""

from collections.abc import Sequence
from itertools import product
from typing import Any, Self

import msgspec
from redis.asyncio import Redis

from fetchfleet import Batch, Fetch, Fleet, Outcome, Reason, Result
from fetchfleet.jobs import keys
from fetchfleet.jobs.contract.entry import Entry, parse_entry, serialize_entry
from fetchfleet.jobs.contract.ids import FETCH_ID_CHARS, fetch_id
from fetchfleet.jobs.contract.result import decode_result
from fetchfleet.jobs.notifications import LaneNotification
from fetchfleet.jobs.scripts import runner, settlement
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
    """Return a URL of the lane."""
    return f"http://{lane}{path}"


def entry(place: int = 0, *, lane: str = LANE, deadline_ms: int = NEVER_MS) -> Entry:
    """Return an entry of a batch that was never submitted. The path of its URL is its index in the batch."""
    return Entry(
        id=fetch_id(BATCH_ID, place), deadline_ms=deadline_ms, fetch=Fetch(url=url(f"/{place}", lane))
    )


def paths(serialized: Sequence[bytes]) -> list[str]:
    """Return the paths of the fetches of serialized entries."""
    return ["/" + parse_entry(one).fetch.url.split("/", 3)[3] for one in serialized]


async def ask(redis: Redis, *command: str | bytes | int) -> Any:
    """Return the reply to a Redis command."""
    return await redis.execute_command(*command)  # type: ignore[no-untyped-call]


async def now_ms(redis: Redis) -> int:
    """Return Redis's Unix time in ms."""
    seconds, micros = await redis.time()
    return int(seconds) * 1000 + int(micros) // 1000


async def everything(redis: Redis) -> dict[bytes, Any]:
    """Return every key with its value, to show that a call changes nothing."""
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
    """Return the fields of the lane's hash."""
    found = await ask(redis, "HGETALL", keys.lane(lane))
    return {name.decode(): value.decode() for name, value in found.items()}


async def state(redis: Redis, lane: str = LANE) -> str | None:
    """Return idle, scheduled or held; None if the lane was never used."""
    return (await fields(redis, lane)).get("state")


async def waiting(redis: Redis, where: str = "normal", lane: str = LANE) -> list[bytes]:
    """Return the serialized entries in one of the lane's lists."""
    found: list[bytes] = await ask(redis, "LRANGE", keys.waiting_at(lane, where), 0, -1)
    return found


async def later(redis: Redis, lane: str = LANE) -> dict[bytes, float]:
    """Return the lane's retries, each with its due time in Unix ms."""
    return dict(await redis.zrange(keys.later(lane), 0, -1, withscores=True))


async def claimed(redis: Redis, lane: str = LANE) -> list[bytes]:
    """Return the claimed entries, in the order of their ids."""
    found: list[bytes] = await ask(redis, "HVALS", keys.claimed(lane))
    return sorted(found)


async def attention_ms(redis: Redis, lane: str = LANE) -> float | None:
    """Return the Unix time in ms from which the sweep reclaims the lane; None if it is idle."""
    score: float | None = await redis.zscore(keys.ATTENTION, lane)
    return score


async def results(redis: Redis, batch: Batch) -> list[Result]:
    """Return the batch's results so far."""
    rows = await ask(redis, "XRANGE", keys.results(batch.id), "-", "+")
    return [decode_result(row[b"r"]) for _, row in rows]


async def notifications(redis: Redis) -> dict[str, float]:
    """Return the jobs in arq's queue, each with its due time in Unix ms."""
    found = await redis.zrange(keys.QUEUE, 0, -1, withscores=True)
    return {job.decode(): due_ms for job, due_ms in found}


async def backlog(redis: Redis) -> int:
    """Return the fleet's count of fetches without a result."""
    return int(await redis.get(keys.BACKLOG) or 0)


async def open_in(redis: Redis, lane: str = LANE) -> int:
    """Return the lane's count of fetches without a result."""
    return int((await fields(redis, lane)).get("open", 0))


async def lapse(redis: Redis, lane: str = LANE) -> None:
    """Make the lease or the notification of the lane overdue."""
    await redis.zadd(keys.ATTENTION, {lane: 1})


async def reclaim(redis: Redis, limit: int = 200) -> list[ReclaimedLane]:
    """Run the sweep once."""
    return (await reclaim_overdue(redis, limit)).lanes


async def orphan_claim(redis: Redis, lane: str = LANE) -> None:
    """Claim the next fetch for an owner that does not know of it, as after a lost reply."""
    serialized: bytes = await ask(redis, "LPOP", keys.waiting_at(lane, "normal"))
    await ask(redis, "HSET", keys.claimed(lane), serialized[:FETCH_ID_CHARS], serialized)


async def put(redis: Redis, *entries: bytes, where: str = "normal", lane: str = LANE) -> None:
    """Append serialized entries to a list of a lane, without a script."""
    await ask(redis, "RPUSH", keys.waiting_at(lane, where), *entries)


def stored(serialized: bytes, size_bytes: int = 3) -> Settlement:
    """Return the settlement of a stored fetch."""
    return ended(serialized, Outcome.STORED, size_bytes)


def ended(
    serialized: bytes,
    outcome: Outcome,
    size_bytes: int | None = None,
    reason: Reason | None = None,
    note: str | None = None,
) -> Settlement:
    """Return the settlement of a fetch with a result."""
    of = parse_entry(serialized)
    result = Result(
        id=of.id,
        url=of.fetch.url,
        outcome=outcome,
        reason=reason,
        note=note,
        worker="test",
        bytes=size_bytes,
    )
    return settler.finished(result, lambda: None)


def retried(serialized: bytes, wait_s: float) -> Settlement:
    """Return the settlement of a fetch that is retried."""
    of = parse_entry(serialized)
    after = Entry(id=of.id, deadline_ms=of.deadline_ms, fetch=of.fetch, attempts=of.attempts + 1)
    return settler.retried(after, wait_s, lambda: None)


def start_marked(serialized: bytes) -> Settlement:
    """Return the settlement that stores the start marker of a fetch."""
    return settler.started(msgspec.structs.replace(parse_entry(serialized), begun=True), lambda: None)


def returned(serialized: bytes) -> Settlement:
    """Return the settlement that returns an unchanged claim to the lane's queue."""
    return settler.returned(parse_entry(serialized).id, 0, lambda: None)


def interrupted(serialized: bytes) -> bytes:
    """Return the serialized entry with one interruption more."""
    of = parse_entry(serialized)
    return serialize_entry(
        Entry(id=of.id, deadline_ms=of.deadline_ms, fetch=of.fetch, interruptions=of.interruptions + 1)
    )


class LaneHold:
    """A lane held by an owner. Calls keep its token even after the owner has lost the lane."""

    def __init__(self, redis: Redis, store: LaneStore, name: str, held: AcquiredLane) -> None:
        self.redis = redis
        self.store = store
        self.held = held
        self.lane = Lane(name, held.token, LanePolicy(), held.gate, RedisClock())
        self._settler = Settler(redis, lambda _: None)

    @classmethod
    async def begin(cls, redis: Redis, owner: str = "owner", name: str = LANE) -> Self:
        """Acquire the scheduled lane."""
        store = LaneStore(redis, owner, LEASE_MS)
        held = await store.acquire(name, int((await fields(redis, name))["generation"]))
        assert isinstance(held, AcquiredLane), held
        return cls(redis, store, name, held)

    async def claim(self, count: int = 100) -> Claim:
        """Claim waiting fetches."""
        return await self.store.claim(self.lane.name, self.held.token, count)

    async def scan_queue(self, kind: Removal, where: str = "normal", offset: int = 0) -> Withdrawal:
        """Claim the fetches to remove from a queue, for one step of the removal scan."""
        return await self.store.withdraw(self.lane.name, self.held.token, kind, where, offset)

    def settlement(self, *settlements: Settlement, release_if_empty: bool = False) -> runner.Call:
        """Return the call that writes the settlements."""
        changes = self._settler._changes(self.lane, settlements, release_if_empty=release_if_empty)
        return settlement.settle_call([changes], to_all_results=self._settler._for_all)

    async def settle(self, *settlements: Settlement, release_if_empty: bool = False) -> Any:
        """Write the settlements; return the reply, [] if the token is stale."""
        call = self.settlement(*settlements, release_if_empty=release_if_empty)
        (reply,) = await runner.run(self.redis, call.script, call.keys, call.args)
        return reply

    async def release(
        self,
        *changed: bytes,
        shut_until_ms: int = 0,
        why: str = "",
        gate: GateState | None = None,
        needs: str = "",
    ) -> LaneNotification | None:
        """Release the lane."""
        state = to_json(gate or GateState())
        return await self.store.release(
            self.lane.name, self.held.token, state, shut_until_ms, why, changed, needs
        )

    async def transfer(
        self, serialized: bytes, to_lane: str, priority: str = "normal"
    ) -> LaneNotification | BatchCancelled | None:
        """Move a claimed fetch to another lane."""
        of = parse_entry(serialized).id
        return await self.store.transfer(self.lane.name, self.held.token, of, serialized, to_lane, priority)

    async def withdraw(self, *batches: Batch) -> list[bytes]:
        """Claim and cancel every waiting fetch of cancelled batches; return their entries."""
        withdrawn: list[bytes] = []
        for batch, queue in product(batches, keys.LANE_QUEUES):
            offset: int | None = 0
            while offset is not None:
                kind = Removal(RemovalKind.BATCH, batch.id)
                step = await self.store.withdraw(self.lane.name, self.held.token, kind, queue, offset)
                withdrawn += step.serialized
                offset = step.next_offset
        await self.settle(*(ended(serialized, Outcome.CANCELLED) for serialized in withdrawn))
        return withdrawn

    async def withdrawn(self, *batches: Batch) -> list[bytes]:
        """Report that no fetch of these batches waits; return those that are still claimed."""
        ids = {batch.id for batch in batches}
        return (await self.store.withdrawn(self.lane.name, self.held.token, ids)).serialized

    async def adopt(self, *entries: bytes) -> None:
        """Rewrite claimed entries."""
        await self.store.adopt(self.lane.name, self.held.token, entries)

    async def renew(self) -> bool:
        """Renew the lease; return whether the token is current."""
        _, renewed = await self.store.renew([(self.lane.name, self.held.token)])
        return renewed == [True]

    async def finish(self, count: int = 100) -> list[str]:
        """Claim and store every fetch, release the lane, and return the paths."""
        entries = (await self.claim(count)).serialized
        assert await self.settle(*(stored(serialized) for serialized in entries))
        await self.release()
        return paths(entries)


async def run_lane_lifecycle(redis_url: str, redis: Redis) -> None:
    """Take a lane through its whole lifecycle: submit, acquire, claim, retry, crash, reclaim, finish."""
    async with Fleet(redis_url) as fleet:
        batch = await fleet.submit([url("/1"), url("/2"), url("/3")])
        first = await LaneHold.begin(redis, "first")
        one, two = (await first.claim(2)).serialized
        assert await first.settle(stored(one), retried(two, 0))
        (two_again,) = (await first.claim(1)).serialized
        assert parse_entry(two_again).attempts == 1

        await lapse(redis)
        ((notification, lost),) = await reclaim(redis)
        assert (notification.lane, lost) == (LANE, "first")
        second = await LaneHold.begin(redis, "second")
        assert second.held.orphans.serialized == [two_again]
        assert await first.settle(stored(two_again)) == []
        assert await second.settle(stored(two_again))
        assert await second.finish() == ["/3"]

        assert await state(redis) == "idle"
        assert [result.url async for result in batch.results()] == [url("/1"), url("/2"), url("/3")]


async def fail_batch(fleet: Fleet, redis: Redis, count: int, lane: str = LANE, batch: str = BATCH_ID) -> None:
    """Fail the fetches of a batch permanently, as a worker does."""
    await fleet.submit([url(f"/{place}?token=secret", lane) for place in range(count)], batch_id=batch)
    hold = await LaneHold.begin(redis, name=lane)
    for element in (await hold.claim(count)).serialized:
        of = parse_entry(element)
        result = Result(
            id=of.id,
            url=of.fetch.url,
            outcome=Outcome.FAILED,
            reason=Reason.HTTP_STATUS,
            worker="test",
            note=f"note of {of.fetch.url}",
        )
        await hold.settle(settler.failed(result), settler.finished(result, lambda: None))
    await hold.release()
