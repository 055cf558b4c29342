"""The scripts of the inbox: one worker at a time takes messages, renews, returns and acknowledges.

token: identifies the worker that empties the inbox. A script refuses the token of a worker whose lease has
lapsed and whose place another one has.
"""

from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import NamedTuple

from redis.asyncio import Redis

from fetchfleet.jobs import keys
from fetchfleet.jobs.redis_connection import text_of
from fetchfleet.jobs.scripts import runner
from fetchfleet.jobs.scripts.runner import Arg


class InboxMessages(NamedTuple):
    """Messages taken out of the inbox, and the id of the batch that they become."""

    batch_id: str
    messages: list[bytes]


class NothingTaken(StrEnum):
    """Why no message was taken: the inbox is empty, or another worker empties it."""

    EMPTY = "empty"
    OTHER_WORKER = "other"


async def inbox_take(
    redis: Redis,
    *,
    token: str,
    lease_ms: int,
    max_messages: int,
    max_bytes: int,
    max_message_bytes: int,
    new_batch_id: str,
) -> InboxMessages | NothingTaken:
    """Take messages, or those taken before and not acknowledged yet, under the batch id they had then.

    max_bytes: stop once the messages taken have as many. A message over max_message_bytes becomes a dead
    letter.
    """
    names = [keys.INBOX, keys.TAKEN, keys.INTAKE, keys.DEAD]
    args: list[Arg] = [token, lease_ms, keys.INTAKE_TTL_MS, max_messages, max_bytes, max_message_bytes]
    match await runner.run(redis, "inbox_take", names, [*args, new_batch_id, keys.DEAD_LENGTH]):
        case [b"taken", batch_id, *messages]:
            return InboxMessages(batch_id.decode(), messages)
        case [b"empty"]:
            return NothingTaken.EMPTY
        case _:
            return NothingTaken.OTHER_WORKER


async def inbox_renew(redis: Redis, *, token: str, lease_ms: int) -> bool:
    """Renew the lease, or give the inbox up with 0 ms; False if another worker empties it."""
    return bool(await runner.run(redis, "inbox_renew", [keys.INTAKE], [token, lease_ms]))


class RefusedMessage(NamedTuple):
    """A message for the dead letters, and what is wrong with it."""

    note: str
    message: bytes


async def inbox_ack(redis: Redis, *, token: str, refused: Iterable[RefusedMessage]) -> bool:
    """Drop the messages taken, which are enqueued now; False if another worker empties the inbox."""
    args: list[Arg] = [token, keys.INTAKE_TTL_MS, keys.DEAD_LENGTH]
    for note, message in refused:
        args += [note, message]
    return bool(await runner.run(redis, "inbox_ack", [keys.TAKEN, keys.INTAKE, keys.DEAD], args))


class InboxReturn(StrEnum):
    """Why messages were not returned: their batch is partly enqueued, or another worker empties the inbox."""

    BATCH_BEGUN = "begun"
    OTHER_WORKER = "other"


async def inbox_return(
    redis: Redis, *, token: str, batch_id: str, messages: Sequence[bytes]
) -> int | InboxReturn:
    """Move messages from what was taken to the end of the inbox; return how many are in the inbox then.

    batch_id: the batch that the messages taken become.
    """
    names = [keys.INBOX, keys.TAKEN, keys.INTAKE, keys.batch(batch_id)]
    match await runner.run(redis, "inbox_return", names, [token, *messages]):
        case [b"back", int(waiting)]:
            return waiting
        case [reason]:
            return InboxReturn(text_of(reason))
        case reply:
            raise AssertionError(reply)
