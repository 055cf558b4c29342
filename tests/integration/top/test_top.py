"""`fetchfleet top` on a real Redis, driven by keys."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest
from redis.asyncio import Redis
from textual.pilot import Pilot

from fetchfleet import Fleet
from fetchfleet.jobs import keys
from fetchfleet.jobs.contract.safe_text import UNSAFE
from fetchfleet.jobs.redis_connection import connect
from fetchfleet.worker.policy import overrides
from fetchfleet.worker.settings import NO_POLICY
from fetchfleet.worker.top.app import TopApp
from fetchfleet.worker.top.screens import DetailScreen
from fetchfleet.worker.top.widgets import Items, Tail
from tests.support.own_redis import own_redis
from tests.support.waiting import wait_until

HOSTS = {"a.example": 3, "b.example": 1, "c.example": 2}
"""The number of fetches that wait for each host."""
NEVER_MS = 4 * 10**12
LINE = {"event": "lane.cooling", "level": "info", "timestamp": "2030-01-02T03:04:05.678901Z", "worker": "w"}


class Display:
    """A running display, and what it shows."""

    def __init__(self, pilot: Pilot[None], redis: Redis) -> None:
        self.pilot = pilot
        self.redis = redis
        self.app = pilot.app

    @property
    def rows(self) -> list[str]:
        """The rows of the table, without the titles."""
        return self.app.screen_stack[0].query_one(Items).render().plain.splitlines()[1:]

    @property
    def names(self) -> list[str]:
        """The first column of the table."""
        return [row.split()[0] for row in self.rows]

    @property
    def lines(self) -> list[str]:
        """The lines of the whole screen."""
        strips = self.app.screen._compositor.render_strips()
        return ["".join(segment.text for segment in strip) for strip in strips]

    async def shows(self, text: str) -> None:
        """Wait until the screen shows a text."""
        try:
            await wait_until(lambda: any(text in line for line in self.lines), repr(text))
        except AssertionError as error:
            raise AssertionError("\n".join([str(error), *self.lines])) from None

    async def press(self, *pressed: str) -> None:
        """Press keys."""
        await self.pilot.press(*pressed)


@asynccontextmanager
async def displaying(url: str, *, width: int = 80, height: int = 24) -> AsyncIterator[Display]:
    """Run the display on a screen of this size."""
    async with Fleet(url, redis_patience_s=0) as fleet, connect(url, 2.0) as client:
        app = TopApp(client, fleet.notify, url, NO_POLICY)
        async with app.run_test(size=(width, height), notifications=True) as pilot:
            yield Display(pilot, client)


@pytest.fixture
async def batch(fleet: Fleet) -> str:
    """The ID of a batch with fetches for HOSTS, for which no worker runs."""
    urls = [f"http://{host}/{place}" for host, count in HOSTS.items() for place in range(count)]
    return (await fleet.submit(urls)).id


@pytest.fixture
async def display(redis_url: str, batch: str) -> AsyncIterator[Display]:
    """A display that shows the hosts of the batch."""
    assert batch
    async with displaying(redis_url) as display:
        await display.shows("c.example")
        yield display


async def test_hosts_are_sorted_and_filtered_and_the_cursor_follows_its_host(
    display: Display, fleet: Fleet
) -> None:
    """By the number of waiting fetches at first. Text keys do nothing else while a filter is typed."""
    assert ["a.example", "c.example", "b.example"] == display.names
    await display.press("down")
    items = display.app.query_one(Items)
    assert "c.example" == items.key

    await fleet.submit([f"http://b.example/more/{place}" for place in range(5)])
    await wait_until(lambda: display.names[0] == "b.example", "the new order")
    assert ("c.example", 2) == (items.key, items.cursor)

    await display.press("1")
    assert ["a.example", "b.example", "c.example"] == display.names
    await display.press("1")
    assert ["c.example", "b.example", "a.example"] == display.names
    await display.press("s")
    assert "▲state" in items.render().plain

    await display.press("slash", *"b.ex", "enter")
    assert ["b.example"] == display.names
    await display.press("escape")
    assert 3 == len(display.names)


async def test_the_head_says_what_is_wrong(display: Display, redis: Redis) -> None:
    """The totals are those of the status."""
    await display.shows("No worker is running")
    await display.shows("6 fetches to do")
    for host in ("a.example", "b.example"):  # as a worker writes it
        await redis.hset(keys.lane(host), mapping={"shut_until_ms": NEVER_MS, "why": "paused"})  # type: ignore[misc]

    await display.shows("2 hosts are paused  a.example, b.example")
    await display.shows("1 waiting   2 paused")


async def test_a_host_is_paused_after_a_question_and_resumed(display: Display) -> None:
    """Without a yes nothing happens. The keys are the same on the page of the host."""
    await display.press("p")
    await display.shows("Pause a.example?")
    await display.press("n", "p", "y")
    await display.shows("a.example is paused")
    assert {"a.example": {"paused": True}} == (await overrides.read(display.redis)).tables

    await display.press("enter")
    await display.shows("resume with: fetchfleet resume a.example")
    await display.press("p")
    await display.shows("a.example is resumed")
    assert {} == (await overrides.read(display.redis)).tables
    await display.press("escape")
    await display.shows("c.example")


async def test_a_host_that_a_pattern_pauses_names_the_command_that_resumes_it(
    display: Display, fleet: Fleet
) -> None:
    """The other hosts of the pattern are not resumed by accident."""
    await overrides.pause(display.redis, fleet.notify, "*.example", NO_POLICY)
    await display.press("p")

    await display.shows("*.example")
    assert ["*.example"] == [*(await overrides.read(display.redis)).tables]


async def test_a_batch_opens_with_its_progress_and_failures(display: Display, batch: str) -> None:
    """Escape returns to the batches."""
    await display.press("b")
    await wait_until(lambda: display.names == [batch], "the batches")
    await display.press("enter")
    await display.shows("0 of 6 fetches done")
    await display.shows("failures by reason")
    await display.press("escape", "h")

    assert not isinstance(display.app.screen, DetailScreen)
    assert 3 == len(display.names)


async def test_workers_are_listed_with_their_state(redis: Redis, display: Display) -> None:
    """A drained one is named."""
    now_ms = int((await redis.time())[0]) * 1000
    await redis.zadd(keys.WORKERS, {"web-1": now_ms})
    report = json.dumps({"draining": True, "finished_per_s": 12.5, "lanes": {"a.example": {"in_flight": 2}}})
    await redis.set(keys.worker("web-1"), report, px=keys.WORKER_TTL_MS)
    await display.press("w")

    await wait_until(lambda: any("web-1" in row for row in display.rows), "the worker")
    assert ["web-1", "drained", "1", "2", "12.5"] == display.rows[0].split()[:5]


async def test_events_arrive_and_hostile_ones_do_not(display: Display) -> None:
    """Fetches that succeeded are left out. The key e shows more events, then none."""
    await wait_until(partial(display.redis.exists, keys.WATCHED), "the display to watch")
    hostile = json.dumps({**LINE, "event": "\x1b[2J"}).encode()
    line = json.dumps({**LINE, "lane": "a.example", "note": "\x1b[2J"}).encode()
    stored, failed = (
        json.dumps({**LINE, "event": "fetch.finished", "outcome": outcome}).encode()
        for outcome in ("stored", "failed")
    )
    lines = [b"\x1b[2J", hostile, stored, failed, line]
    await display.redis.publish(keys.EVENTS, b"\n".join(lines))

    await display.shows("lane.cooling         lane=a.example")
    assert any("outcome=failed" in shown for shown in display.lines)
    assert not any("outcome=stored" in shown for shown in display.lines)
    tail = display.app.query_one(Tail)
    small = tail.size.height
    await display.press("e")
    assert tail.size.height > small
    await display.press("e")
    assert not tail.display
    await display.press("e")
    assert 1 == tail.render().plain.count("lane.cooling")


@pytest.mark.parametrize("width", [60, 200])
async def test_a_foreign_lane_cannot_control_the_terminal(
    redis: Redis, redis_url: str, batch: str, width: int
) -> None:
    """Names from Redis are escaped. No line is wider than the screen."""
    assert batch
    hostile = "x\x1b[2J\u202e" + "long" * 40
    await redis.zadd(keys.ATTENTION, {hostile: 1})
    async with displaying(redis_url, width=width) as display:
        await display.shows("x\\u001b[2J")
        lines = display.lines
    await redis.zrem(keys.ATTENTION, hostile)

    assert not any(UNSAFE.search(line) for line in lines)
    assert {width} == {len(line) for line in lines if line.isascii()}


async def test_an_outage_is_shown_and_survived() -> None:
    """The last picture stays visible."""
    with own_redis() as server:
        await wait_until(server.responds, "Redis")
        async with displaying(server.url, width=120) as display:
            async with Fleet(server.url) as fleet:
                await fleet.submit(["http://a.example/"])
            await display.shows("a.example")
            await asyncio.to_thread(server.kill)
            await display.shows("Redis does not answer")
            assert ["a.example"] == display.names
            await display.press("enter")
            await display.shows("Redis does not answer")
            await display.press("escape", "p")

            server.start()
            await wait_until(lambda: not any("does not answer" in line for line in display.lines), "Redis")
            assert ["a.example"] == display.names
