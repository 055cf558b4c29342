"""The scripts by which an operator changes how a running fleet treats its hosts.

Each function is the only caller of the Lua file of the same name in jobs/lua, whose header documents KEYS and
ARGV in the order used here.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from redis.asyncio import Redis

from fetchfleet.jobs import keys
from fetchfleet.jobs.notifications import GRACE_MS, LaneNotification
from fetchfleet.jobs.redis_connection import text_of
from fetchfleet.jobs.scripts import runner
from fetchfleet.jobs.scripts.runner import Arg, Call

RETRIES_AT_ONCE = 2_000
"""How many retries of a lane one call makes due, so that Redis serves others in between."""


MAX_POLICY_NAME_BYTES = 400
"""A host has 253 bytes at most."""

MAX_POLICY_TABLE_BYTES = 64 << 10


async def change_policy(redis: Redis, *, version: bytes, fields: Mapping[str, bytes]) -> bool:
    """Write fields of the policy tables, empty ones removed; False if the version is another one by now."""
    args: list[Arg] = [version]
    for field, value in fields.items():
        args += [field, value]
    return bool(await runner.run(redis, "change_policy", [keys.POLICY, keys.POLICY_VERSION], args))


async def policy_tables(redis: Redis) -> dict[bytes, bytes]:
    """Return the fields of the policy tables; too large ones, which are another program's, are left out."""
    found = await runner.run(
        redis, "policy_tables", [keys.POLICY], [MAX_POLICY_NAME_BYTES, MAX_POLICY_TABLE_BYTES]
    )
    return dict(zip(found[::2], found[1::2], strict=True))


class ResetLane(NamedTuple):
    """The reply to a reset. state: idle, scheduled or held. retries: how many were made due."""

    state: str
    retries: int
    notification: LaneNotification | None


async def reset_lanes(redis: Redis, lanes: Sequence[str], *, by: str) -> list[ResetLane | None]:
    """Ask for a reset of each lane, in one round trip; None for a lane that does not exist.

    A lane may have more retries than one call makes due. Raises what Redis refuses.
    """
    calls = [
        Call(
            "reset_lane",
            [keys.lane(lane), keys.later(lane), keys.ATTENTION, keys.SERIAL, keys.RESETS],
            [lane, by, GRACE_MS, RETRIES_AT_ONCE],
        )
        for lane in lanes
    ]
    found: list[ResetLane | None] = []
    for lane, reply in zip(lanes, await runner.run_many(redis, calls) if calls else [], strict=True):
        if isinstance(reply, Exception):
            raise reply
        if not reply:
            found.append(None)
            continue
        state, retries, *notification = reply
        due = LaneNotification(lane, *notification) if notification else None
        found.append(ResetLane(text_of(state), retries, due))
    return found
