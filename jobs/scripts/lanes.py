"""The scripts that move lanes between idle, scheduled and held, and the fetches of a held lane.

The functions for a held lane take its fencing token. A reply of None or False means that the token is stale:
the lane has another owner.
"""

from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Any, NamedTuple

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from fetchfleet.jobs import keys
from fetchfleet.jobs.contract.ids import batch_of
from fetchfleet.jobs.notifications import GRACE_MS, LaneNotification
from fetchfleet.jobs.redis_connection import text_of
from fetchfleet.jobs.scripts import runner
from fetchfleet.jobs.scripts.runner import Arg, Call

_ANY_GENERATION = ""
_NO_SHARE_LIMIT = -1

UNRECORDED = 0
"""In place of a record: the batch has none, because an older producer submitted it, or it was lost."""
ENDED = -1
"""In place of a record: the fetch has ended, or the batch never had it."""
UNKNOWN_BATCH = -2
"""In place of a record: the batch does not exist."""


class Claimed(NamedTuple):
    """Claimed entries."""

    serialized: list[bytes]
    records: list[int]
    """Value of each entry in the record of its batch, as from `record_of`, or one of the constants above."""
    too_large: int = 0
    """Number of elements that were too large for a worker, and became dead letters."""


class Claim(NamedTuple):
    """Entries claimed from the queues of a lane. `records` and `too_large` are those of `Claimed`."""

    now_ms: int
    """Unix ms by Redis's clock."""
    serialized: list[bytes]
    waiting: int
    """Number of fetches that still wait."""
    next_retry_ms: int | None
    """Time until the next retry of the lane; None without retries."""
    records: list[int]
    too_large: int


class TakenLane(NamedTuple):
    """A lane that was acquired."""

    token: int
    """Fencing token."""
    now_ms: int
    """Unix ms by Redis's clock."""
    gate: bytes
    """Saved state of the gate as JSON; empty if unset."""
    policy_version: bytes
    """Version of the policy tables set at run time."""
    cancelled: bool
    """True if the lane has cancelled batches."""
    other_deaths: int
    """Number of workers other than the last owner that died recently; 0 without orphans."""
    reset_by: bytes
    """Operator who has reset the lane since its last owner; empty if none has."""
    orphans: Claimed
    """Entries that a dead owner had claimed."""
    claim: Claim | None
    """First claim; None if other work comes first, such as orphans, or the host may be closed."""


class Early(NamedTuple):
    """The lane is not due yet."""

    due_in_ms: int


class Enough(NamedTuple):
    """The worker has its share of the lanes; another worker should acquire this one."""


TakeReply = TakenLane | Early | Enough | None
"""The reply of take.lua; None if the notification is stale."""


class Wanted(NamedTuple):
    """A lane to acquire."""

    lane: str
    generation: int | None
    """Generation of the notification; None for any."""
    most: int
    """The maximum number of fetches to claim."""


def _take_reply(reply: Any) -> TakeReply | Exception:
    """Decode the reply of take.lua for one lane."""
    match reply:
        case ResponseError():
            return runner.named(reply)
        case [b"taken", token, now_ms, gate, policy_version, cancelled, deaths, reset_by, *orphans, claim]:
            return TakenLane(
                *(token, now_ms, gate, policy_version, bool(cancelled), deaths, reset_by),
                *(Claimed(*orphans), claim_reply(claim)),
            )
        case [b"early", due_in_ms]:
            return Early(due_in_ms)
        case [b"enough"]:
            return Enough()
        case _:
            return None


def take_call(
    lanes: Sequence[Wanted], *, owner: str, lease_ms: int, held: int | None, handed: bool = False
) -> Call:
    """Acquire scheduled lanes, each under a new token and a lease, and claim their first fetches.

    held: number of lanes that the owner holds, to compare with its share; None for no comparison. handed: the
    lanes were handed over to workers like this one, so they need not be due.
    """
    names = [keys.ATTENTION, keys.SERIAL, keys.WORKERS, keys.POLICY_VERSION, keys.DEATHS, keys.HANDED]
    args: list[Arg] = [owner, lease_ms, _NO_SHARE_LIMIT if held is None else held]
    args += [keys.WORKER_TTL_MS, busy_within_ms(lease_ms), keys.DEATHS_WINDOW_MS, int(handed)]
    for lane, generation, most in lanes:
        returned, high, normal, low = keys.waiting(lane)
        names += [keys.lane(lane), normal, keys.claimed(lane), keys.cancelled(lane)]
        names += [keys.later(lane), returned, high, low]
        args += [lane, _ANY_GENERATION if generation is None else generation, most]
    return Call("take", names, args)


def take_replies(reply: Any, count: int) -> list[TakeReply | Exception]:
    """Decode the reply to `take_call` for `count` lanes; if the call failed, each gets its exception."""
    if isinstance(reply, Exception):
        return [reply] * count
    return [_take_reply(one) for one in reply]


def claim_call(*, lane: str, token: int, count: int) -> Call:
    """Claim up to `count` waiting fetches."""
    names = [keys.lane(lane), keys.claimed(lane), keys.later(lane), *keys.waiting(lane)]
    return Call("claim", names, [token, count])


def claim_reply(reply: Any) -> Claim | None:
    """Decode the reply to `claim_call`."""
    if not reply:
        return None
    now_ms, serialized, waiting, retry_ms, records, too_large = reply
    return Claim(now_ms, serialized, waiting, retry_ms if retry_ms >= 0 else None, records, too_large)


async def claims(redis: Redis, *, lane: str, token: int) -> Claimed | None:
    """Return every claimed entry of the lane."""
    reply = await runner.run(redis, "claims", [keys.lane(lane), keys.claimed(lane)], [token])
    return Claimed(*reply) if reply else None


async def adopt(redis: Redis, *, lane: str, token: int, serialized: Sequence[bytes]) -> bool:
    """Rewrite claimed entries whose counters have changed."""
    names = [keys.lane(lane), keys.claimed(lane)]
    return bool(await runner.run(redis, "adopt", names, [token, *serialized]))


class Transfer(NamedTuple):
    """The result of a transfer."""

    accepted: bool
    """False if the fetch stays, because its batch is cancelled."""
    notification: LaneNotification | None
    """Notification of the other lane; None if it needs none."""


async def transfer(
    redis: Redis, *, lane: str, token: int, fetch_id: str, serialized: bytes, to_lane: str, priority: str
) -> Transfer | None:
    """Move a claimed fetch to the queue of another lane."""
    batch = batch_of(fetch_id)
    names = [
        *(keys.lane(lane), keys.claimed(lane), keys.ATTENTION, keys.SERIAL),
        *(keys.lane(to_lane), keys.waiting_at(to_lane, priority)),
        *(keys.batch(batch), keys.batch_lanes(batch)),
    ]
    reply = await runner.run(redis, "transfer", names, [token, fetch_id, serialized, to_lane, GRACE_MS])
    if not reply:
        return None
    accepted, *notification = reply
    return Transfer(bool(accepted), LaneNotification(to_lane, *notification) if notification else None)


class RemovalKind(StrEnum):
    """The fetches that `withdraw` claims: those of a batch, those past their deadline, or all."""

    BATCH = "batch"
    EXPIRED = "expired"
    ALL = "all"


class Withdrawal(NamedTuple):
    """Entries claimed from part of a queue. `records` and `too_large` are those of `Claimed`."""

    serialized: list[bytes]
    next_offset: int | None
    """Offset to continue from; None at the end of the queue."""
    earliest_ms: int
    """Earliest deadline of the entries that stay, in Unix ms; 0 if none stays."""
    records: list[int]
    too_large: int


ClaimReply = Claim | Claimed | Withdrawal


async def withdraw(
    redis: Redis,
    *,
    lane: str,
    token: int,
    queue: str,
    kind: RemovalKind,
    batch_id: str = "",
    offset: int,
    count: int,
) -> Withdrawal | None:
    """Claim the fetches of one kind among `count` entries of a queue, from `offset`.

    queue: one of `keys.LANE_QUEUES`. batch_id: for RemovalKind.BATCH.
    """
    names = [keys.lane(lane), keys.claimed(lane), keys.lane_queue(lane, queue)]
    reply = await runner.run(redis, "withdraw", names, [token, kind, batch_id, offset, count])
    if not reply:
        return None
    serialized, offset, earliest_ms, records, too_large = reply
    return Withdrawal(serialized, offset if offset >= 0 else None, earliest_ms, records, too_large)


async def withdrawn(redis: Redis, *, lane: str, token: int, batch_ids: Iterable[str]) -> Claimed | None:
    """Remove cancelled batches without waiting fetches from the lane; return their claimed fetches.

    The batches stay if any of their fetches is claimed.
    """
    names = [keys.lane(lane), keys.claimed(lane), keys.cancelled(lane)]
    reply = await runner.run(redis, "withdrawn", names, [token, *batch_ids])
    return Claimed(*reply) if reply else None


async def earliest(redis: Redis, *, lane: str, token: int, earliest_ms: int | None) -> bool:
    """Lower the earliest deadline of waiting fetches, in Unix ms; 0 keeps it, None clears it."""
    value: Arg = "" if earliest_ms is None else earliest_ms
    return bool(await runner.run(redis, "earliest", [keys.lane(lane)], [token, value]))


class Release(NamedTuple):
    """The result of a release."""

    notification: LaneNotification | None
    """Notification to send; None if the lane is idle now."""


def release_call(
    *,
    lane: str,
    token: int,
    gate: bytes,
    shut_until_ms: int,
    why: str,
    changed: Iterable[bytes],
    needs: str = "",
) -> Call:
    """Release the lane. shut_until_ms, why: when and why the gate opens, in Unix ms; 0 if it is open.

    changed: claimed entries whose counters have changed. needs: hand the lane over for HANDOVER_MS to workers
    that meet these needs.
    """
    return Call(
        "release",
        [
            *(keys.lane(lane), keys.claimed(lane), keys.later(lane), *keys.waiting(lane)),
            *(keys.ATTENTION, keys.SERIAL, keys.BACKLOG, keys.cancelled(lane), keys.HANDED),
        ],
        [
            *(token, lane, shut_until_ms, why, gate, keys.GATE_TTL_MS, GRACE_MS),
            *(needs, HANDOVER_MS, MAX_HANDED, keys.HANDED_TTL_MS),
            *changed,
        ],
    )


def release_reply(lane: str, reply: Any) -> Release | None:
    """Decode the reply to `release_call`."""
    if not reply:
        return None
    _, *notification = reply
    return Release(LaneNotification(lane, *notification) if notification else None)


class Renewal(NamedTuple):
    """The result of a renewal."""

    now_ms: int
    """Unix ms by Redis's clock."""
    kept: list[bool]
    """For each lane, True if its token is current and its lease was renewed."""


async def renew(redis: Redis, lanes: Sequence[tuple[str, int]], *, lease_ms: int) -> Renewal:
    """Renew the leases of lanes, each given by name and token."""
    names = [keys.ATTENTION, *(keys.lane(name) for name, _ in lanes)]
    args: list[Arg] = [lease_ms]
    for name, token in lanes:
        args += [name, token]
    now_ms, *kept = await runner.run(redis, "renew", names, args)
    return Renewal(now_ms, [bool(flag) for flag in kept])


class ReclaimedLane(NamedTuple):
    """A lane that was rescheduled."""

    notification: LaneNotification
    owner: str
    """Worker that lost the lane; "" if a notification was lost."""


async def reclaim_lanes(redis: Redis, lanes: Sequence[str]) -> list[ReclaimedLane | Exception | None]:
    """Reschedule lanes whose lease has lapsed or whose notification was lost, in one round trip.

    None for a lane that needs nothing. A failed call returns its exception.
    """
    calls = [
        Call(
            "reclaim_lane",
            [
                *(keys.lane(lane), keys.ATTENTION, keys.SERIAL),
                *(keys.claimed(lane), keys.later(lane), *keys.waiting(lane), keys.DEATHS),
            ],
            [lane, GRACE_MS, keys.DEATHS_WINDOW_MS],
        )
        for lane in lanes
    ]
    replies = await runner.run_many(redis, calls) if calls else []
    reclaimed: list[ReclaimedLane | Exception | None] = []
    for lane, reply in zip(lanes, replies, strict=True):
        if isinstance(reply, Exception) or not reply:
            reclaimed.append(reply or None)
        else:
            generation, owner = reply
            reclaimed.append(ReclaimedLane(LaneNotification(lane, generation, 0), text_of(owner)))
    return reclaimed


async def reschedule_lanes(redis: Redis, lanes: Sequence[str]) -> list[LaneNotification]:
    """Make lanes that are due later due now, in one round trip; return the lanes to notify.

    Lanes whose call failed are skipped.
    """
    calls = [
        Call("reschedule_lane", [keys.lane(lane), keys.ATTENTION, keys.SERIAL], [lane, GRACE_MS])
        for lane in lanes
    ]
    replies = await runner.run_many(redis, calls) if calls else []
    return [
        LaneNotification(lane, *reply)
        for lane, reply in zip(lanes, replies, strict=True)
        if reply and not isinstance(reply, Exception)
    ]


_BUSY_MARGIN_MS = 1_000

HANDOVER_MS = 3_000
"""Time for which a lane that was handed over waits for a worker; each checks with its heartbeat."""

MAX_HANDED = 1_000
"""Maximum number of lanes in keys.HANDED; further lanes wait without an entry, for any worker."""


def busy_within_ms(lease_ms: int) -> int:
    """Return the ms within which a held or due lane needs attention; a later one is in cool-down."""
    return max(lease_ms, GRACE_MS) + _BUSY_MARGIN_MS
