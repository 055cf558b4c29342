"""The Redis of a test run, by FETCHFLEET_TEST_REDIS and by the machine."""

import pytest

from tests.support.session_redis import Choice, ChoiceError, choose, refuse_to_share

NO_ENGINE = "no connection to /var/run/docker.sock"


def no_error() -> None:
    """Simulate a machine that can run containers."""


def error() -> str:
    """Simulate a machine that cannot run containers."""
    return NO_ENGINE


def never_called() -> str:
    """Fail if the engine of the machine is used."""
    raise AssertionError("Docker was contacted although FETCHFLEET_TEST_REDIS does not need it")


def test_unset_a_container_is_preferred_and_without_an_engine_it_is_embedded() -> None:
    """The header names the choice and the reason."""
    assert "container" == choose("", no_error).kind
    assert "embedded" == choose("", error).kind
    assert f"embedded, because no container can run: {NO_ENGINE}" == str(choose("", error))


def test_the_requested_redis_is_used() -> None:
    """The container engine is not contacted without need."""
    assert "container" == choose("container", no_error).kind
    assert "embedded" == choose("embedded", never_called).kind


@pytest.mark.parametrize("url", ["redis://h:1/0", "rediss://h", "unix:///run/redis.sock"])
def test_a_url_is_used_unchanged(url: str) -> None:
    """The URL may have each scheme that redis-py supports."""
    assert Choice("url", "FETCHFLEET_TEST_REDIS names it", url) == choose(url, never_called)


def test_an_explicitly_requested_container_that_cannot_run_is_an_error() -> None:
    """Its tests are not skipped."""
    with pytest.raises(ChoiceError, match=NO_ENGINE):
        choose("container", error)


@pytest.mark.parametrize("asked", ["docker", "http://:hunter2@h", "redis:/:hunter2@h"])
def test_any_other_value_is_an_error_that_quotes_nothing(asked: str) -> None:
    """It may be a mistyped URL with a password."""
    with pytest.raises(ChoiceError, match="must be container, embedded or a URL") as caught:
        choose(asked, never_called)

    assert asked not in str(caught.value)


def test_an_existing_redis_serves_one_process() -> None:
    """Several would delete each other's keys. A new Redis is made for each run."""
    with pytest.raises(ChoiceError, match="-n 0"):
        refuse_to_share(choose("redis://h:1", never_called), 2)
    refuse_to_share(choose("redis://h:1", never_called), 0)
    refuse_to_share(choose("embedded", never_called), 2)


def test_the_header_shows_no_password() -> None:
    """It is in every CI log."""
    header = str(choose("rediss://user:hunter2@h:1/0", never_called))

    assert "rediss://h:1/0, because FETCHFLEET_TEST_REDIS names it" == header
