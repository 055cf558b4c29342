"""The counters of a worker, compared with its results and with its host."""

from collections import Counter

from redis.asyncio import Redis

from fetchfleet.jobs.contract.result import Result
from fetchfleet.worker.inspect.snapshot import worker_reports
from fetchfleet.worker.observability.totals import NO_REASON, WorkerTotals
from tests.component.conftest import Lines, Start
from tests.support.waiting import wait_until
from tools.origin import behaviours as o
from tools.origin.server import Origin

TROUBLE = o.by_path(
    {
        "/throttled": o.sequence(o.retry_after(0), o.ok()),
        "/shaky": o.sequence(o.status(500), o.status(500), o.ok(b"12345")),
        "/missing": o.status(404),
        "/broken": o.status(500),
    },
    otherwise=o.ok(b"123"),
)


def by_outcome(results: list[Result]) -> dict[str, Counter[str]]:
    """Return the number of results by outcome and reason."""
    counted: dict[str, Counter[str]] = {}
    for result in results:
        counted.setdefault(result.outcome, Counter())[result.reason or NO_REASON] += 1
    return counted


async def test_the_counters_of_a_worker_equal_its_results(
    origin: Origin, start: Start, lines: Lines, redis: Redis
) -> None:
    """The same counters are in memory, in the report in Redis and in the last log line of the worker."""
    worker = await start(policy={"attempts": 3, "concurrency": 1, "breaker_failures": 100})
    origin.behaviour = TROUBLE
    paths = ["/throttled", "/shaky", "/missing", "/broken", *(f"/{n}" for n in range(20))]
    results = await worker.results(origin.url(path) for path in paths)

    await worker.runtime.heartbeat.send()
    [report] = (await worker_reports(redis)).values()
    await worker.stop()
    retries = [line for line in lines if line["event"] == "fetch.retry"]
    [beat] = [line for line in lines if line["event"] == "worker.heartbeat"]

    totals = report.totals
    assert totals.finished == by_outcome(results)
    assert totals.retries == Counter(line["reason"] or NO_REASON for line in retries)
    assert totals.retries == {"http_status": 4, "throttled": 1}
    assert totals.throttles == sum(result.throttles for result in results) == 1
    assert totals.interruptions == 0
    assert totals.received_bytes == 2 + 5 + 20 * 3
    assert report.finished == len(results)
    assert {name: beat[name] for name in WorkerTotals.__struct_fields__} == {
        name: getattr(totals, name) for name in WorkerTotals.__struct_fields__
    }


async def test_interruptions_are_counted_by_the_worker_that_stops(origin: Origin, start: Start) -> None:
    """The fetches in flight at the end of the grace period return to their lane, one interruption each."""
    worker = await start(policy={"concurrency": 3}, grace_s=0.0)
    origin.behaviour = o.silent
    batch = await worker.submit(origin.url(f"/{n}") for n in range(3))
    await wait_until(lambda: origin.in_progress == 3, "the requests")
    await worker.stop()

    assert worker.runtime.services.settler.totals.interruptions == 3
    assert (await batch.counts()).done == 0
