"""The wait of a call for Redis, its messages, and the effect of a suspension."""

import pytest
from redis.exceptions import AuthenticationError, RedisError
from redis.exceptions import ConnectionError as RedisConnectionError

from fetchfleet.jobs.errors import FleetUnreachableError
from fetchfleet.jobs.patience import MAX_CALL_S, MAX_PAUSE_S, Outage, Patience

AWAY = RedisConnectionError("Connection refused.")


class Timeline:
    """A clock that moves with each sleep and each call; a call takes call_s."""

    def __init__(self, *, call_s: float = 0.0) -> None:
        self.now_s = 100.0
        self.calls = 0
        self.warnings: list[str] = []
        self._call_s = call_s
        self.suspended_at: dict[int, float] = {}

    async def sleep(self, pause_s: float) -> None:
        """Let the pause pass, and a suspension with it."""
        self.now_s += pause_s + self.suspended_at.pop(self.calls, 0.0)

    def patience(self, limit_s: float) -> Patience:
        """Return a patience on this clock."""
        return Patience(limit_s, self.warnings.append, now_s=lambda: self.now_s, sleep=self.sleep)

    async def fails(self, *errors: RedisError) -> str:
        """Raise the errors, one each call and the last forever, or succeed after `None`."""
        self.now_s += self._call_s
        error = errors[min(self.calls, len(errors) - 1)]
        self.calls += 1
        raise error

    async def fails_until(self, back_s: float) -> str:
        """Fail until that time."""
        self.calls += 1
        if self.now_s < back_s:
            raise AWAY
        return "reply"


async def test_a_call_is_repeated_until_redis_answers() -> None:
    """Two lines are logged: Redis is away, Redis is back."""
    time = Timeline()
    assert "reply" == await time.patience(60).repeat(AWAY, time.fails_until, 130.0)
    assert 130 <= time.now_s <= 130 + MAX_PAUSE_S
    away, back = time.warnings
    assert "Redis does not answer: Connection refused; waiting for it for up to 60 s" == away
    assert back.startswith("Redis answers again after 3")


async def test_the_patience_ends_with_the_last_error() -> None:
    """It ends at the limit, with an attempt at the limit."""
    time = Timeline()
    with pytest.raises(FleetUnreachableError, match="not answered for 5 s: Connection refused") as raised:
        await time.patience(5).repeat(AWAY, time.fails, AWAY)
    assert 105.0 == pytest.approx(time.now_s)
    assert AWAY is raised.value.__cause__
    assert 1 == len(time.warnings)
    assert isinstance(raised.value, RedisError)


async def test_without_patience_the_first_error_is_the_last() -> None:
    """No call is repeated and no line is logged."""
    time = Timeline()
    with pytest.raises(FleetUnreachableError):
        await time.patience(0).repeat(AWAY, time.fails, AWAY)
    assert (0, []) == (time.calls, time.warnings)


@pytest.mark.parametrize("first", [True, False])
async def test_a_lasting_error_ends_the_patience_at_once(*, first: bool) -> None:
    """It is raised unchanged, at the first or a later call."""
    time, refused = Timeline(), AuthenticationError("invalid password")
    with pytest.raises(AuthenticationError):
        await time.patience(60).repeat(refused if first else AWAY, time.fails, refused)
    assert (0 if first else 1) == time.calls
    assert (0 if first else 1) == len(time.warnings)


async def test_hanging_attempts_count() -> None:
    """A frozen Redis costs a timeout each time."""
    time = Timeline(call_s=10.0)
    with pytest.raises(FleetUnreachableError):
        await time.patience(60).repeat(AWAY, time.fails, AWAY)
    assert 60 <= time.now_s - 100 <= 72


async def test_a_suspension_does_not_count() -> None:
    """After a jump of the clock the patience starts again."""
    time = Timeline()
    time.suspended_at = {3: 3600.0}
    with pytest.raises(FleetUnreachableError):
        await time.patience(5).repeat(AWAY, time.fails, AWAY)
    assert 3600 + 5 <= time.now_s - 100 <= 3600 + 10


def test_an_attempt_of_an_hour_counts_as_a_suspension() -> None:
    """An attempt has timeouts, so a longer one means that the process did not run."""
    outage = Outage(60)
    outage.add(MAX_CALL_S, MAX_CALL_S)
    assert MAX_CALL_S == outage.waited_s
    outage.add(3600, MAX_CALL_S)
    assert 0 == outage.waited_s


async def test_concurrent_calls_log_an_outage_once() -> None:
    """The log has one line at its start and one at its end, for any number of calls."""
    time = Timeline()
    patience = time.patience(60)

    async def other_call() -> str:
        if time.now_s < 110:
            return await patience.repeat(AWAY, time.fails_until, 120.0)
        return "reply"

    assert "reply" == await patience.repeat(AWAY, other_call)
    assert 2 == len(time.warnings)


async def test_the_next_outage_is_logged_again() -> None:
    """It is logged even if the first outage outlasted the patience."""
    time = Timeline()
    patience = time.patience(5)
    for _ in range(2):
        with pytest.raises(FleetUnreachableError):
            await patience.repeat(AWAY, time.fails, AWAY)
    await patience.repeat(AWAY, time.fails_until, 0.0)
    assert 4 == len(time.warnings)
