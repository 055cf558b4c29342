"""The time at which a notification becomes visible, for any clock of the enqueueing machine."""

import time

import pytest
from redis.asyncio import Redis

from fetchfleet.jobs import keys
from fetchfleet.jobs.notifications import LaneNotification
from fetchfleet.jobs.notify import arq_client, notify_lanes
from fetchfleet.jobs.redis_connection import redis_now_ms

OFF_S = 300.0
LANE = "a.example"
MEANWHILE_MS = 60_000
"""Longer than the time between two readings of a clock in these tests."""


async def due_by_its_score(redis: Redis, due_in_ms: int) -> float:
    """Return in how many ms, by Redis's clock, a worker with a correct clock sees the notification."""
    now_ms = await redis_now_ms(redis)
    await notify_lanes(arq_client(redis.connection_pool), [LaneNotification(LANE, 1, due_in_ms)])
    score = await redis.zscore(keys.QUEUE, keys.notification_job_id(LANE, 1))
    assert score is not None
    return float(score) - now_ms


@pytest.fixture(params=[OFF_S, 0.0, -OFF_S], ids=["ahead", "right", "behind"])
def off_s(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> float:
    """Return how far this machine's clock is ahead of Redis's."""
    right, by_s = time.time, float(request.param)
    monkeypatch.setattr(time, "time", lambda: right() + by_s)
    return by_s


async def test_a_due_lane_is_visible_to_workers_with_a_slow_clock(redis: Redis, off_s: float) -> None:
    """Five minutes slow, with a producer's clock five minutes fast."""
    assert await due_by_its_score(redis, 0) <= -(OFF_S - 1) * 1000


async def test_a_later_lane_is_visible_in_time(redis: Redis, off_s: float) -> None:
    """The score is never later than due. With a slow clock it is too early, which take.lua detects."""
    due_in_ms = 3_600_000
    found = await due_by_its_score(redis, due_in_ms)

    late_ms = found - due_in_ms
    assert min(0, off_s) * 1000 - MEANWHILE_MS <= late_ms <= MEANWHILE_MS
