"""Redis's clock, continued by the local monotonic clock."""

import pytest

from fetchfleet.worker.util import clock
from fetchfleet.worker.util.clock import RedisClock


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Return a local monotonic clock, set by hand."""
    now = {"s": 100.0}
    monkeypatch.setattr(clock, "mono_s", lambda: now["s"])
    return now


def test_time_advances_between_readings(at: dict[str, float]) -> None:
    """The clock adds the time that has passed locally."""
    redis_clock = RedisClock()
    redis_clock.sync(5_000_000)
    at["s"] += 1.5

    assert 5_001_500 == redis_clock.now_ms()


def test_a_late_reply_does_not_set_the_clock_back(at: dict[str, float]) -> None:
    """No cool-down ends early because of a slow reply."""
    redis_clock = RedisClock()
    redis_clock.sync(5_000_000)
    for _ in range(900):  # a busy worker reads the clock a hundred times a second
        at["s"] += 0.01
        redis_clock.sync(5_000_000 + int((at["s"] - 100.0) * 1000) - 700)

    assert 5_009_000 - redis_clock.now_ms() <= 1


def test_a_prompter_reply_is_used_at_once(at: dict[str, float]) -> None:
    """The earliest reading is the most exact."""
    redis_clock = RedisClock()
    redis_clock.sync(5_000_000)
    redis_clock.sync(5_000_200)

    assert 5_000_200 == redis_clock.now_ms()


@pytest.mark.parametrize("step_ms", [-3_600_000, 3_600_000])
def test_a_clock_that_was_set_is_followed(at: dict[str, float], step_ms: int) -> None:
    """An operator may set the clock of the Redis machine, in either direction."""
    redis_clock = RedisClock()
    redis_clock.sync(50_000_000)
    redis_clock.sync(50_000_000 + step_ms)

    assert 50_000_000 + step_ms == redis_clock.now_ms()


def test_drifting_clocks_are_aligned_again(at: dict[str, float]) -> None:
    """The readings of half a minute correct the difference to a slower clock of Redis."""
    redis_clock = RedisClock()
    redis_clock.sync(5_000_000)
    for second in range(1, 31):
        at["s"] += 1.0
        redis_clock.sync(4_999_950 + second * 1000)

    assert abs(5_029_950 - redis_clock.now_ms()) <= 1
