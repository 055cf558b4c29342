"""Batches script calls: the calls of one iteration of the event loop share a round trip."""

import asyncio
from collections.abc import Sequence
from typing import Any

from redis.asyncio import Redis

from fetchfleet.jobs.scripts import runner
from fetchfleet.worker.util import aio


class ScriptBatcher:
    """Sends script calls in batches. Each caller receives its own reply or error, as from `runner.run`."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._calls: list[runner.Call] = []
        self._replies: list[asyncio.Future[Any]] = []
        self._sending: set[asyncio.Task[None]] = set()

    async def run(self, script: str, keys: Sequence[str], args: Sequence[runner.Arg]) -> Any:
        """Return the reply of the script. Cancelling the caller does not stop the call."""
        loop = asyncio.get_running_loop()
        reply: asyncio.Future[Any] = loop.create_future()
        if not self._calls:
            loop.call_soon(self._start)
        self._calls.append(runner.Call(script, keys, args))
        self._replies.append(reply)
        return await reply

    async def aclose(self) -> None:
        """Cancel the pending calls and their callers."""
        await aio.end(*self._sending)

    def _start(self) -> None:
        calls, self._calls = self._calls, []
        replies, self._replies = self._replies, []

        async def send() -> None:
            results: Sequence[Any]
            try:
                results = await runner.run_many(self._redis, calls)
            except asyncio.CancelledError:
                for reply in replies:
                    reply.cancel()
                raise
            except Exception as error:  # noqa: BLE001 each caller handles it
                results = [error] * len(calls)
            for reply, result in zip(replies, results, strict=True):
                if reply.done():  # the caller was cancelled
                    continue
                if isinstance(result, Exception):
                    reply.set_exception(result)
                else:
                    reply.set_result(result)

        task = asyncio.create_task(send(), name=f"{len(calls)} calls to Redis")
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)
