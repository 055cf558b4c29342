"""`Fleet` without asyncio, for scripts, notebooks and threads.

    from fetchfleet.sync import Fleet

    with Fleet("redis://localhost:6379") as fleet:
        batch = fleet.submit(["https://example.com/a.bin"])
        for result in batch.results():
            print(result.outcome, result.path)

The calls are those of `fetchfleet.Fleet`, with the same arguments and errors. Each Fleet has an event loop in
a thread of its own. It may be used by several threads, and while another event loop runs.
"""

import asyncio
import atexit
import itertools
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self, TypeVar

from fetchfleet.jobs.client import batch as aio_batch
from fetchfleet.jobs.client import dead_letters as aio_dead_letters
from fetchfleet.jobs.client import fleet as aio_fleet
from fetchfleet.jobs.client.batch import FROM_THE_START, Counts, ReadResult
from fetchfleet.jobs.client.batch_list import BatchSummary
from fetchfleet.jobs.client.dead_letters import ANY, DeadLetter, DeadLetterFilter, Retried
from fetchfleet.jobs.client.fleet import REDIS_PATIENCE_S, Via
from fetchfleet.jobs.client.loop_thread import Calls, LoopThread
from fetchfleet.jobs.client.submit import Fetchable, Receipt, WhenFull
from fetchfleet.jobs.contract.result import Result
from fetchfleet.jobs.notifications import LaneNotification
from fetchfleet.jobs.patience import Warn

__all__ = ["Batch", "DeadLetters", "Fleet", "Results", "Submitted"]

T = TypeVar("T")
R = TypeVar("R")

ITEMS_AT_ONCE = 50
"""The number of items that are taken from an iterator at once."""
LETTERS_AT_ONCE = 500


class Results(Iterator[Result]):
    """An iterator over the results of a batch, in the order in which they were written."""

    def __init__(self, thread: LoopThread, results: aio_batch.Results) -> None:
        self.position = results.position
        """Position of the last result read, for `Batch.results(after=position)`."""
        self._thread = thread
        self._results = results
        self._page: deque[ReadResult] = deque()

    @property
    def due(self) -> int:
        """Lower bound of the number of unread results, unless another reader deletes some."""
        return self._results.due + len(self._page)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Result:
        if not self._page:
            self._page.extend(self._thread.run(self._results.page()))
        if not self._page:
            self.position = self._results.position
            raise StopIteration
        self.position, result, _ = self._page.popleft()
        return result

    def page(self) -> list[ReadResult]:
        """Return the next results, up to 500; an empty list at the end."""
        page = list(self._page) or self._thread.run(self._results.page())
        self._page.clear()
        self.position = page[-1].position if page else self._results.position
        return page


class Batch:
    """A handle on a batch, as `fetchfleet.Batch`."""

    def __init__(self, thread: LoopThread, batch: aio_batch.Batch) -> None:
        self.id = batch.id
        """Batch ID, 16 hex digits."""
        self._thread = thread
        self._batch = batch

    def __repr__(self) -> str:
        return f"<Batch {self.id}>"

    def counts(self) -> Counts:
        """Return the progress of the batch. Raises UnknownBatchError."""
        return self._thread.run(self._batch.counts())

    def wait(self) -> Counts:
        """Wait until the batch is sealed and every fetch has a result; return the final counts."""
        return self._thread.run(self._batch.wait())

    def results(self, *, after: str = FROM_THE_START, follow: bool = True, trim: bool = False) -> Results:
        """Return an iterator over the results of the batch. Arguments as in `fetchfleet.Batch.results`."""
        return Results(self._thread, self._batch.results(after=after, follow=follow, trim=trim))

    def cancel(self) -> Counts:
        """Cancel the batch and return its progress so far. Raises UnknownBatchError."""
        return self._thread.run(self._batch.cancel())

    def retried_as(self) -> list["Batch"]:
        """Return the batches in which failed fetches of this one were submitted again, oldest first."""
        return [Batch(self._thread, batch) for batch in self._thread.run(self._batch.retried_as())]


class Submitted(Batch):
    """The batch that `Fleet.submit` returns."""

    def __init__(self, thread: LoopThread, batch: aio_batch.Submitted) -> None:
        super().__init__(thread, batch)
        self._submitted = batch

    @property
    def ids(self) -> list[str]:
        """The IDs of the fetches, in order; for a `key` that was taken, the ID of the earlier fetch."""
        return self._submitted.ids

    @property
    def receipt(self) -> Receipt:
        """The receipt, for a caller that must not have all IDs in memory."""
        return self._submitted.receipt


class DeadLetters:
    """The dead letters of the fleet, as `fetchfleet.DeadLetters`."""

    def __init__(self, thread: LoopThread, dead: aio_dead_letters.DeadLetters) -> None:
        self._thread = thread
        self._dead = dead

    def iter(self, which: DeadLetterFilter = ANY) -> Iterator[DeadLetter]:
        """Yield the selected letters, oldest first."""
        letters = self._dead.iter(which)
        while page := self._thread.run(_take(letters, LETTERS_AT_ONCE)):
            yield from page

    def retry(self, which: DeadLetterFilter = ANY) -> Retried:
        """Submit the fetches of the selected letters as new ones, and delete these letters."""
        return self._thread.run(self._dead.retry(which))

    def purge(self, which: DeadLetterFilter = ANY) -> int:
        """Delete the selected letters; return their number."""
        return self._thread.run(self._dead.purge(which))


class Fleet:
    """A client of the fleet behind one Redis, as `fetchfleet.Fleet`, without asyncio.

    Use it as a context manager, or call `close()`. Otherwise it is closed at the end of the program.
    KeyboardInterrupt ends a call. After a fork, the child process needs a Fleet of its own.
    """

    def __init__(
        self,
        redis_url: str,
        *,
        max_backlog: int = 0,
        max_lane_backlog: int = 0,
        redis_patience_s: float = REDIS_PATIENCE_S,
        warn: Warn | None = None,
        via: Via = "lanes",
        inbox: str | None = None,
    ) -> None:
        """Arguments and errors are those of `fetchfleet.Fleet`. warn: called in another thread."""
        self._fleet = aio_fleet.Fleet(
            redis_url,
            max_backlog=max_backlog,
            max_lane_backlog=max_lane_backlog,
            redis_patience_s=redis_patience_s,
            warn=warn,
            via=via,
            inbox=inbox,
        )
        self._thread = LoopThread()
        atexit.register(self.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close every connection, and end the thread. Safe to call twice."""
        atexit.unregister(self.close)
        if not self._thread.is_closed:
            self._thread.run(self._fleet.aclose())
            self._thread.close()

    @property
    def dead(self) -> DeadLetters:
        """The dead letters: fetches that failed, and input that is not a fetch."""
        return DeadLetters(self._thread, self._fleet.dead)

    def batch(self, batch_id: str) -> Batch:
        """Return a handle on an existing batch. Raises ValueError for a malformed ID."""
        return Batch(self._thread, self._fleet.batch(batch_id))

    def batches(self, limit: int = 50) -> list[BatchSummary]:
        """Return the newest batches, up to `limit`, newest first."""
        return self._thread.run(self._fleet.batches(limit))

    def submit(
        self,
        fetches: Iterable[Fetchable] | AsyncIterable[Fetchable],
        *,
        batch_id: str | None = None,
        when_full: WhenFull = "raise",
        notify: str | None = None,
    ) -> Submitted:
        """Enqueue fetches and return their batch. Arguments and errors as in `fetchfleet.Fleet.submit`.

        An iterator is consumed in the caller's thread, an asynchronous one in the thread of the Fleet.
        """
        calls = Calls()
        if not isinstance(fetches, Sequence | AsyncIterable):
            fetches = _CallersItems(iter(fetches), calls, self._thread)
        work = self._fleet.submit(fetches, batch_id=batch_id, when_full=when_full, notify=notify)
        return Submitted(self._thread, self._thread.run(work, calls))

    def each(
        self,
        handler: Callable[[Result], object],
        *,
        group: str,
        concurrency: int = 16,
        attempts: int = 3,
        claim_after_s: float = 60.0,
        on_failure: Callable[[Result, Exception], object] | None = None,
    ) -> None:
        """Call the handler for each result of every batch, at least once, until interrupted.

        Arguments are those of `fetchfleet.Fleet.each`. The functions are called in `concurrency` threads.
        After an interruption, the call waits for handlers that run. Their results are handed over again.
        """
        with ThreadPoolExecutor(max(concurrency, 1), "each") as threads:
            work = self._fleet.each(
                _in_thread(threads, handler),
                group=group,
                concurrency=concurrency,
                attempts=attempts,
                claim_after_s=claim_after_s,
                on_failure=None if on_failure is None else _in_thread(threads, on_failure),
            )
            self._thread.run(work)

    def notify(self, notifications: Iterable[LaneNotification]) -> None:
        """Enqueue arq jobs that notify workers of due lanes; `submit` and `cancel` do so already."""
        self._thread.run(self._fleet.notify(notifications))


class _CallersItems(AsyncIterator[Fetchable]):
    """The items of an iterator that is consumed in the caller's thread: a database cursor may need that."""

    def __init__(self, items: Iterator[Fetchable], calls: Calls, thread: LoopThread) -> None:
        self._items = items
        self._calls = calls
        self._thread = thread
        self._taken: deque[Fetchable] = deque()

    async def __anext__(self) -> Fetchable:
        if not self._taken:
            taken = asyncio.get_running_loop().create_future()
            self._calls.put(lambda: self._take(taken))
            self._taken.extend(await taken)
        if not self._taken:
            raise StopAsyncIteration
        return self._taken.popleft()

    def _take(self, taken: "asyncio.Future[list[Fetchable]]") -> None:
        items: list[Fetchable] = []
        try:
            items.extend(itertools.islice(self._items, ITEMS_AT_ONCE))
        except Exception as error:  # noqa: BLE001 raised where the items are awaited
            self._thread.call_soon(_set, taken.set_exception, taken, error)
        else:
            self._thread.call_soon(_set, taken.set_result, taken, items)


def _set(change: Callable[[Any], None], future: "asyncio.Future[Any]", value: object) -> None:
    """Set the result or the exception of a future, unless it was cancelled."""
    if not future.done():
        change(value)


def _in_thread(
    threads: ThreadPoolExecutor, function: Callable[..., R]
) -> Callable[..., Coroutine[Any, Any, R]]:
    """Return a coroutine function that calls the function in one of the threads."""

    def call_here(*args: Any) -> R:
        try:
            return function(*args)
        except (StopIteration, SystemExit, KeyboardInterrupt) as error:  # would end or block the event loop
            raise RuntimeError(f"the function raised {type(error).__name__}") from error

    async def call(*args: Any) -> R:
        return await asyncio.get_running_loop().run_in_executor(threads, call_here, *args)

    return call


async def _take(items: AsyncIterator[T], count: int) -> list[T]:
    """Return the next items, up to `count`; an empty list at the end."""
    taken: list[T] = []
    while len(taken) < count:
        try:
            taken.append(await anext(items))
        except StopAsyncIteration:
            break
    return taken
