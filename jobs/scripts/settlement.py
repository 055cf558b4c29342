"""settle.lua: ends or postpones the claimed fetches of lanes.

Sending the same settlement again is safe: a fetch that is no longer claimed is skipped.
"""

from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum
from typing import Any, NamedTuple

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from fetchfleet.jobs import keys
from fetchfleet.jobs.contract.ids import batch_of
from fetchfleet.jobs.scripts import runner
from fetchfleet.jobs.scripts.runner import Arg, Call

CHANGES_A_CALL = 500
"""Number of lanes and changes at which the next lane gets another script call."""

BYTES_A_CALL = 4 << 20
"""Size of results and rewritten entries at which the next lane gets another script call."""


class ChangeKind(StrEnum):
    """The change that settle.lua makes to one claimed fetch."""

    FINISH = "done"
    """Store the result and count it in the batch."""
    RETRY = "again"
    """Queue the rewritten entry for its next attempt."""
    RETURN = "back"
    """Queue the entry as it is claimed."""
    START = "begun"
    """Keep the fetch claimed, as the rewritten entry."""
    BURY = "dead"
    """Copy the claimed entry to the dead letters; FINISH or DROP follows."""
    DROP = "drop"
    """Forget the claim."""


class Change(NamedTuple):
    """One change to a claimed fetch, from a function below."""

    fetch_id: str | bytes
    kind: ChangeKind
    args: tuple[Arg, ...]
    batch_id: str | None = None
    """Batch that counts a result."""
    size_bytes: int = 0
    """The size of the result or the rewritten entry."""


def finish(fetch_id: str, *, outcome: str, received_bytes: int, result: bytes) -> Change:
    """End the fetch with its result, as JSON."""
    args = (outcome, received_bytes, result)
    return Change(fetch_id, ChangeKind.FINISH, args, batch_of(fetch_id), len(result))


def retry(fetch_id: str, *, wait_ms: int, serialized: bytes) -> Change:
    """Queue the rewritten entry for another attempt in wait_ms."""
    return Change(fetch_id, ChangeKind.RETRY, (wait_ms, serialized), size_bytes=len(serialized))


def return_claim(fetch_id: str | bytes, *, wait_ms: int) -> Change:
    """Return the claim to the lane's queue, with its entry unchanged, due in wait_ms."""
    return Change(fetch_id, ChangeKind.RETURN, (wait_ms,))


def start(fetch_id: str | bytes, *, serialized: bytes) -> Change:
    """Rewrite the entry and keep it claimed."""
    return Change(fetch_id, ChangeKind.START, (serialized,), size_bytes=len(serialized))


def bury(fetch_id: str | bytes, *, reason: str, note: str) -> Change:
    """Copy the claimed entry to the dead letters; `finish` or `drop` follows."""
    return Change(fetch_id, ChangeKind.BURY, (reason, note))


def drop(fetch_id: bytes) -> Change:
    """Forget a claim that belongs to no batch."""
    return Change(fetch_id, ChangeKind.DROP, ())


class LaneChanges(NamedTuple):
    """The changes to a held lane."""

    lane: str
    token: int
    gate: bytes | None
    """State of the gate as JSON; None if unchanged."""
    changes: Sequence[Change]
    release_if_empty: bool = False
    """Release the lane, whose gate is open, if it is empty afterwards."""


def settle_call(lanes: Iterable[LaneChanges], *, to_all_results: bool) -> Call:
    """Build the call that writes changes to held lanes. to_all_results: also add results to that stream."""
    batches: dict[str, int] = {}
    lane_names: list[str] = []
    lane_args: list[Arg] = []
    for lane, token, gate, changes, release_if_empty in lanes:
        args: list[Arg] = []
        for change in changes:
            args += (change.fetch_id, change.kind)
            if change.batch_id is not None:
                args.append(batches.setdefault(change.batch_id, len(batches) + 1))
            args += change.args
        lane_names += (keys.lane(lane), keys.claimed(lane), keys.later(lane))
        if release_if_empty:
            lane_names += (keys.cancelled(lane), *keys.waiting(lane))
        lane_args += (lane, token, gate or b"", int(release_if_empty), len(args), *args)
    names = [keys.DEAD, keys.ALL_RESULTS, keys.BACKLOG, keys.ATTENTION]
    for batch_id in batches:
        names += (keys.batch(batch_id), keys.results(batch_id))
    ttls = (keys.RESULTS_TTL_MS, keys.UNFINISHED_TTL_MS)
    common = (*ttls, keys.DEAD_LENGTH, int(to_all_results), keys.GATE_TTL_MS, len(batches))
    return Call("settle", names + lane_names, [*common, *lane_args])


class Settled(NamedTuple):
    """The result of a settlement of one lane."""

    now_ms: int
    """Unix ms by Redis's clock."""
    had_ended: list[bytes]
    """IDs of fetches that had ended before, and got no result."""
    is_released: bool
    """True if the lane is idle now."""


def _settled(reply: Any) -> Settled | Exception | None:
    """Decode the reply of settle.lua for one lane; None if the token is stale."""
    if isinstance(reply, ResponseError):
        return runner.named(reply)
    if not reply:
        return None
    is_released = reply[-1] == b"left"
    return Settled(reply[0], reply[1 : len(reply) - is_released], is_released)


async def settle_many(
    redis: Redis, lanes: Sequence[LaneChanges], *, to_all_results: bool
) -> list[Settled | Exception | None]:
    """Send the changes of many lanes in one round trip, in as few script calls as the limits above allow.

    Each lane has its own result: None if its token is stale, an exception if its settlement failed.
    """
    parts = [*_parts(lanes)]
    calls = [settle_call(part, to_all_results=to_all_results) for part in parts]
    results: list[Settled | Exception | None] = []
    for part, reply in zip(parts, await runner.run_many(redis, calls), strict=True):
        if isinstance(reply, Exception):
            results += [reply] * len(part)
        else:
            results += map(_settled, reply)
    return results


def _parts(lanes: Iterable[LaneChanges]) -> Iterator[list[LaneChanges]]:
    """Yield the lanes in lists, one for each call: a longer call would block Redis."""
    part: list[LaneChanges] = []
    count = size_bytes = 0
    for lane in lanes:
        part.append(lane)
        count += 1 + len(lane.changes)
        size_bytes += sum(change.size_bytes for change in lane.changes)
        if count >= CHANGES_A_CALL or size_bytes >= BYTES_A_CALL:
            yield part
            part, count, size_bytes = [], 0, 0
    if part:
        yield part
