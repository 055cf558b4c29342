"""What a worker says of trouble with Redis."""

import pytest
from redis.exceptions import AuthenticationError, NoPermissionError
from redis.exceptions import ConnectionError as RedisConnectionError
from structlog.testing import capture_logs

from fetchfleet.worker.observability.log import get_logger
from fetchfleet.worker.redis_support.health import REFUSAL_EVERY_S, RedisErrorReporter


def wrapped(error: Exception) -> Exception:
    """The error as it comes from a connection that could not be made."""
    outer = RedisConnectionError(str(error))
    outer.__cause__ = error
    return outer


@pytest.mark.parametrize(
    "error",
    [NoPermissionError("no zadd"), AuthenticationError("invalid"), wrapped(AuthenticationError("invalid"))],
    ids=["permission", "password", "password of a new connection"],
)
def test_a_refusal_is_an_error_told_once_a_minute(error: Exception) -> None:
    """However often it is met, and again while it lasts."""
    now_s = 0.0
    with capture_logs() as lines:
        trouble = RedisErrorReporter(get_logger(), lambda: now_s)
        for now_s in (0.0, 1.0, REFUSAL_EVERY_S - 1, REFUSAL_EVERY_S, REFUSAL_EVERY_S + 1):  # noqa: B007 the clock
            trouble(error)

    assert [("redis.refusal", "error")] * 2 == [(line["event"], line["log_level"]) for line in lines]


def test_refusals_of_different_things_are_each_told() -> None:
    """Each command that must be allowed is named."""
    with capture_logs() as lines:
        trouble = RedisErrorReporter(get_logger(), lambda: 0.0)
        for said in ("no zadd", "no evalsha", "no zadd"):
            trouble(NoPermissionError(said))

    assert ["NoPermissionError('no zadd')", "NoPermissionError('no evalsha')"] == [
        line["error"] for line in lines
    ]


def test_what_passes_is_a_warning_each_time() -> None:
    """A Redis that is away may be away for many reasons, one after the other."""
    with capture_logs() as lines:
        trouble = RedisErrorReporter(get_logger(), lambda: 0.0)
        trouble(RedisConnectionError("away"))
        trouble(RedisConnectionError("away"))

    assert [("redis.trouble", "warning")] * 2 == [(line["event"], line["log_level"]) for line in lines]
