"""The log lines of a worker reach a watcher, and are not published without one."""

import asyncio
import io
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from functools import partial
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from fetchfleet.jobs import keys
from fetchfleet.jobs.redis_connection import connect
from fetchfleet.worker.inspect.event_tail import events
from fetchfleet.worker.observability import log
from fetchfleet.worker.redis_support import event_tap
from fetchfleet.worker.redis_support.event_tap import EventTap
from fetchfleet.worker.util import aio
from tests.component.conftest import HOST
from tests.support import guarded_redis
from tests.support.waiting import wait_until
from tools.one_worker import OneWorker
from tools.origin.server import Origin

WHY_NOT = guarded_redis.acl_skip_reason()


class Health:
    """Records the Redis errors that are reported to it."""

    def __init__(self) -> None:
        self.errors: list[object] = []

    def report(self, error: object) -> None:
        """Record an error."""
        self.errors.append(error)


@pytest.fixture
def lines(any_stream: io.StringIO) -> list[Any]:
    """Return no captured lines: the log of these tests is JSON, as in a worker."""
    assert not any_stream.getvalue()
    return []


@pytest.fixture
async def tap(redis: Redis, any_stream: io.StringIO) -> AsyncIterator[EventTap]:
    """A running tap that publishes at once."""
    assert not any_stream.getvalue()
    tap = EventTap(redis, "web-1", Health(), log.get_logger(), every_s=0.0)  # type: ignore[arg-type]
    task = asyncio.create_task(tap.run())
    yield tap
    await aio.end(task)
    assert [] == log.TAPS


async def lines_until(redis: Redis, event: str) -> list[dict[str, Any]]:
    """Watch the fleet until a line with this event; return the fields of all lines."""
    found = []
    async with aclosing(events(redis)) as tail:
        async for line in tail:
            found.append(json.loads(line))
            if found[-1]["event"] == event:
                break
    return found


async def published(redis: Redis) -> int:
    """Return the number of messages that were published since the server started."""
    return int((await redis.info("commandstats")).get("cmdstat_publish", {}).get("calls", 0))


async def test_a_watcher_sees_the_lines_of_a_worker(
    worker: OneWorker, redis: Redis, origin: Origin, any_stream: io.StringIO
) -> None:
    """They are those of its log. When the key of the watcher has expired, the worker stops publishing."""
    watching = asyncio.create_task(lines_until(redis, "fetch.finished"))
    await wait_until(lambda: log.TAPS, "the worker to notice")
    await worker.run([origin.url("/a")])
    seen = await watching

    logged = [json.loads(line) for line in any_stream.getvalue().splitlines()]
    assert ["lane.taken", "fetch.finished"] == [line["event"] for line in seen if line.get("lane") == HOST]
    assert all(line in logged for line in seen)

    await redis.delete(keys.WATCHED)
    await wait_until(lambda: not log.TAPS, "the worker to notice")
    before = await published(redis)
    await worker.run([origin.url("/b")])
    assert before == await published(redis)


async def test_nothing_is_published_without_a_watcher(
    worker: OneWorker, redis: Redis, origin: Origin
) -> None:
    """A fetch calls no tap."""
    before = await published(redis)
    await worker.run([origin.url("/a")])

    assert [] == log.TAPS
    assert before == await published(redis)


@pytest.mark.parametrize("form", [{}, {"pretty": True}, {"schema": "otel"}, {"schema": "ecs"}], ids=str)
async def test_lines_have_their_native_form_whatever_the_log_looks_like(
    redis: Redis, tap: EventTap, form: dict[str, Any]
) -> None:
    """The log has native names, those of another schema, or is formatted for reading.

    Lines of level debug are not published.
    """
    log.configure(io.StringIO(), level="debug", **form)
    watching = asyncio.create_task(lines_until(redis, "lane.cooling"))
    await wait_until(partial(redis.exists, keys.WATCHED), "the watcher")
    tap.watch(watched=True)
    log.get_logger(worker="web-1").debug(log.Event.FETCH_EXCHANGE, lane=HOST)
    log.get_logger(worker="web-1").info(log.Event.LANE_COOLING, lane=HOST)

    [line] = await watching

    timestamp = line.pop("timestamp")
    assert {"worker": "web-1", "lane": HOST, "event": "lane.cooling", "level": "info"} == line
    assert timestamp.endswith("Z")


async def test_redis_errors_of_the_tap_are_those_of_the_worker(
    redis: Redis, tap: EventTap, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tap continues."""
    publish, failures = redis.publish, [RedisConnectionError("away")]

    async def failing_once(*call: Any) -> Any:
        if failures:
            raise failures.pop()
        return await publish(*call)

    monkeypatch.setattr(redis, "publish", failing_once)
    watching = asyncio.create_task(lines_until(redis, "lane.reset"))
    await wait_until(partial(redis.exists, keys.WATCHED), "the watcher")
    tap.watch(watched=True)
    log.get_logger().info(log.Event.LANE_COOLING)
    await wait_until(lambda: not failures, "the first message")
    log.get_logger().info(log.Event.LANE_RESET)

    assert ["lane.reset"] == [line["event"] for line in await watching]
    assert ["away"] == [str(error) for error in tap._health.errors]  # type: ignore[attr-defined]


@pytest.mark.skipif(WHY_NOT is not None, reason=WHY_NOT or "")
async def test_a_user_of_an_earlier_version_is_logged_once_and_delays_nothing(
    any_stream: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not count as a failure of Redis, which would delay the sweep."""
    monkeypatch.setattr(event_tap, "DENIED_PAUSE_S", 3600.0)
    health = Health()
    with guarded_redis.serve_guarded() as guarded:
        async with connect(guarded.admin_url) as admin, connect(guarded.url("worker")) as redis:
            await admin.execute_command("ACL", "SETUSER", "worker", "clearselectors")  # type: ignore[no-untyped-call]
            tap = EventTap(redis, "web-1", health, log.get_logger(), every_s=0.0)  # type: ignore[arg-type]
            task = asyncio.create_task(tap.run())
            tap.watch(watched=True)
            for _ in range(2):
                log.get_logger().info(log.Event.LANE_COOLING)
            await wait_until(lambda: "redis.refusal" in any_stream.getvalue(), "the denial")
            for _ in range(2):
                log.get_logger().info(log.Event.LANE_COOLING)
            await aio.end(task)

    assert [] == health.errors
    assert 1 == any_stream.getvalue().count("redis.refusal")
