"""The log lines of a worker about failures of Redis."""

import pytest
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from fetchfleet.worker.observability.log import get_logger
from fetchfleet.worker.observability.repeats import EVERY_S, RECOVERY_S
from fetchfleet.worker.redis_support.health import RedisErrorReporter, concerns_all
from tests.support.log_lines import capture_logs


def wrapped(error: Exception) -> Exception:
    """Return the error of a connection that could not be opened."""
    outer = RedisConnectionError(str(error))
    outer.__cause__ = error
    return outer


@pytest.mark.parametrize(
    "error",
    [NoPermissionError("no zadd"), AuthenticationError("invalid"), wrapped(AuthenticationError("invalid"))],
    ids=["permission", "password", "password of a new connection"],
)
def test_a_denial_is_logged_as_an_error_once_a_minute(error: Exception) -> None:
    """It holds for any number of occurrences, while it lasts."""
    now_s = 0.0
    with capture_logs() as lines:
        trouble = RedisErrorReporter(get_logger(), lambda: now_s)
        for now_s in (0.0, 1.0, EVERY_S - 1, EVERY_S, EVERY_S + 1):  # noqa: B007 the clock
            trouble(error)

    assert [("redis.refusal", "error")] * 2 == [(line["event"], line["log_level"]) for line in lines]


def test_denials_of_different_commands_are_logged_separately() -> None:
    """Each denied command is named."""
    with capture_logs() as lines:
        trouble = RedisErrorReporter(get_logger(), lambda: 0.0)
        for message in ("no zadd", "no evalsha", "no zadd"):
            trouble(NoPermissionError(message))

    assert ["NoPermissionError('no zadd')", "NoPermissionError('no evalsha')"] == [
        line["error"] for line in lines
    ]


AWAY = (
    RedisConnectionError("Connection closed by server."),
    RedisConnectionError("Error 111 connecting to 127.0.0.1:6379. Connection refused."),
    ConnectionResetError(104, "Connection reset by peer"),
    RedisTimeoutError("Timeout reading from 127.0.0.1:6379"),
    TimeoutError("Redis took 2.3 s to answer"),
    wrapped(OSError(113, "No route to host")),
)


def test_an_outage_is_logged_once_a_minute_with_a_count_and_at_its_end() -> None:
    """It holds for any number of loops and kinds of errors."""
    now_s = 0.0
    with capture_logs() as lines:
        trouble = RedisErrorReporter(get_logger(), lambda: now_s)
        for tick in range(130 * 10):
            now_s = tick / 10
            trouble(AWAY[tick % len(AWAY)])
        for now_s in (130.0, 132.0, 130.0 + RECOVERY_S, 140.0):  # noqa: B007 the clock
            trouble.answered()

    assert ["redis.trouble"] * 3 + ["redis.back"] == [line["event"] for line in lines]
    assert [None, 599, 599] == [line.get("suppressed") for line in lines[:3]]
    assert (130.0, 1300, "info") == (lines[3]["lasted_s"], lines[3]["failed"], lines[3]["log_level"])


def test_another_kind_of_error_is_logged_at_once() -> None:
    """A Redis that comes back may load its data, have no replica, or be full."""
    errors = (
        RedisConnectionError("away"),
        BusyLoadingError("Redis is loading the dataset in memory"),
        ResponseError("MISCONF Redis is configured to save RDB snapshots"),
        ResponseError("NOREPLICAS Not enough good replicas to write."),
        OutOfMemoryError("command not allowed when used memory > 'maxmemory'."),
        ReadOnlyError("You can't write against a read only replica."),
        RuntimeError("a bug"),
        NoPermissionError("no zadd"),
    )
    with capture_logs() as lines:
        trouble = RedisErrorReporter(get_logger(), lambda: 0.0)
        for error in errors * 3:
            trouble(error)

    assert [repr(error) for error in errors] == [line["error"] for line in lines]


def test_a_second_outage_is_logged_at_once() -> None:
    """Two outages in one minute are two."""
    now_s = 0.0
    with capture_logs() as lines:
        trouble = RedisErrorReporter(get_logger(), lambda: now_s)
        for now_s in (0.0, 20.0):
            trouble(RedisConnectionError("away"))
            for wait_s in range(15):
                now_s += wait_s  # noqa: PLW2901 the clock
                trouble.answered()

    assert ["redis.trouble", "redis.back"] * 2 == [line["event"] for line in lines]


def test_a_reply_without_an_outage_logs_nothing() -> None:
    """Each heartbeat has one."""
    with capture_logs() as lines:
        RedisErrorReporter(get_logger(), lambda: 0.0).answered()

    assert [] == lines


@pytest.mark.parametrize(
    ("error", "all_fail"),
    [
        (RedisConnectionError("reset"), True),
        (OutOfMemoryError("command not allowed"), True),
        (ReadOnlyError("You can't write against a read only replica."), True),
        (ResponseError("MISCONF Redis is configured to save"), True),
        (ResponseError("BUSY Redis is busy running a script"), True),
        (OSError("no route"), True),
        (ResponseError("value is not a valid float script: 1, on @user_script:9."), False),
        (ResponseError("WRONGTYPE Operation against a key"), False),
        (OverflowError("cannot convert float infinity to integer"), False),
        (None, False),
    ],
)
def test_a_single_failed_call_does_not_delay_the_recovery_of_lanes(
    error: BaseException | None,
    all_fail: bool,  # noqa: FBT001 the expected answer
) -> None:
    """Redis answers, and the error of one lane or job does not concern the others."""
    assert concerns_all(error) is all_fail
