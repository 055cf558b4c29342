"""The scripts of the inboxes, which one worker at a time empties under a lease.

inbox: name of a named inbox, "" for the shared one. token: identifies the worker with the lease. A script
refuses the token of a worker whose lease has lapsed and been acquired by another.
"""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple

from redis.asyncio import Redis

from fetchfleet.jobs import keys
from fetchfleet.jobs.scripts import runner
from fetchfleet.jobs.scripts.runner import Arg

MAX_LETTERS_PER_MINUTE = 1000
"""Maximum number of dead letters from a named inbox in a minute, because its producer need not be trusted."""


class InboxMessages(NamedTuple):
    """Messages moved from an inbox to its taken list."""

    batch_id: str
    """ID of the batch under which to enqueue them."""
    messages: list[bytes]


class NoMessages(StrEnum):
    """The reason no message was taken."""

    EMPTY = "empty"
    LOOK_AGAIN = "again"
    """The messages checked became dead letters; there may be more."""
    OTHER_WORKER = "other"
    """Another worker has the lease."""


async def inbox_take(
    redis: Redis,
    inbox: str = "",
    *,
    token: str,
    reads: int,
    lease_ms: int,
    max_messages: int,
    max_bytes: int,
    max_message_bytes: int,
    new_batch_id: str,
) -> InboxMessages | NoMessages:
    """Take messages. Messages that were taken but not acknowledged are returned again, with their batch ID.

    reads: newest version that the worker reads. max_messages, max_bytes: stop at either limit. A message of
    more than max_message_bytes becomes a dead letter. new_batch_id: for messages not taken before.
    """
    names = [keys.inbox(inbox), keys.taken(inbox), keys.intake(inbox), keys.DEAD, keys.INTAKE]
    args: list[Arg] = [token, lease_ms, keys.INTAKE_TTL_MS, max_messages, max_bytes, max_message_bytes]
    args += [new_batch_id, keys.DEAD_LENGTH, reads, _max_letters(inbox)]
    match await runner.run(redis, "inbox_take", names, args):
        case [b"taken", batch_id, *messages]:
            return InboxMessages(batch_id.decode(), messages)
        case [reason]:
            return NoMessages(reason.decode())
        case reply:
            raise AssertionError(reply)


async def inbox_renew(redis: Redis, *, token: str, lease_ms: int) -> bool:
    """Renew the lease, or release it with lease_ms = 0; False if another worker has it."""
    return bool(await runner.run(redis, "inbox_renew", [keys.INTAKE], [token, lease_ms]))


class RefusedMessage(NamedTuple):
    """A message for the dead letters."""

    note: str
    """Exact error."""
    message: bytes


async def inbox_ack(
    redis: Redis,
    inbox: str = "",
    *,
    token: str,
    messages: Sequence[bytes],
    refused: Sequence[RefusedMessage],
    receipts: Mapping[str, bytes],
) -> int | None:
    """Remove messages that are enqueued or refused from the taken list, and write receipts, by Redis key.

    Returns the number of refused messages that are not dead letters, because of MAX_LETTERS_PER_MINUTE. None
    if another worker has the lease.
    """
    names = [keys.taken(inbox), keys.intake(inbox), keys.DEAD, keys.INTAKE, *receipts]
    first: list[Arg] = [token, keys.INTAKE_TTL_MS, keys.DEAD_LENGTH, _max_letters(inbox), keys.RECEIPT_TTL_MS]
    letters: list[Arg] = [part for item in refused for part in item]
    for listed in ([], list(messages)):  # sent only if the taken list has other messages too
        args = [*first, len(messages), int(bool(listed)), *receipts.values(), *listed, *letters]
        match await runner.run(redis, "inbox_ack", names, args):
            case [b"done", int(left_out)]:
                return left_out
            case [b"other"]:
                return None
    return None


class DeferRefusal(StrEnum):
    """The reason messages were not deferred."""

    BATCH_BEGUN = "begun"
    """Part of their batch is enqueued already."""
    OTHER_WORKER = "other"
    """Another worker has the lease."""


async def inbox_defer(
    redis: Redis,
    inbox: str = "",
    *,
    token: str,
    batch_id: str,
    messages: Sequence[tuple[int, bytes]],
    kept_bytes: int,
) -> int | DeferRefusal:
    """Move messages from the taken list to the list for newer workers.

    batch_id: of the messages taken. messages: each with the version that it needs. kept_bytes: bytes of a
    message that its dead letter keeps. Returns the number of messages that became dead letters because the
    list is full.
    """
    names = [keys.taken(inbox), keys.newer(inbox), keys.intake(inbox), keys.DEAD, keys.INTAKE]
    args: list[Arg] = [
        token,
        keys.NEWER_LENGTH,
        keys.NEWER_BYTES,
        keys.DEAD_LENGTH,
        _max_letters(inbox),
        kept_bytes,
    ]
    for version, message in messages:
        args += [min(version, _MAX_VERSION), message]
    match await runner.run(redis, "inbox_defer", [*names, keys.batch(batch_id)], args):
        case [b"deferred", int(left_out)]:
            return left_out
        case [reason]:
            return DeferRefusal(reason.decode())
        case reply:
            raise AssertionError(reply)


async def inbox_recall(
    redis: Redis, inbox: str = "", *, token: str, reads: int, max_messages: int, max_bytes: int
) -> tuple[int, int] | None:
    """Move deferred messages back to the inbox if their version is at most `reads`.

    Returns the number of messages checked, and the number deferred before; None if another worker has the
    lease.
    """
    names = [keys.newer(inbox), keys.inbox(inbox), keys.intake(inbox), keys.INTAKE]
    match await runner.run(redis, "inbox_recall", names, [token, reads, max_messages, max_bytes]):
        case [b"checked", int(checked), int(deferred)]:
            return checked, deferred
        case _:
            return None


_MAX_VERSION = 1 << 53
"""Largest number that Lua compares exactly."""


def _max_letters(inbox: str) -> int:
    return MAX_LETTERS_PER_MINUTE if inbox else 0  # 0: no limit
