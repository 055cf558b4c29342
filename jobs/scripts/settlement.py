"""settle.lua: ends or postpones the claimed fetches of a lane.

Sending the same settlement again is safe: a fetch that is no longer claimed is skipped.
"""

from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Any, NamedTuple

from redis.asyncio import Redis

from fetchfleet.jobs import keys
from fetchfleet.jobs.contract.ids import batch_of
from fetchfleet.jobs.scripts import runner
from fetchfleet.jobs.scripts.runner import Arg, Call


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
    """One change to a claimed fetch, made by the functions below. batch_id: the batch that counts it."""

    fetch_id: str | bytes
    kind: ChangeKind
    args: tuple[Arg, ...]
    batch_id: str | None = None


def finish(fetch_id: str, *, outcome: str, received_bytes: int, result: bytes) -> Change:
    """End the fetch with its result (JSON)."""
    return Change(fetch_id, ChangeKind.FINISH, (outcome, received_bytes, result), batch_of(fetch_id))


def retry(fetch_id: str, *, wait_ms: int, serialized: bytes) -> Change:
    """Queue the rewritten entry for another attempt in wait_ms."""
    return Change(fetch_id, ChangeKind.RETRY, (wait_ms, serialized))


def put_back(fetch_id: str | bytes, *, wait_ms: int) -> Change:
    """Queue the entry unchanged, due in wait_ms."""
    return Change(fetch_id, ChangeKind.RETURN, (wait_ms,))


def start(fetch_id: str | bytes, *, serialized: bytes) -> Change:
    """Rewrite the entry and keep it claimed."""
    return Change(fetch_id, ChangeKind.START, (serialized,))


def bury(fetch_id: str | bytes, *, reason: str, note: str) -> Change:
    """Copy the claimed entry to the dead letters; `finish` or `drop` follows."""
    return Change(fetch_id, ChangeKind.BURY, (reason, note))


def drop(fetch_id: bytes) -> Change:
    """Forget a claim that belongs to no batch."""
    return Change(fetch_id, ChangeKind.DROP, ())


def settle_call(
    *,
    lane: str,
    token: int,
    gate: bytes | None,
    changes: Iterable[Change],
    to_all_results: bool,
    leave: bool = False,
) -> Call:
    """Write changes to a held lane.

    gate: the gate's state as JSON, None if unchanged. to_all_results: add results to the stream of all
    batches too. leave: give the lane back, which is open, if it is empty then.
    """
    args: list[Arg] = [
        *(token, gate or b"", keys.RESULTS_TTL_MS, keys.UNFINISHED_TTL_MS),
        *(keys.DEAD_LENGTH, lane, int(to_all_results), keys.GATE_TTL_MS if leave else ""),
    ]
    batches: dict[str, int] = {}
    for change in changes:
        args += (change.fetch_id, change.kind)
        if change.batch_id is not None:
            args.append(batches.setdefault(change.batch_id, len(batches) + 1))
        args += change.args
    names = [keys.lane(lane), keys.claimed(lane), keys.later(lane)]
    names += [keys.DEAD, keys.ALL_RESULTS, keys.BACKLOG]
    for batch_id in batches:
        names += [keys.batch(batch_id), keys.results(batch_id)]
    if leave:
        names += [keys.ATTENTION, keys.cancelled(lane), *keys.waiting(lane)]
    return Call("settle", names, args)


class Settled(NamedTuple):
    """Redis's time in ms, and the ids of fetches that had ended before: they got no result."""

    now_ms: int
    had_ended: list[bytes]
    left: bool
    """True if the lane was given back."""


def settle_reply(reply: Any) -> Settled | None:
    """Decode the reply to `settle_call`; None if the token is stale."""
    if not reply:
        return None
    left = reply[-1] == b"left"
    return Settled(reply[0], reply[1 : len(reply) - left], left)


async def settle_many(redis: Redis, calls: Sequence[Call]) -> list[Settled | Exception | None]:
    """Send the settlements of many lanes in one round trip.

    A call that Redis refuses is returned as an exception.
    """
    replies = await runner.run_many(redis, calls)
    return [reply if isinstance(reply, Exception) else settle_reply(reply) for reply in replies]
