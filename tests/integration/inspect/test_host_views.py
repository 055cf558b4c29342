"""The list of hosts, and one host in detail."""

import io
import re

import pytest
from redis.asyncio import Redis
from rich.console import Console

from fetchfleet import Fleet
from fetchfleet.jobs import keys
from fetchfleet.jobs.redis_connection import redis_now_ms
from fetchfleet.worker.cli.render import status_of
from fetchfleet.worker.gate.state import GateState, RecordedAttempt
from fetchfleet.worker.inspect.explain import explain_lane
from fetchfleet.worker.inspect.fleet_status import fleet_status
from fetchfleet.worker.inspect.snapshot import LaneReport
from fetchfleet.worker.inspect.views.hosts import HostQuery, HostSort, PauseInForce, host_detail, hosts
from fetchfleet.worker.policy import overrides
from fetchfleet.worker.policy.file import parse_policy
from tests.support.fleet_reports import publish_report
from tests.support.lanes import LaneHold, reclaim

HOUR_MS = 3600 * 1000
FILE = parse_policy('[default]\nconcurrency = 7\n[host."*.example"]\nrate_per_s = 5\n', "0123456789abcdef")


async def fill(redis: Redis, fleet: Fleet) -> int:
    """Make a busy lane with a worker, a cooling one, and two that wait; return the time."""
    counts = {"busy": 5, "cooling": 9, "first": 1, "second": 2}
    await fleet.submit([f"http://{host}.example/{i}" for host, n in counts.items() for i in range(n)])
    now_ms = await redis_now_ms(redis)
    one = await publish_report(redis, "one", lanes={"busy.example": LaneReport(in_flight=2)})
    await LaneHold.begin(redis, one, "busy.example")
    hold = await LaneHold.begin(redis, "gone-01234567", "cooling.example")
    gate = GateState(cool_until_ms=now_ms + HOUR_MS, answers=(RecordedAttempt(now_ms, "429"),))
    await hold.release(shut_until_ms=now_ms + HOUR_MS, why="cooling", gate=gate)
    return now_ms


async def test_a_host_is_listed_with_its_state_worker_and_end(redis: Redis, fleet: Fleet) -> None:
    """The first is the one with most waiting."""
    now_ms = await fill(redis, fleet)
    page = await hosts(redis)
    cooling, busy, *_ = page.hosts

    assert ["cooling", "busy", "second", "first"] == [row.host.split(".")[0] for row in page.hosts]
    assert ("cooling", 0, 9, None) == (cooling.state, cooling.in_flight, cooling.waiting, cooling.worker)
    assert cooling.until_ms == pytest.approx(now_ms + HOUR_MS, abs=10)
    assert "back off" in cooling.why
    assert ("busy", 2, 5) == (busy.state, busy.in_flight, busy.waiting)
    assert ("one", None) == (busy.worker, busy.until_ms)
    assert (4, 4, 4) == (page.matching, page.lanes_read, page.lanes_in_all)
    assert {"busy": 1, "waiting": 2, "cooling": 1} == {name: n for name, n in page.states.items() if n}


async def test_a_dead_holder_is_named_in_every_view(redis: Redis, fleet: Fleet) -> None:
    """Its fetches are not in flight any more. The problem stays until a minute after the takeover."""
    now_ms = await fill(redis, fleet)
    dead, lane = str((await hosts(redis, HostQuery(state="busy"))).hosts[0].instance), "busy.example"
    await publish_report(redis, "two")
    await redis.zadd(keys.WORKERS, {dead: now_ms - 3_600})
    (row,) = (await hosts(redis, HostQuery(text="busy"))).hosts
    explained, status = await explain_lane(redis, FILE, lane), await fleet_status(redis)
    screen = io.StringIO()
    Console(file=screen, width=200).print(status_of(status))

    said = re.compile(
        r"held by one, which has sent no heartbeat for 3\.\d s;"
        r" another worker takes over when its lease ends, in at most 61 s"
    )
    assert said.fullmatch(row.why)
    assert said.fullmatch(explained.why)
    assert ("waiting", 0, 5) == (row.state, row.in_flight, row.waiting)
    assert ("waiting", 0, 5) == (explained.state, explained.in_flight, explained.waiting)
    assert (0, 2) == (status.overview.in_flight, status.overview.runnable)
    assert ["one"] == [worker.id for worker in status.vanished]
    assert "one vanished 3." in screen.getvalue()
    assert "It held 1 host; another worker takes over" in screen.getvalue()

    await redis.zrem(keys.WORKERS, dead)
    await redis.delete(keys.worker(dead))
    assert "for more than 5 s" in (await explain_lane(redis, FILE, lane)).why

    await redis.zadd(keys.ATTENTION, {lane: now_ms})
    await reclaim(redis)
    (after,) = (await fleet_status(redis)).vanished
    assert (0, "one vanished") == (after.hosts, after.title)
    assert "for a free slot" in (await explain_lane(redis, FILE, lane)).why


async def test_hosts_are_filtered_sorted_and_paged(redis: Redis, fleet: Fleet) -> None:
    """The number that match and the states of all hosts stay complete."""
    await fill(redis, fleet)
    waiting = await hosts(redis, HostQuery(state="waiting", sort=HostSort.HOST))
    text = await hosts(redis, HostQuery(text=" IR "))
    second_page = await hosts(redis, HostQuery(sort=HostSort.HOST, reverse=True, offset=1, limit=2))

    assert ["first.example", "second.example"] == [row.host for row in waiting.hosts]
    assert (2, 4) == (waiting.matching, sum(waiting.states.values()))
    assert ["first.example"] == [row.host for row in text.hosts]
    assert ["first.example", "cooling.example"] == [row.host for row in second_page.hosts]
    assert 4 == second_page.matching


async def test_the_detail_explains_the_wait_and_the_source_of_each_limit(redis: Redis, fleet: Fleet) -> None:
    """It has the last responses, and the pause in force."""
    now_ms = await fill(redis, fleet)
    cooling = await host_detail(redis, "cooling.example", FILE)
    await overrides.pause(redis, fleet.notify, "*.example", FILE)
    paused = await host_detail(redis, "first.example", FILE)
    unknown = await host_detail(redis, "unknown.invalid", FILE)

    limits = {limit.key: (limit.value, limit.source, limit.table) for limit in cooling.limits}
    assert (7, "file", "default") == limits["concurrency"]
    assert (5.0, "file", "*.example") == limits["rate_per_s"]
    assert ("default", None) == limits["attempts"][1:]
    assert ("cooling", "429") == (cooling.lane.state, cooling.lane.answers[0].what)
    assert (True, None, None) == (cooling.known, cooling.pause, cooling.worker)
    assert "paused" == paused.lane.state
    assert isinstance(paused.pause, PauseInForce)
    assert ("*.example", False) == (paused.pause.name, paused.pause.in_file)
    assert (paused.pause.since_ms or 0) >= now_ms
    assert (False, "idle") == (unknown.known, unknown.lane.state)
