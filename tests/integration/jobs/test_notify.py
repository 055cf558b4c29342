"""When a hand-off can be seen, whatever the clock of the machine that enqueued it says."""

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
"""More than passes between two looks at a clock here."""


async def due_by_its_score(redis: Redis, due_in_ms: int) -> float:
    """In how many ms, by Redis's clock, a worker whose clock is right sees the hand-off."""
    now_ms = await redis_now_ms(redis)
    await notify_lanes(arq_client(redis.connection_pool), [LaneNotification(LANE, 1, due_in_ms)])
    score = await redis.zscore(keys.QUEUE, keys.notification_job_id(LANE, 1))
    assert score is not None
    return float(score) - now_ms


@pytest.fixture(params=[OFF_S, 0.0, -OFF_S], ids=["ahead", "right", "behind"])
def off_s(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> float:
    """How far this machine's clock is ahead of Redis's."""
    right, by_s = time.time, float(request.param)
    monkeypatch.setattr(time, "time", lambda: right() + by_s)
    return by_s


async def test_a_lane_that_is_due_is_seen_by_workers_behind(redis: Redis, off_s: float) -> None:
    """Also by one whose clock is five minutes behind, from a producer whose clock is five ahead."""
    assert await due_by_its_score(redis, 0) <= -(OFF_S - 1) * 1000


async def test_a_lane_that_is_due_later_is_seen_in_time(redis: Redis, off_s: float) -> None:
    """Never later than due; by a clock that is behind too early, which take.lua tells."""
    due_in_ms = 3_600_000
    found = await due_by_its_score(redis, due_in_ms)

    late_ms = found - due_in_ms
    assert min(0, off_s) * 1000 - MEANWHILE_MS <= late_ms <= MEANWHILE_MS
