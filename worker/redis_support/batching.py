"""Script calls of many lanes in one round trip: those that are made in one turn of the event loop."""

import asyncio
from collections.abc import Sequence
from typing import Any, NamedTuple

from redis.asyncio import Redis

from fetchfleet.jobs.scripts import runner
from fetchfleet.worker.util import aio


class _Asked(NamedTuple):
    call: runner.Call
    reply: asyncio.Future[Any]


class Together:
    """Each call is made once, and its caller hears what became of it, as from `scripts.run`."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._asked: list[_Asked] = []
        self._under_way: set[asyncio.Task[None]] = set()

    async def run(self, script: str, keys: Sequence[str], args: Sequence[runner.Arg]) -> Any:
        """The script's reply. Whoever gives up waiting does not stop the call."""
        loop = asyncio.get_running_loop()
        reply: asyncio.Future[Any] = loop.create_future()
        if not self._asked:
            loop.call_soon(self._send)
        self._asked.append(_Asked(runner.Call(script, keys, args), reply))
        return await reply

    async def aclose(self) -> None:
        """Wait for nothing that is under way: who asked hears that it was cancelled."""
        await aio.end(*self._under_way)

    def _send(self) -> None:
        asked, self._asked = self._asked, []
        task = asyncio.create_task(self._ask(asked), name=f"{len(asked)} calls to Redis")
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def _ask(self, asked: Sequence[_Asked]) -> None:
        try:
            replies = await runner.run_many(self._redis, [one.call for one in asked])
        except asyncio.CancelledError:
            for one in asked:
                one.reply.cancel()
            raise
        except Exception as error:  # noqa: BLE001 it is for those who asked to say what they make of it
            replies = [error] * len(asked)
        for one, reply in zip(asked, replies, strict=True):
            _tell(one.reply, reply)


def _tell(waiting: asyncio.Future[Any], reply: Any) -> None:
    if waiting.done():  # nobody waits any more
        return
    if isinstance(reply, Exception):
        waiting.set_exception(reply)
    else:
        waiting.set_result(reply)
