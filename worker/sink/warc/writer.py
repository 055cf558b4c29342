"""One writer a worker: what waits goes into the segment together, in one hop off the loop, under one sync."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from fetchfleet.worker.sink.warc.segments import Job, Outcome, Placed, Segments
from fetchfleet.worker.util.clock import mono_s

Waiting = tuple[Job, asyncio.Future[Placed | None]]


class Writer:
    """The loop's side of the segments."""

    def __init__(self, segments: Segments) -> None:
        self._segments = segments
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="warc")
        self._waiting: list[Waiting] = []
        self._busy = False
        self._expiry: asyncio.TimerHandle | None = None

    def append(self, job: Job) -> asyncio.Future[Placed | None]:
        """Where the job's record is, once it is there; None if it did not count any more."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Placed | None] = loop.create_future()
        self._waiting.append((job, future))
        if not self._busy:
            self._busy = True
            loop.call_soon(self._hand_over)  # with all that are ready in this turn of the loop
        return future

    def close(self) -> None:
        """Write nothing more, and give the segment at hand its name; again without harm."""
        if self._expiry is not None:
            self._expiry.cancel()
        self._thread.shutdown()
        self._segments.close()

    def _hand_over(self) -> None:
        taken, self._waiting = self._waiting, []
        jobs = [job for job, _ in taken]
        self._in_thread(partial(self._segments.write, jobs), partial(self._written, taken))

    def _in_thread(self, work: Callable[[], object], then: Callable[..., None]) -> None:
        asyncio.get_running_loop().run_in_executor(self._thread, work).add_done_callback(then)

    def _written(self, taken: list[Waiting], written: asyncio.Future[list[Outcome]]) -> None:
        bug = written.exception()
        outcomes = written.result() if bug is None else [RuntimeError(repr(bug))] * len(taken)
        for (_, future), outcome in zip(taken, outcomes, strict=True):
            if isinstance(outcome, Exception):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)
        self._busy = bool(self._waiting)
        if self._waiting:
            self._hand_over()
        self._watch_age()

    def _watch_age(self) -> None:
        """A segment is closed in time although nothing more comes for it."""
        expires_s = self._segments.expires_s
        if self._expiry is None and expires_s is not None:
            wait_s = max(0.0, expires_s - mono_s())
            self._expiry = asyncio.get_running_loop().call_later(wait_s, self._expire)

    def _expire(self) -> None:
        self._expiry = None
        self._in_thread(self._segments.close_old, lambda _: self._watch_age())
