"""The scripts with which an operator changes the policy of hosts at run time, and resets lanes."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from redis.asyncio import Redis

from fetchfleet.jobs import keys
from fetchfleet.jobs.notifications import GRACE_MS, LaneNotification
from fetchfleet.jobs.redis_connection import text_of
from fetchfleet.jobs.scripts import runner
from fetchfleet.jobs.scripts.runner import Arg, Call

MAX_RESET_RETRIES = 2_000
"""Maximum number of retries that one call makes due: a longer call would block Redis."""

MAX_POLICY_NAME_BYTES = 400
"""Longest name of a policy table; a host has at most 253 bytes."""

MAX_POLICY_TABLE_BYTES = 64 << 10


async def change_policy(redis: Redis, *, version: bytes, fields: Mapping[str, bytes]) -> bool:
    """Write fields of the policy tables; an empty value removes its field.

    version: the version on which the change is based. Returns False, without a change, if it is out of date.
    """
    args: list[Arg] = [version]
    for field, value in fields.items():
        args += [field, value]
    return bool(await runner.run(redis, "change_policy", [keys.POLICY, keys.POLICY_VERSION], args))


async def policy_tables(redis: Redis) -> dict[bytes, bytes]:
    """Return the fields of the policy tables; fields beyond the size limits are foreign."""
    fields = await runner.run(
        redis, "policy_tables", [keys.POLICY], [MAX_POLICY_NAME_BYTES, MAX_POLICY_TABLE_BYTES]
    )
    return dict(zip(fields[::2], fields[1::2], strict=True))


class ResetLane(NamedTuple):
    """A lane that was reset."""

    state: str
    """Its state: idle, scheduled or held."""
    retries: int
    """Number of retries that were made due."""
    notification: LaneNotification | None
    """Notification to send; None if the lane needs none."""


async def reset_lanes(redis: Redis, lanes: Sequence[str], *, by: str) -> list[ResetLane | None]:
    """Request the reset of each lane by an operator, in one round trip; None for an unknown lane.

    A lane may have more retries than one call makes due. Raises the error of a failed call.
    """
    calls = [
        Call(
            "reset_lane",
            [keys.lane(lane), keys.later(lane), keys.ATTENTION, keys.SERIAL, keys.RESETS],
            [lane, by, GRACE_MS, MAX_RESET_RETRIES],
        )
        for lane in lanes
    ]
    resets: list[ResetLane | None] = []
    for lane, reply in zip(lanes, await runner.run_many(redis, calls) if calls else [], strict=True):
        if isinstance(reply, Exception):
            raise reply
        if not reply:
            resets.append(None)
            continue
        state, retries, *notification = reply
        due = LaneNotification(lane, *notification) if notification else None
        resets.append(ResetLane(text_of(state), retries, due))
    return resets
