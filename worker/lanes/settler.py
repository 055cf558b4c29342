"""Writes what became of fetches to Redis: many at a time, again until Redis has it.

A result that cannot be written waits in memory: the body is on disk and must not be fetched again.
"""

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, NamedTuple

from redis.asyncio import Redis
from redis.exceptions import (
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_random_exponential

from fetchfleet.jobs import keys
from fetchfleet.jobs.contract.entry import Entry, to_element
from fetchfleet.jobs.contract.model import Outcome, Reason, Result, encode
from fetchfleet.jobs.scripts import settlement as scripts
from fetchfleet.jobs.scripts.runner import Call
from fetchfleet.worker.gate.state import to_json
from fetchfleet.worker.lanes.lane import Lane
from fetchfleet.worker.redis_support.key_repair import KeyRepair

GATHER_S = 0.01
"""How long settlements are gathered before they are written: the price of a result in latency."""

GATHER_MORE_S = 0.02
"""So much longer while more is in flight than waits: it can be written by the same commands."""

MAX_PAUSE_S = 1.0
"""Redis is asked again so soon: before the sweeps give the lanes away that waited for it."""

MAX_WAITING = 20_000
"""With as many results waiting for Redis, lanes claim nothing more."""


class Settlement(NamedTuple):
    """A change to one claimed fetch; `done` is called once Redis has it. ends: the fetch is ours no more."""

    change: scripts.Change
    done: Callable[[], None]
    ends: bool = True


def finished(result: Result, done: Callable[[], None]) -> Settlement:
    """The fetch has its result. What was there before is not counted: nothing came."""
    received_bytes = result.bytes or 0 if result.outcome is Outcome.STORED else 0
    change = scripts.finish(
        result.id, outcome=result.outcome.value, received_bytes=received_bytes, result=encode(result)
    )
    return Settlement(change, done)


def failed(result: Result, note: str) -> Settlement:
    """A copy of the fetch goes to the dead letters; `finished` follows."""
    return buried(result.id, result.reason or Reason.INTERNAL, note, lambda: None)


def again(entry: Entry, wait_s: float, done: Callable[[], None]) -> Settlement:
    """The fetch waits for its next attempt."""
    change = scripts.retry(entry.id, wait_ms=int(wait_s * 1000), element=to_element(entry))
    return Settlement(change, done)


def begun(entry: Entry, done: Callable[[], None]) -> Settlement:
    """The fetch stays claimed, and whoever claims it after a crash knows that it was begun."""
    return Settlement(scripts.start(entry.id, element=to_element(entry)), done, ends=False)


def noted(entry: Entry) -> Settlement:
    """The fetch stays claimed, as this entry: whoever claims it after a crash goes on from there."""
    return begun(entry, lambda: None)


def handed_back(fetch_id: str, wait_s: float, done: Callable[[], None]) -> Settlement:
    """The element waits, as it is, for somebody who can read it."""
    return Settlement(scripts.put_back(fetch_id, wait_ms=int(wait_s * 1000)), done)


def buried(fetch_id: str | bytes, reason: Reason, note: str, done: Callable[[], None]) -> Settlement:
    """A copy of what was claimed goes to the dead letters. `finished` or `dropped` follows."""
    return Settlement(scripts.bury(fetch_id, reason=reason.value, note=note), done)


def dropped(fetch_id: bytes) -> Settlement:
    """What was claimed is no fetch of any batch."""
    return Settlement(scripts.drop(fetch_id), lambda: None)


class Settler:
    """One for a worker process; `run` is its task. for_all: results go to the stream of all batches too."""

    def __init__(
        self,
        redis: Redis,
        on_trouble: Callable[[BaseException], None],
        *,
        for_all: bool = True,
        foreign: KeyRepair | None = None,
    ) -> None:
        self._redis = redis
        self._for_all = for_all
        self._foreign = foreign
        self._on_trouble = on_trouble
        self._waiting: dict[Lane, list[Settlement]] = {}
        self._writing: set[Lane] = set()
        self._some = asyncio.Event()
        self._awaited = asyncio.Event()
        self._written = asyncio.Condition()
        self._rounds = 0
        self.count = 0
        self.finished = 0

    @property
    def full(self) -> bool:
        """Whether so much waits for Redis that nothing more should be begun."""
        return self.count >= MAX_WAITING

    def add(self, lane: Lane, settlement: Settlement) -> None:
        """Write it soon."""
        self._waiting.setdefault(lane, []).append(settlement)
        self.count += 1
        self._some.set()
        if not settlement.ends:  # the fetch waits until that is noted
            self._awaited.set()

    def save_gate(self, lane: Lane) -> None:
        """Write the lane's gate soon, although nothing was settled."""
        self._waiting.setdefault(lane, [])
        self._some.set()

    async def flushed(self, lane: Lane) -> None:
        """Return when nothing of the lane waits to be written."""
        self._awaited.set()
        async with self._written:
            await self._written.wait_for(lambda: lane.lost or not self.has(lane))

    async def caught_up(self, lane: Lane) -> None:
        """Return when all that waited to be written of the lane is; more may have come since."""
        self._awaited.set()
        enough = self._rounds + 2  # the one under way may have begun before it was added
        async with self._written:
            await self._written.wait_for(lambda: lane.lost or not self.has(lane) or self._rounds >= enough)

    async def run(self) -> None:
        """Write what comes, until cancelled."""
        while True:
            await self._some.wait()
            await self._gather()
            self._some.clear()
            self._awaited.clear()
            taken, self._waiting = self._waiting, {}
            self._writing = set(taken)
            try:
                await self._write(taken)
            except Exception:
                self._put_back(taken)
                raise
            async with self._written:
                self._writing = set()
                self._rounds += 1
                self._written.notify_all()

    async def _gather(self) -> None:
        await asyncio.sleep(GATHER_S)
        in_flight = sum(len(lane.in_flight) for lane in self._waiting)
        if in_flight > self.count and not self._awaited.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(self._awaited.wait(), GATHER_MORE_S)

    def _put_back(self, taken: dict[Lane, list[Settlement]]) -> None:
        """What Redis has of it already it passes over when it is sent again."""
        for lane, settlements in taken.items():
            self._waiting[lane] = settlements + self._waiting.get(lane, [])
        self._some.set()

    def has(self, lane: Lane) -> bool:
        """Whether something of the lane waits to be written."""
        return lane in self._waiting or lane in self._writing

    async def _write(self, taken: dict[Lane, list[Settlement]]) -> None:
        """Try until Redis has answered for every lane; what it has it passes over when sent again."""
        calls = {lane: self._call(lane, settlements) for lane, settlements in taken.items()}
        async for attempt in _until_redis_answers(self._on_trouble):
            with attempt:
                replies = await scripts.settle_many(self._redis, list(calls.values()))
                asked = dict(zip(list(calls), replies, strict=True))
                for lane, reply in asked.items():
                    if not _may_pass(reply) and not await self._mended(lane, taken[lane], reply):
                        self._settled(lane, taken[lane], reply)
                        del calls[lane]
                _raise_first(
                    reply for lane, reply in asked.items() if lane in calls and isinstance(reply, Exception)
                )

    async def _mended(self, lane: Lane, settlements: Iterable[Settlement], reply: Any) -> bool:
        """Whether something foreign stood in the way, and does no longer."""
        if self._foreign is None:
            return False
        others: dict[str, str] = {}
        for batch in {item.change.batch_id for item in settlements if item.change.batch_id}:
            others |= keys.kinds_of_batch(batch)
        return await self._foreign.repair(reply, lane.name, others)

    def _call(self, lane: Lane, settlements: Iterable[Settlement]) -> Call:
        gate = to_json(lane.gate) if lane.gate is not lane.saved_gate else None
        lane.saved_gate = lane.gate
        return scripts.settle_call(
            lane=lane.name,
            token=lane.token,
            gate=gate,
            changes=[item.change for item in _not_overtaken(settlements)],
            to_all_results=self._for_all,
        )

    def _settled(self, lane: Lane, settlements: list[Settlement], reply: int | Exception | None) -> None:
        self.count -= len(settlements)
        if isinstance(reply, Exception):
            # What is at the lane's keys is not ours: this lane stops, the others must not wait for it.
            self._on_trouble(reply)
        if reply is None or isinstance(reply, Exception):
            lane.lose()
            return
        lane.clock.sync(reply)
        for item in settlements:
            if item.ends:
                lane.drop(item.change.fetch_id)
            self.finished += item.change.kind is scripts.ChangeKind.FINISH
            item.done()
        lane.notify()


def _not_overtaken(settlements: Iterable[Settlement]) -> list[Settlement]:
    """Without notes of fetches that go on to end in the same call.

    Sent again after a lost reply, such a note would be written over what has been claimed since.
    """
    items = list(settlements)
    ending = {item.change.fetch_id for item in items if item.ends}
    return [item for item in items if item.ends or item.change.fetch_id not in ending]


def _may_pass(reply: Any) -> bool:
    """Whether this is trouble of Redis's, to be waited out, and not of this one call."""
    if isinstance(reply, ResponseError):
        return isinstance(reply, NoPermissionError | OutOfMemoryError | ReadOnlyError)
    return isinstance(reply, Exception)


def _raise_first(replies: Iterable[object]) -> None:
    for reply in replies:
        if isinstance(reply, Exception):
            raise reply


def _until_redis_answers(on_trouble: Callable[[BaseException], None]) -> AsyncRetrying:
    def tell(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        if error is not None:
            on_trouble(error)

    return AsyncRetrying(
        retry=retry_if_exception_type((RedisError, OSError)),
        wait=wait_random_exponential(multiplier=0.2, max=MAX_PAUSE_S),
        before_sleep=tell,
    )
