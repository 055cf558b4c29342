"""Writes the settlements of fetches to Redis, in batches, and repeats them until they succeed.

A result that cannot be written is kept in memory, because its body is stored and must not be fetched again.
"""

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import NamedTuple

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
from fetchfleet.jobs.contract.entry import Entry, serialize_entry
from fetchfleet.jobs.contract.fetch import encode
from fetchfleet.jobs.contract.result import Outcome, Reason, Result
from fetchfleet.jobs.scripts import settlement as scripts
from fetchfleet.worker.lanes.lane import Lane
from fetchfleet.worker.lanes.log_events import FinishedLine, write_finished
from fetchfleet.worker.lanes.parameters import LaneParameters
from fetchfleet.worker.observability.totals import FetchTotals
from fetchfleet.worker.redis_support.key_repair import KeyRepair

GATHER_S = 0.01
"""Time for which settlements are gathered before they are written. It delays every result."""

GATHER_MORE_S = 0.02
"""Additional time if more fetches are in flight than settlements wait, to write them with one call."""

MAX_PAUSE_S = 1.0
"""Maximum wait between two tries. Must be short, so that waiting lanes keep their leases."""


class Settlement(NamedTuple):
    """A change to one claimed fetch."""

    change: scripts.Change
    done: Callable[[], None]
    """Called once Redis has the change."""
    ends: bool = True
    """The change ends the claim."""
    line: FinishedLine | None = None
    """The log line to write once Redis has the change."""
    unlogged: tuple[Outcome, Reason | None] | None = None
    """The outcome and the reason of a result without a log line."""


def _nothing() -> None:
    """Do nothing."""


def finished(
    result: Result, done: Callable[[], None] = _nothing, line: FinishedLine | None = None
) -> Settlement:
    """End the fetch with its result. Only the bytes of a newly stored body count as received."""
    outcome = result.outcome
    received_bytes = result.bytes or 0 if outcome is Outcome.STORED else 0
    change = scripts.finish(result.id, outcome=outcome, received_bytes=received_bytes, result=encode(result))
    return Settlement(change, done, line=line, unlogged=(outcome, result.reason) if line is None else None)


def failed(result: Result) -> Settlement:
    """Copy the fetch to the dead letters, with its status if there is no note. Add `finished` after it."""
    note = result.note or ""
    if not note and result.status is not None:
        note = f"status {result.status}"
    return buried(result.id, result.reason or Reason.INTERNAL, note, _nothing)


def retried(entry: Entry, wait_s: float, done: Callable[[], None]) -> Settlement:
    """Queue the fetch for its next attempt."""
    change = scripts.retry(entry.id, wait_ms=int(wait_s * 1000), serialized=serialize_entry(entry))
    return Settlement(change, done)


def started(entry: Entry, done: Callable[[], None]) -> Settlement:
    """Save the entry of a fetch that is about to start, so that a crash is counted. Keeps the claim."""
    return Settlement(scripts.start(entry.id, serialized=serialize_entry(entry)), done, ends=False)


def rewritten(entry: Entry) -> Settlement:
    """Save the entry of a running fetch, from which the next owner resumes after a crash. Keeps the claim."""
    return started(entry, _nothing)


def returned(fetch_id: str, wait_s: float, done: Callable[[], None]) -> Settlement:
    """Return the claim, with its entry unchanged, for a worker that can read it."""
    return Settlement(scripts.return_claim(fetch_id, wait_ms=int(wait_s * 1000)), done)


def buried(fetch_id: str | bytes, reason: Reason, note: str, done: Callable[[], None]) -> Settlement:
    """Copy a claimed element to the dead letters. Add `finished` or `dropped` after it."""
    return Settlement(scripts.bury(fetch_id, reason=reason.value, note=note), done)


def dropped(fetch_id: bytes) -> Settlement:
    """Remove a claim that belongs to no batch."""
    return Settlement(scripts.drop(fetch_id), _nothing)


class Settler:
    """Writes the settlements of a worker process. `run` is its task.

    for_all: also write results to the stream of all batches. on_had_ended: called with the lane and the ID of
    a fetch that got no result, because it had ended before. log_one_of: see write_finished.
    """

    def __init__(
        self,
        redis: Redis,
        on_redis_error: Callable[[BaseException], None],
        *,
        for_all: bool = True,
        key_repair: KeyRepair | None = None,
        on_had_ended: Callable[[Lane, str], None] = lambda _, __: None,
        totals: FetchTotals | None = None,
        log_one_of: int = 1,
        gather_more_s: float = GATHER_MORE_S,
        max_waiting: int = LaneParameters().max_settlements,
    ) -> None:
        self._redis = redis
        self._for_all = for_all
        self._key_repair = key_repair
        self._on_had_ended = on_had_ended
        self._on_redis_error = on_redis_error
        self._log_one_of = log_one_of
        self._gather_more_s = gather_more_s
        self._max_waiting = max_waiting
        self._waiting: dict[Lane, list[Settlement]] = {}
        self._writing: set[Lane] = set()
        """The lanes whose settlements a call under way writes."""
        self._releasing: set[Lane] = set()
        """The lanes that a call under way releases if they are empty."""
        self._added = asyncio.Event()
        self._urgent = asyncio.Event()
        """A caller waits for a settlement, so do not gather more."""
        self._written = asyncio.Condition()
        self._rounds = 0
        """Number of completed calls of `_write`."""
        self.count = 0
        """Number of settlements that Redis does not have yet."""
        self.totals = totals or FetchTotals()
        """The counters of the worker's fetches."""

    @property
    def finished(self) -> int:
        """Number of results written since the start."""
        return self.totals.finished.total()

    @property
    def full(self) -> bool:
        """True if so many settlements wait for Redis that lanes should claim no more fetches."""
        return self.count >= self._max_waiting

    def add(self, lane: Lane, settlement: Settlement) -> None:
        """Write the settlement soon."""
        self._waiting.setdefault(lane, []).append(settlement)
        self.count += 1
        self._added.set()
        if not settlement.ends:  # the fetch waits until Redis has it
            self._urgent.set()

    def save_gate(self, lane: Lane) -> None:
        """Write the lane's gate soon, even without a settlement."""
        self._waiting.setdefault(lane, [])
        self._added.set()

    def release_if_empty(self, lane: Lane) -> None:
        """Release the lane with the next call, if it is empty then."""
        self.save_gate(lane)

    def is_releasing(self, lane: Lane) -> bool:
        """Return whether a call under way releases the lane if it is empty."""
        return lane in self._releasing

    async def flush(self, lane: Lane) -> None:
        """Wait until no settlement of the lane is left to write, or the lane is lost."""
        self._urgent.set()
        async with self._written:
            await self._written.wait_for(lambda: lane.lost or not self.has(lane))

    async def flush_pending(self, lane: Lane) -> None:
        """Wait until the present settlements of the lane (not later ones) are written, or it is lost."""
        self._urgent.set()
        enough = self._rounds + 2  # the round under way may not include them
        async with self._written:
            await self._written.wait_for(lambda: lane.lost or not self.has(lane) or self._rounds >= enough)

    def has(self, lane: Lane) -> bool:
        """Return whether settlements of the lane are left to write."""
        return lane in self._waiting or lane in self._writing

    async def run(self) -> None:
        """Write settlements as they are added, until cancelled."""
        while True:
            await self._added.wait()
            await asyncio.sleep(GATHER_S)
            in_flight = sum(len(lane.in_flight) for lane in self._waiting)
            if in_flight > self.count and not self._urgent.is_set():
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._gather_more_s):
                        await self._urgent.wait()
            self._added.clear()
            self._urgent.clear()
            batch, self._waiting = self._waiting, {}
            self._writing = set(batch)
            try:
                await self._write(batch)
            except Exception:
                for lane, settlements in batch.items():  # safe to repeat: Redis skips those that it has
                    self._waiting[lane] = settlements + self._waiting.get(lane, [])
                self._added.set()
                raise
            async with self._written:
                self._writing = set()
                self._rounds += 1
                self._written.notify_all()

    async def _write(self, batch: dict[Lane, list[Settlement]]) -> None:
        """Send the settlements until Redis has replied for every lane."""
        self._releasing = {lane for lane in batch if lane.seems_empty}
        unwritten = {
            lane: self._changes(lane, settlements, release_if_empty=lane in self._releasing)
            for lane, settlements in batch.items()
        }

        def report(state: RetryCallState) -> None:
            error = state.outcome.exception() if state.outcome else None
            if error is not None:
                self._on_redis_error(error)

        async for attempt in AsyncRetrying(
            retry=retry_if_exception_type((RedisError, OSError)),
            wait=wait_random_exponential(multiplier=0.2, max=MAX_PAUSE_S),
            before_sleep=report,
        ):
            with attempt:
                replies = await scripts.settle_many(
                    self._redis, list(unwritten.values()), to_all_results=self._for_all
                )
                failures: list[Exception] = []
                for lane, reply in zip(list(unwritten), replies, strict=True):
                    if isinstance(reply, Exception) and await self._may_retry(lane, batch[lane], reply):
                        failures.append(reply)
                    else:
                        del unwritten[lane]
                        self._settled(lane, batch[lane], reply)
                if failures:
                    raise failures[0]

    def _changes(
        self, lane: Lane, settlements: Iterable[Settlement], *, release_if_empty: bool = False
    ) -> scripts.LaneChanges:
        """Return the changes to a lane, without rewritten entries of fetches that end in the same call.

        If the call is repeated after a lost reply, such an entry would overwrite one that was claimed since.
        """
        items = list(settlements)
        if not all(item.ends for item in items):
            ending = {item.change.fetch_id for item in items if item.ends}
            items = [item for item in items if item.ends or item.change.fetch_id not in ending]
        gate = None if lane.gate_is_saved else lane.gate_to_save()
        return scripts.LaneChanges(
            lane.name, lane.token, gate, [item.change for item in items], release_if_empty
        )

    async def _may_retry(self, lane: Lane, settlements: Iterable[Settlement], error: Exception) -> bool:
        """Return whether to send the settlements again.

        True for an error that affects all of Redis, or if a conflicting key was repaired.
        """
        if not isinstance(error, ResponseError) or isinstance(
            error, NoPermissionError | OutOfMemoryError | ReadOnlyError
        ):
            return True
        if self._key_repair is None:
            return False
        others: dict[str, str] = {}
        for batch in {item.change.batch_id for item in settlements if item.change.batch_id}:
            others |= keys.kinds_of_batch(batch)
        return await self._key_repair.repair(error, lane.name, others)

    def _settled(
        self, lane: Lane, settlements: list[Settlement], reply: scripts.Settled | Exception | None
    ) -> None:
        """Handle the reply for a lane; None if the token is stale."""
        self.count -= len(settlements)
        releasing = lane in self._releasing
        self._releasing.discard(lane)
        self._writing.discard(lane)
        if isinstance(reply, Exception):  # the lane's keys are unusable: stop this lane only
            self._on_redis_error(reply)
        if reply is None or isinstance(reply, Exception):
            lane.lose()
            return
        lane.clock.sync(reply.now_ms)
        lane.released = reply.is_released
        if releasing and not reply.is_released:
            lane.claims.record(emptied=False, found=False)
        had_ended = [fetch_id.decode() for fetch_id in reply.had_ended]
        lines: list[FinishedLine] = []
        for item in settlements:
            fetch_id, kind, *_ = item.change
            if item.ends:
                lane.drop(fetch_id)
            if kind is scripts.ChangeKind.FINISH and had_ended and fetch_id in had_ended:
                self._on_had_ended(lane, str(fetch_id))
                continue
            if item.line is not None:
                lines.append(item.line)
            elif item.unlogged is not None:
                self.totals.finished[item.unlogged] += 1
            item.done()
        if lines:
            write_finished(lines, self.totals, self._log_one_of)
        lane.notify()
