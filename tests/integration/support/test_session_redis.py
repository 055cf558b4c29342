"""An existing Redis for tests: used if it is empty, refused if it is not."""

from collections.abc import Iterator

import pytest
import redis

from tests.support.redis import serve_redis
from tests.support.session_redis import Choice, ChoiceError, refuse_used_redis, serve


@pytest.fixture
def existing() -> Iterator[Choice]:
    """Start a Redis, selected by its URL."""
    with serve_redis() as url:
        yield Choice("url", "the test made it", url)


def test_a_redis_that_holds_a_key_in_any_database_is_refused(existing: Choice) -> None:
    """The tests would flush all of it."""
    with redis.Redis.from_url(existing.url, db=3) as client:
        client.set("key", "value")

        with pytest.raises(ChoiceError, match=r"holds keys \(in db3\)"):
            refuse_used_redis(existing)
        assert b"value" == client.get("key")


def test_an_empty_redis_is_used_and_left_empty(existing: Choice) -> None:
    """The next run is not refused."""
    refuse_used_redis(existing)
    with serve(existing) as url, redis.Redis.from_url(url) as client:
        client.set("key", "value")

    refuse_used_redis(existing)


def test_an_unreachable_redis_is_refused() -> None:
    """The error message is one sentence without the password."""
    with pytest.raises(ChoiceError, match="that Redis is unusable") as caught:
        refuse_used_redis(Choice("url", "", "redis://:hunter2@127.0.0.1:1/0"))

    assert "hunter2" not in str(caught.value)
