"""`fetchfleet.sync`: the API without asyncio, in scripts, threads and running event loops."""

import asyncio
import inspect
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from redis.asyncio import Redis

import fetchfleet
from fetchfleet import (
    DeadLetterFilter,
    Fetch,
    InvalidFetchError,
    Result,
    UnknownBatchError,
    sync,
)
from fetchfleet.jobs import keys
from fetchfleet.jobs.client.loop_thread import LoopThread
from tests.support.lanes import BATCH_ID, LaneHold, fail_batch, paths, url, waiting
from tests.support.waiting import wait_until

ASYNC_ONLY = {"call"}
"""`Fleet.call` awaits a function: without asyncio it has no meaning."""
RENAMED = {"aclose": "close"}

SCRIPT = """
import sys
import fetchfleet
fleet = fetchfleet.sync.Fleet(sys.argv[1])
batch = fleet.submit(f"https://a.example/{n}" for n in range(3))
print(batch.ids[2] == f"{batch.id}-00000002", batch.counts().total)
print([one.id for one in fleet.batches()] == [batch.id])
letters = fleet.dead.iter()
print(next(letters, None))
"""
"""A script that does not close its Fleet."""


@pytest.fixture
def fleet(redis_url: str) -> Iterator[sync.Fleet]:
    """A client without asyncio."""
    with sync.Fleet(redis_url) as client:
        yield client


@pytest.fixture(autouse=True)
def no_thread_left() -> Iterator[None]:
    """Fail a test that leaves a thread of a Fleet."""
    yield
    assert [] == [thread.name for thread in threading.enumerate() if thread.name == "fetchfleet"]


def public(kind: type) -> dict[str, Any]:
    """Return the public members of a class."""
    return {RENAMED.get(name, name): of for name, of in vars(kind).items() if not name.startswith("_")}


def parameters(function: Callable[..., Any]) -> list[tuple[str, Any, Any]]:
    """Return name, kind and default of each parameter."""
    return [(of.name, of.kind, of.default) for of in inspect.signature(function).parameters.values()]


@pytest.mark.parametrize("name", ["Fleet", "Batch", "Submitted", "Results", "DeadLetters"])
def test_every_call_of_the_asynchronous_api_has_a_counterpart(name: str) -> None:
    """Names, parameters and defaults are equal, and no method is a coroutine."""
    asynchronous, plain = public(getattr(fetchfleet, name)), public(getattr(sync, name))

    assert asynchronous.keys() - plain.keys() == (ASYNC_ONLY if name == "Fleet" else set())
    assert plain.keys() - asynchronous.keys() == ({"due"} if name == "Results" else set())
    for member in plain.keys() & asynchronous.keys():
        assert isinstance(plain[member], property) == isinstance(asynchronous[member], property)
        if callable(plain[member]):
            assert parameters(plain[member]) == parameters(asynchronous[member]), member
            assert not inspect.iscoroutinefunction(plain[member])
    if name == "Fleet":
        assert parameters(sync.Fleet) == parameters(fetchfleet.Fleet)


def test_importing_it_loads_neither_the_worker_nor_arq() -> None:
    """It is loaded at the first use of `fetchfleet.sync`."""
    program = (
        "import sys, fetchfleet; before = 'fetchfleet.sync' in sys.modules; fetchfleet.sync.Fleet;"
        "print(before, sorted(m for m in sys.modules if m.startswith(('fetchfleet.worker', 'arq', 'httpx'))))"
    )
    assert (
        "False []\n"
        == subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    )


def test_a_script_ends_cleanly_without_close(redis_url: str) -> None:
    """Its thread and its connections end with the program, without a warning."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT, redis_url],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["True", "3", "True", "None"]


async def test_it_works_inside_a_running_event_loop_and_in_threads(fleet: sync.Fleet, redis: Redis) -> None:
    """As in a notebook. Several threads share one Fleet."""
    batch = fleet.submit([url("/0"), Fetch(url=url("/1"))])
    others = await asyncio.gather(*(asyncio.to_thread(fleet.submit, [url(f"/{place}")]) for place in (2, 3)))
    await (await LaneHold.begin(redis)).finish(4)

    results = batch.results()
    assert [result.id for result in results] == batch.ids
    again = fleet.batch(batch.id).results(after=results.position)
    assert (list(again), again.page(), again.due) == ([], [], 0)
    assert batch.wait().stored == 2
    assert Counter(one.id for one in fleet.batches()) == Counter([batch.id, *(one.id for one in others)])
    [first, second] = fleet.batch(batch.id).results().page()
    assert [first.result.id, second.result.id] == batch.ids


async def test_results_continue_in_the_middle_of_a_page(fleet: sync.Fleet, redis: Redis) -> None:
    """The position is that of the last result returned, not of the last one read."""
    batch = fleet.submit([url(f"/{place}") for place in range(5)])
    await (await LaneHold.begin(redis)).finish(5)
    results = batch.results()
    ids = [next(results).id, next(results).id]
    ids += [result.id for result in fleet.batch(batch.id).results(after=results.position)]
    assert ids == batch.ids
    assert [of.result.id for of in results.page()] == batch.ids[2:]


async def test_dead_letters_are_listed_retried_and_purged(
    fleet: sync.Fleet, redis: Redis, redis_url: str
) -> None:
    """The old batch names the new one."""
    async with fetchfleet.Fleet(redis_url) as asynchronous:
        await fail_batch(asynchronous, redis, 2)
    batch = fleet.batch(BATCH_ID)
    assert len({letter.position for letter in fleet.dead.iter()}) == 2
    position = next(fleet.dead.iter()).position
    retried = fleet.dead.retry(DeadLetterFilter(position=position))
    assert [again.id for again in batch.retried_as()] == retried.batches
    assert fleet.dead.purge() == 1
    assert list(fleet.dead.iter()) == []


async def test_an_iterator_is_consumed_in_the_thread_of_the_caller(fleet: sync.Fleet, redis: Redis) -> None:
    """A cursor of SQLite refuses other threads. Its errors reach the caller."""
    database = sqlite3.connect(":memory:")
    database.execute("create table urls (url text)")
    database.executemany("insert into urls values (?)", [(url(f"/{place}"),) for place in range(120)])
    batch = fleet.submit(row[0] for row in database.execute("select url from urls"))
    assert (batch.counts().total, len(paths(await waiting(redis)))) == (120, 120)

    def broken() -> Iterator[str]:
        yield url("/x")
        raise LookupError("no more")

    with pytest.raises(LookupError, match="no more"):
        fleet.submit(broken())
    with pytest.raises(InvalidFetchError, match="item 1: url"):
        fleet.submit(iter([url("/x"), "ftp://x/"]))
    database.close()


async def asynchronous_urls() -> Any:
    yield url("/0")


def test_an_asynchronous_iterator_is_accepted_too(fleet: sync.Fleet) -> None:
    """It is consumed in the thread of the Fleet."""
    assert fleet.submit(asynchronous_urls()).counts().total == 1


def test_errors_are_those_of_the_asynchronous_api(fleet: sync.Fleet, redis_url: str) -> None:
    """A cancelled batch, an unknown one, a malformed ID and URL."""
    batch = fleet.submit([url("/0")])
    assert batch.cancel().cancelled == 0
    assert repr(batch) == f"<Batch {batch.id}>"
    with pytest.raises(UnknownBatchError):
        fleet.batch("0" * 16).wait()
    with pytest.raises(ValueError, match="not a batch ID"):
        fleet.batch("x")
    with pytest.raises(fetchfleet.RedisSetupError):
        sync.Fleet("http://x")


def test_a_closed_fleet_and_one_of_another_process_say_so(redis_url: str) -> None:
    """Closing twice is safe. A child process leaves the Fleet of its parent alone."""
    fleet = sync.Fleet(redis_url)
    fleet.batches()
    child = os.fork()
    if not child:
        code = 1
        try:
            fleet.batches()
        except RuntimeError as error:
            code = 0 if "after a fork" in str(error) else 2
            fleet.close()
        os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    assert fleet.batches() == []
    fleet.close()
    fleet.close()
    with pytest.raises(RuntimeError, match="is closed"):
        fleet.batches()


@contextmanager
def interrupted_by_another_thread(when: Callable[[], object]) -> Iterator[None]:
    """Send SIGINT to this process once `when` is true; expect the interruption."""

    def interrupt() -> None:
        asyncio.run(wait_until(when, "the moment to interrupt"))
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # uvloop leaves its own
    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            yield
    finally:
        thread.join()
        signal.signal(signal.SIGINT, before)


def test_an_interruption_ends_the_call_and_leaves_no_task(
    fleet: sync.Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Fleet remains usable after it."""
    batch = fleet.submit([url("/0")])
    waits = threading.Event()
    original = LoopThread.run

    def run(thread: LoopThread, work: Any, *calls: Any) -> Any:
        waits.set()
        return original(thread, work, *calls)

    monkeypatch.setattr(LoopThread, "run", run)
    with interrupted_by_another_thread(waits.is_set):
        batch.wait()
    assert tasks_of(fleet) == 1
    assert batch.counts().total == 1

    def interrupted() -> Iterator[str]:
        yield url("/1")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fleet.submit(interrupted())
    assert tasks_of(fleet) == 1


def tasks_of(fleet: sync.Fleet) -> int:
    """Return the number of tasks in the loop of the Fleet, with the one that counts them."""

    async def count() -> int:
        return len(asyncio.all_tasks())

    return fleet._thread.run(count())


async def test_each_calls_a_plain_function_for_every_result(fleet: sync.Fleet, redis: Redis) -> None:
    """In threads, up to `concurrency` at a time. A failure is handed to on_failure."""
    batch, seen, failed = fleet.submit([url(f"/{place}") for place in range(6)]), list[str](), list[str]()
    await (await LaneHold.begin(redis)).finish(6)
    both = threading.Barrier(2)

    def handle(result: Result) -> None:
        if result.id == batch.ids[0]:
            raise ValueError("no")
        if result.id in batch.ids[1:3]:
            both.wait(10)
        seen.append(result.id)

    def on_failure(result: Result, error: Exception) -> None:
        failed.append(f"{result.id} {error}")

    def consume() -> None:
        fleet.each(handle, group="billing", concurrency=2, attempts=1, on_failure=on_failure)

    consumer = asyncio.create_task(asyncio.to_thread(consume))
    await wait_until(lambda: len(seen) == 5 and failed, "every result")
    await asyncio.to_thread(fleet.close)
    with pytest.raises(RuntimeError, match="closed during the call"):
        await consumer
    assert sorted(seen) == batch.ids[1:]
    assert failed == [f"{batch.ids[0]} no"]


def test_each_ends_with_an_interruption(fleet: sync.Fleet) -> None:
    """A program of one call ends with Ctrl-C."""

    async def has_group() -> object:
        return await fleet._fleet._redis.exists(keys.ALL_RESULTS)

    with interrupted_by_another_thread(lambda: fleet._thread.run(has_group())):
        fleet.each(lambda _: None, group="billing")
    assert tasks_of(fleet) == 1


def test_a_call_while_the_fleet_is_closed_is_refused(redis_url: str) -> None:
    """A call that begins after the last task was cancelled would never end."""
    fleet, began, ending = sync.Fleet(redis_url), threading.Event(), threading.Event()
    may_end, errors = threading.Event(), list[Exception]()

    async def slow_to_end() -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ending.set()
            await asyncio.to_thread(may_end.wait)

    def call(work: Callable[[], Any]) -> None:
        try:
            fleet._thread.run(work())
        except RuntimeError as error:
            errors.append(error)

    first = threading.Thread(target=call, args=[slow_to_end], daemon=True)
    second = threading.Thread(target=call, args=[asyncio.Event().wait], daemon=True)
    closing = threading.Thread(target=fleet.close, daemon=True)
    first.start()
    assert began.wait(10)
    closing.start()
    assert ending.wait(10)
    second.start()
    second.join(5)
    may_end.set()
    for thread in (first, closing):
        thread.join(10)

    assert not any(thread.is_alive() for thread in (first, second, closing))
    assert ["this Fleet" in str(error) for error in errors] == [True, True]


@pytest.mark.parametrize("error", [StopIteration, SystemExit, KeyboardInterrupt])
async def test_each_outlives_a_handler_that_raises_what_an_event_loop_does_not_survive(
    fleet: sync.Fleet, redis: Redis, error: type[BaseException]
) -> None:
    """It is an error as any other, also that of `sys.exit` and of an exhausted iterator."""
    await asyncio.to_thread(fleet.submit, [url("/a")])
    await (await LaneHold.begin(redis)).finish(1)
    failures = list[Exception]()

    def handle(_: Result) -> None:
        raise error

    def each() -> None:
        with pytest.raises(RuntimeError, match="closed during the call"):
            fleet.each(
                handle, group="billing", attempts=1, on_failure=lambda _, failure: failures.append(failure)
            )

    consumer = threading.Thread(target=each)
    consumer.start()
    await wait_until(lambda: failures, "the failure")
    await asyncio.to_thread(fleet.close)
    consumer.join(10)

    assert [str(failure) for failure in failures] == [f"the function raised {error.__name__}"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_exit_in_the_loop_of_a_fleet_closes_it(redis_url: str) -> None:
    """A later call is refused, and does not wait for a loop that has ended."""
    fleet = sync.Fleet(redis_url)

    async def leave() -> None:
        raise SystemExit

    with pytest.raises((RuntimeError, SystemExit)):
        fleet._thread.run(leave())
    fleet._thread._thread.join(10)
    with pytest.raises(RuntimeError, match="is closed"):
        fleet.batches()
    fleet.close()
