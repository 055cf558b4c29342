"""Appends the records of a worker: one hop to a thread and one sync for all waiting records."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial

from fetchfleet.worker.sink.warc.known_bodies import KnownBodies
from fetchfleet.worker.sink.warc.record_format import RecordIds
from fetchfleet.worker.sink.warc.segments import RecordSource, Segments
from fetchfleet.worker.util.clock import mono_s


class SegmentWriter:
    """Writes the segments in one thread. Call its methods on the loop, except `close_segment`."""

    def __init__(self, segments: Segments, known: KnownBodies, ids: RecordIds, *, compressed: bool) -> None:
        self.known = known
        self.ids = ids
        self.compressed = compressed
        """Each record is a gzip member."""
        self.segments = segments
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="warc")
        self._waiting: list[RecordSource] = []
        self._busy = False
        self._expiry: asyncio.TimerHandle | None = None

    def add(self, source: RecordSource) -> None:
        """Append the source's record, and report the outcome to the source."""
        self._waiting.append(source)
        if not self._busy:
            self._busy = True
            # Later, to write all records of this loop iteration together.
            asyncio.get_running_loop().call_soon(self._hand_over)

    def close(self) -> None:
        """Close the current segment, and end the thread. A second call does nothing."""
        if self._expiry is not None:
            self._expiry.cancel()
        self._thread.shutdown()
        self.segments.close()

    def close_segment(self) -> None:
        """Close the current segment. Blocks; call it off the loop."""
        with suppress(RuntimeError):  # the thread has been shut down
            self._thread.submit(self.segments.close).result()

    def _hand_over(self) -> None:
        sources, self._waiting = self._waiting, []
        self._in_thread(partial(self.segments.write, sources), partial(self._written, sources))

    def _in_thread(self, work: Callable[[], object], then: Callable[..., None]) -> None:
        asyncio.get_running_loop().run_in_executor(self._thread, work).add_done_callback(then)

    def _written(self, sources: list[RecordSource], written: asyncio.Future[object]) -> None:
        bug = written.exception()
        for source in sources:
            if bug is not None:
                source.set_error(RuntimeError(repr(bug)))
            source.notify()
        self._busy = bool(self._waiting)
        if self._waiting:
            self._hand_over()
        self._watch_age()

    def _watch_age(self) -> None:
        """Close the segment at its maximum age even if no further record follows."""

        def expire() -> None:
            self._expiry = None
            self._in_thread(self.segments.close_old, lambda _: self._watch_age())

        expires_s = self.segments.expires_s
        if self._expiry is None and expires_s is not None:
            wait_s = max(0.0, expires_s - mono_s())
            self._expiry = asyncio.get_running_loop().call_later(wait_s, expire)
