"""The scripts that move one lane between idle, scheduled and held, and the fetches of a held lane.

Each function is the only caller of the Lua file of the same name in jobs/lua, whose header documents KEYS and
ARGV in the order used here. The scripts for a held lane take its fencing token; a reply of None (or False)
means that the token is stale, so the lane has another owner.
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
"""The batch is of an older producer, which writes no record."""
ENDED = -1
"""The fetch has ended, or the batch never had it."""
UNKNOWN_BATCH = -2


class Claimed(NamedTuple):
    """Claimed entries, and for each what the record of its batch has.

    That is what `record_of` returns for a fetch of its batch, else another number; or one of those above.
    """

    serialized: list[bytes]
    records: list[int]
    too_large: int = 0
    """Claimed elements that are dead letters now, for no worker should read them."""


class Claim(NamedTuple):
    """Claimed entries, with their records as in `Claimed`.

    waiting: how many fetches still wait. next_retry_ms: until the lane's next retry, None if there is none.
    """

    now_ms: int
    serialized: list[bytes]
    waiting: int
    next_retry_ms: int | None
    records: list[int]
    too_large: int


class TakenLane(NamedTuple):
    """A lane that was taken.

    gate: the gate's state as JSON, empty if none is stored. policy_version: of the tables set at run time.
    cancelled: whether batches are cancelled in it. orphans: entries that a dead owner had claimed. reset_by:
    the operator who has reset it since it had an owner, or empty. claim: None if there is more to see to.
    """

    token: int
    now_ms: int
    gate: bytes
    policy_version: bytes
    cancelled: bool
    other_deaths: int
    reset_by: bytes
    orphans: Claimed
    claim: Claim | None


class Early(NamedTuple):
    """The notification came before the lane is due."""

    due_in_ms: int


class Enough(NamedTuple):
    """The owner has its share of the fleet's lanes; another worker should take this one."""


TakeReply = TakenLane | Early | Enough | None
"""The reply of take.lua; None if the notification is stale."""


class Wanted(NamedTuple):
    """A lane to take. generation: of its notification; None takes any. most: the most fetches to claim."""

    lane: str
    generation: int | None
    most: int


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
    """Take scheduled lanes, each under a new token and a lease, and claim their first fetches.

    held: how many lanes the owner has, to compare with its share; None takes them whatever the share is.
    handed: another worker has left them: they need not be due.
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
    """Decode the reply to `take_call` for `count` lanes; a refusal of Redis is an exception for each."""
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
    """A transfer's reply. accepted: False if the fetch stays because its batch is cancelled."""

    accepted: bool
    notification: LaneNotification | None


async def transfer(
    redis: Redis, *, lane: str, token: int, fetch_id: str, serialized: bytes, to_lane: str, priority: str
) -> Transfer | None:
    """Move a claimed fetch to another lane's queue."""
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
    """Entries claimed from one stretch of a queue, with their records as in `Claimed`.

    go_on: the offset of the next stretch, None at the end. earliest_ms: the earliest deadline of the entries
    that stay in this stretch, 0 if none does.
    """

    serialized: list[bytes]
    go_on: int | None
    earliest_ms: int
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
    """Claim the fetches of one kind among `count` entries of a queue, from `offset` on.

    queue: one of `keys.LANE_QUEUES`. batch_id: for RemovalKind.BATCH.
    """
    names = [keys.lane(lane), keys.claimed(lane), keys.lane_queue(lane, queue)]
    reply = await runner.run(redis, "withdraw", names, [token, kind, batch_id, offset, count])
    if not reply:
        return None
    serialized, go_on, earliest_ms, records, too_large = reply
    return Withdrawal(serialized, go_on if go_on >= 0 else None, earliest_ms, records, too_large)


async def withdrawn(redis: Redis, *, lane: str, token: int, batch_ids: Iterable[str]) -> Claimed | None:
    """Note that no fetch of these cancelled batches waits in the lane; return those still claimed.

    The batches are forgotten in the lane only if none of their fetches is claimed.
    """
    names = [keys.lane(lane), keys.claimed(lane), keys.cancelled(lane)]
    reply = await runner.run(redis, "withdrawn", names, [token, *batch_ids])
    return Claimed(*reply) if reply else None


async def earliest(redis: Redis, *, lane: str, token: int, earliest_ms: int | None) -> bool:
    """Store the earliest deadline of what waits in the lane (0: nothing has one); None forgets it."""
    noted: Arg = "" if earliest_ms is None else earliest_ms
    return bool(await runner.run(redis, "earliest", [keys.lane(lane)], [token, noted]))


class Release(NamedTuple):
    """A release's reply. notification: None if the lane is idle now."""

    notification: LaneNotification | None


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
    """Give the lane back. shut_until_ms: 0 if open. changed: claimed entries whose counters have changed.

    needs: leave the lane for HANDOVER_MS to workers that meet these needs.
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
    """Redis's time, and for each lane whether its token is still current."""

    now_ms: int
    kept: list[bool]


async def renew(redis: Redis, lanes: Sequence[tuple[str, int]], *, lease_ms: int) -> Renewal:
    """Prolong the leases of lanes, each a name and a token."""
    names = [keys.ATTENTION, *(keys.lane(name) for name, _ in lanes)]
    args: list[Arg] = [lease_ms]
    for name, token in lanes:
        args += [name, token]
    now_ms, *kept = await runner.run(redis, "renew", names, args)
    return Renewal(now_ms, [bool(flag) for flag in kept])


class ReclaimedLane(NamedTuple):
    """A lane scheduled again. owner: the worker that lost it, "" if a notification was lost."""

    notification: LaneNotification
    owner: str


async def reclaim_lanes(redis: Redis, lanes: Sequence[str]) -> list[ReclaimedLane | Exception | None]:
    """Schedule lanes again whose lease or notification is overdue, in one round trip.

    None for a lane that needs nothing. A call that Redis refuses is returned as an exception.
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
    found: list[ReclaimedLane | Exception | None] = []
    for lane, reply in zip(lanes, replies, strict=True):
        if isinstance(reply, Exception) or not reply:
            found.append(reply or None)
        else:
            generation, owner = reply
            found.append(ReclaimedLane(LaneNotification(lane, generation, 0), text_of(owner)))
    return found


async def reschedule_lanes(redis: Redis, lanes: Sequence[str]) -> list[LaneNotification]:
    """Make parked lanes due now, in one round trip; return the lanes to notify.

    Lanes whose call Redis refuses are left out.
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


NEXT_MS = 1_000

HANDOVER_MS = 3_000
"""How long a lane that is left to other workers waits for one of them: each looks with its heartbeat."""

MAX_HANDED = 1_000
"""With so many lanes in keys.HANDED, others are left to whichever worker comes."""


def busy_within_ms(lease_ms: int) -> int:
    """Return within how many ms a held or due lane needs attention; a lane that needs it later cools down."""
    return max(lease_ms, GRACE_MS) + NEXT_MS
