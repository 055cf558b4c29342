"""A Redis that is there already: used when it is empty, left alone when it is not."""

from collections.abc import Iterator

import pytest
import redis

from tests.support.redis import serve_redis
from tests.support.session_redis import Choice, ChoiceError, refuse_used_redis, serve


@pytest.fixture
def somebodys() -> Iterator[Choice]:
    """A Redis of its own, chosen by its URL."""
    with serve_redis() as url:
        yield Choice("url", "a test says so", url)


def test_a_redis_that_holds_a_key_in_any_database_is_refused(somebodys: Choice) -> None:
    """The tests would flush all of it."""
    with redis.Redis.from_url(somebodys.url, db=3) as client:
        client.set("somebody", "s")

        with pytest.raises(ChoiceError, match=r"holds keys \(in db3\)"):
            refuse_used_redis(somebodys)
        assert b"s" == client.get("somebody")


def test_an_empty_one_is_used_and_empty_again_afterwards(somebodys: Choice) -> None:
    """So that the next run is not refused."""
    refuse_used_redis(somebodys)
    with serve(somebodys) as url, redis.Redis.from_url(url) as client:
        client.set("ours", "o")

    refuse_used_redis(somebodys)


def test_one_that_does_not_answer_is_refused() -> None:
    """In a sentence, without its password."""
    with pytest.raises(ChoiceError, match="cannot ask that Redis") as caught:
        refuse_used_redis(Choice("url", "", "redis://:hunter2@127.0.0.1:1/0"))

    assert "hunter2" not in str(caught.value)
