"""The metrics of a fleet: their names, their values, and the server that exports them."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample
from redis.asyncio import Redis

from fetchfleet import Fleet
from fetchfleet.jobs import keys
from fetchfleet.jobs.contract.safe_text import UNSAFE
from fetchfleet.jobs.redis_connection import connect
from fetchfleet.worker.console import metrics
from fetchfleet.worker.console.metrics import FleetMetrics, families_of, read_fleet, text_of_metrics
from fetchfleet.worker.inspect.snapshot import LaneReport
from fetchfleet.worker.observability.totals import WorkerTotals
from tests.support.console import BEARER, TOKEN, console
from tests.support.fleet_reports import publish_report
from tests.support.lanes import LaneHold

PAGE = Path(__file__).parents[3] / "docs" / "metrics.md"


def samples(text: bytes) -> Iterator[Sample]:
    """Yield the samples of metrics in the text format."""
    for family in text_string_to_metric_families(text.decode()):
        yield from family.samples


def values(text: bytes) -> dict[tuple[str, ...], float]:
    """Return the samples by name, without its prefix, and label values."""
    return {
        (sample.name.removeprefix("fetchfleet_fleet_"), *sample.labels.values()): sample.value
        for sample in samples(text)
    }


async def test_the_metrics_are_those_of_the_fleet(redis: Redis, fleet: Fleet) -> None:
    """Counters of workers have the instance as a label."""
    await fleet.submit([f"http://{host}.example/{i}" for host in "ab" for i in range(3)])
    totals = WorkerTotals(finished={"stored": {"none": 5}, "failed": {"tls": 2}})
    one = await publish_report(
        redis, 'o"ne', totals=totals, received_bytes=7, lanes={"a.example": LaneReport(in_flight=1)}
    )
    await LaneHold.begin(redis, one, "a.example")
    await redis.rpush(keys.INBOX, '{"fetches": [{}, {}]}')  # type: ignore[misc]
    await redis.xadd(keys.ALL_RESULTS, {"r": "x"})
    await redis.xgroup_create(keys.ALL_RESULTS, "readers", "0")
    found = values(text_of_metrics(await read_fleet(redis)))
    await redis.delete(keys.INBOX)

    assert 1 == found["up",]
    assert (1, 0, 0) == tuple(found["workers", state] for state in ("live", "draining", "lacking"))
    assert (1, 1, 0) == tuple(found["lanes", state] for state in ("busy", "waiting", "cooling"))
    assert (6, 2, 0) == tuple(found["backlog_fetches", place] for place in ("lanes", "inbox", "arq"))
    assert (2, 1, 1, 1) == tuple(
        found[name, *labels]
        for name, labels in (
            *(("lanes_runnable", ()), ("in_flight_fetches", ())),
            *(("inbox_messages", ()), ("results_unread", ("readers",))),
        )
    )
    assert (5, 2) == (
        found["worker_finished_total", one, "stored", ""],
        found["worker_finished_total", one, "failed", "tls"],
    )
    assert 7 == found["worker_received_bytes_total", one]
    assert 0 <= found["oldest_fetch_age_seconds",] < 60


async def test_names_of_other_programs_are_safe_for_a_terminal(redis: Redis) -> None:
    """Of workers and of consumer groups."""
    await publish_report(redis, "w\x1b\u202e", received_bytes=7)
    await redis.xadd(keys.ALL_RESULTS, {"r": "x"})
    await redis.xgroup_create(keys.ALL_RESULTS, "g\x9b", "0")
    text = text_of_metrics(await read_fleet(redis)).decode()

    assert not UNSAFE.search(text.replace("\n", ""))
    assert 'group="g\\\\u009b"' in text


async def test_the_page_names_every_metric_of_the_fleet_and_no_other(redis: Redis) -> None:
    """With its type."""
    section = PAGE.read_text().partition("\n## Fleet\n")[2].partition("\n## ")[0]
    documented = dict(re.findall(r"^\| `(\w+)` \| (\w+) \|", section, re.MULTILINE))
    exported = {
        family.name + ("_total" if family.type == "counter" else ""): family.type
        for family in families_of(await read_fleet(redis))
    }

    assert documented == exported


async def test_the_server_exports_them_to_callers_with_the_token(redis_url: str) -> None:
    """In the text format of Prometheus."""
    async with console(redis_url, token=TOKEN) as client:
        response = await client.get("/metrics", headers=BEARER)

    assert 200 == response.status_code
    assert response.headers["content-type"].startswith("text/plain; version=")
    assert 1 == values(response.content)["up",]


async def test_without_redis_only_up_is_exported(tmp_path: Path) -> None:
    """Prometheus still gets an answer."""
    async with connect(f"unix://{tmp_path}/none.sock", 1) as redis:
        found = values(await FleetMetrics(redis).text())

    assert {("up",): 0} == found


async def test_scrapers_share_a_reading_for_two_seconds(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After that time Redis is read again."""
    now_s = 1000.0
    monkeypatch.setattr(metrics, "mono_s", lambda: now_s)
    cached = FleetMetrics(redis)
    before = values(await cached.text())
    await redis.xadd(keys.DEAD, {"door": "inbox"})
    now_s += 1.9
    during = values(await cached.text())
    now_s += 0.2
    after = values(await cached.text())

    assert [0, 0, 1] == [found["dead_letters",] for found in (before, during, after)]
