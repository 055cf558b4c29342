"""Asks arq to hand a lane to a worker: all that producers and workers share of arq.

arq is imported when the first lane is woken, so that importing `jobs` stays cheap.
"""

import asyncio
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from jobs import keys

if TYPE_CHECKING:
    from arq.connections import ArqRedis

TAKE_LANE = "take_lane"
GRACE_MS = 3_000
MAX_WAKES_AT_ONCE = 16

serialize = msgspec.json.encode
deserialize = msgspec.json.decode


class Wake(NamedTuple):
    """One lane to hand over: its generation, and in how many ms."""

    lane: str
    generation: int
    due_in_ms: int


def wakes_of(lanes: Sequence[str], replies: Sequence[Any]) -> list[Wake]:
    """Those of the lanes that a script says must be woken: its replies hold a generation and ms until due."""
    return [
        Wake(lane, *reply)
        for lane, reply in zip(lanes, replies, strict=True)
        if reply and not isinstance(reply, Exception)
    ]


def arq_client(pool: Any) -> "ArqRedis":
    """Arq's client on our connection pool, speaking JSON: pickle is never read or written."""
    from arq.connections import ArqRedis  # noqa: PLC0415 see the module's docstring

    return ArqRedis(
        pool_or_conn=pool,
        job_serializer=serialize,
        job_deserializer=deserialize,
        default_queue_name=keys.QUEUE,
    )


async def wake(arq: "ArqRedis", wakes: Iterable[Wake]) -> None:
    """Enqueue the hand-offs. One that is lost here is made good by the workers' sweep."""
    slots = asyncio.Semaphore(MAX_WAKES_AT_ONCE)

    async def one(item: Wake) -> None:
        async with slots:
            await arq.enqueue_job(
                TAKE_LANE,
                item.lane,
                item.generation,
                _job_id=keys.wake_job(item.lane, item.generation),
                _queue_name=keys.QUEUE,
                _defer_by=item.due_in_ms / 1000 or None,
            )

    await asyncio.gather(*(one(item) for item in wakes))
