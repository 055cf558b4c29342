"""The scripts of the inboxes: one worker at a time takes messages, renews, puts aside and acknowledges.

inbox: the name of the inbox, "" for the shared one. token: identifies the worker that empties the inboxes. A
script refuses the token of a worker whose lease has lapsed and whose place another one has.
"""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple

from redis.asyncio import Redis

from fetchfleet.jobs import keys
from fetchfleet.jobs.scripts import runner
from fetchfleet.jobs.scripts.runner import Arg

LETTERS_A_MINUTE = 1000
"""The most dead letters from a named inbox in a minute: its pusher need not be trusted."""


class InboxMessages(NamedTuple):
    """Messages taken out of the inbox, and the id of the batch that they become."""

    batch_id: str
    messages: list[bytes]


class NoMessages(StrEnum):
    """The reason for which no message was taken.

    The inbox is empty, or all messages that were looked at became dead letters, or another worker empties it.
    """

    EMPTY = "empty"
    LOOK_AGAIN = "again"
    OTHER_WORKER = "other"


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
    """Take messages, or those taken before and not acknowledged yet, under the batch id they had then.

    reads: the newest version that the worker reads. max_bytes: stop once the messages looked at have as many.
    A message over max_message_bytes becomes a dead letter.
    """
    names = [keys.inbox(inbox), keys.taken(inbox), keys.intake(inbox), keys.DEAD, keys.INTAKE]
    args: list[Arg] = [token, lease_ms, keys.INTAKE_TTL_MS, max_messages, max_bytes, max_message_bytes]
    args += [new_batch_id, keys.DEAD_LENGTH, reads, _letters(inbox)]
    match await runner.run(redis, "inbox_take", names, args):
        case [b"taken", batch_id, *messages]:
            return InboxMessages(batch_id.decode(), messages)
        case [reason]:
            return NoMessages(reason.decode())
        case reply:
            raise AssertionError(reply)


async def inbox_renew(redis: Redis, *, token: str, lease_ms: int) -> bool:
    """Renew the lease, or give the inboxes up with 0 ms; False if another worker empties them."""
    return bool(await runner.run(redis, "inbox_renew", [keys.INTAKE], [token, lease_ms]))


class RefusedMessage(NamedTuple):
    """A message for the dead letters, and what is wrong with it."""

    note: str
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
    """Drop the messages taken, which are enqueued or refused now, and write their receipts, by key.

    Returns how many of those refused did not become dead letters, because the inbox has had LETTERS_A_MINUTE;
    None if another worker empties the inboxes.
    """
    names = [keys.taken(inbox), keys.intake(inbox), keys.DEAD, keys.INTAKE, *receipts]
    first: list[Arg] = [token, keys.INTAKE_TTL_MS, keys.DEAD_LENGTH, _letters(inbox), keys.RECEIPT_TTL_MS]
    letters: list[Arg] = [part for item in refused for part in item]
    for listed in ([], list(messages)):  # their texts are needed only if the list holds others as well
        args = [*first, len(messages), int(bool(listed)), *receipts.values(), *listed, *letters]
        match await runner.run(redis, "inbox_ack", names, args):
            case [b"done", int(left_out)]:
                return left_out
            case [b"other"]:
                return None
    return None


class PutAside(StrEnum):
    """The reason for which messages stay: a partly enqueued batch, or another worker with the inboxes."""

    BATCH_BEGUN = "begun"
    OTHER_WORKER = "other"


async def inbox_put_aside(
    redis: Redis,
    inbox: str = "",
    *,
    token: str,
    batch_id: str,
    messages: Sequence[tuple[int, bytes]],
    kept_bytes: int,
) -> int | PutAside:
    """Move messages for newer workers out of what was taken; return how many became dead letters instead.

    batch_id: the batch that the messages taken become. messages: each behind the version that it needs.
    kept_bytes: how much of a message a dead letter keeps.
    """
    names = [keys.taken(inbox), keys.newer(inbox), keys.intake(inbox), keys.DEAD, keys.INTAKE]
    args: list[Arg] = [
        token,
        keys.NEWER_LENGTH,
        keys.NEWER_BYTES,
        keys.DEAD_LENGTH,
        _letters(inbox),
        kept_bytes,
    ]
    for version, message in messages:
        args += [min(version, _MAX_VERSION), message]
    match await runner.run(redis, "inbox_put_aside", [*names, keys.batch(batch_id)], args):
        case [b"aside", int(left_out)]:
            return left_out
        case [reason]:
            return PutAside(reason.decode())
        case reply:
            raise AssertionError(reply)


async def inbox_recall(
    redis: Redis, inbox: str = "", *, token: str, reads: int, max_messages: int, max_bytes: int
) -> tuple[int, int] | None:
    """Move messages that were put aside back to the inbox if their version is at most `reads`.

    Returns how many were looked at, and how many were aside; None if another worker empties the inboxes.
    """
    names = [keys.newer(inbox), keys.inbox(inbox), keys.intake(inbox), keys.INTAKE]
    match await runner.run(redis, "inbox_recall", names, [token, reads, max_messages, max_bytes]):
        case [b"looked", int(looked_at), int(aside)]:
            return looked_at, aside
        case _:
            return None


_MAX_VERSION = 1 << 53
"""Lua compares numbers exactly up to this."""


def _letters(inbox: str) -> int:
    return LETTERS_A_MINUTE if inbox else 0
