"""Which Redis a test run uses, as FETCHFLEET_TEST_REDIS and the machine would have it."""

import pytest

from tests.support.session_redis import Choice, ChoiceError, choose, refuse_to_share

NO_ENGINE = "nobody answers at /var/run/docker.sock"


def no_trouble() -> None:
    """A machine that can run containers."""


def trouble() -> str:
    """A machine that cannot."""
    return NO_ENGINE


def never_asked() -> str:
    """A machine whose engine must be left alone."""
    raise AssertionError("Docker was asked although nobody wants it")


def test_unset_a_container_is_preferred_and_without_an_engine_it_is_embedded() -> None:
    """The header says which, and why it is not the other."""
    assert "container" == choose("", no_trouble).kind
    assert "embedded" == choose("", trouble).kind
    assert f"embedded, because no container can be run: {NO_ENGINE}" == str(choose("", trouble))


def test_what_is_asked_for_is_what_is_used() -> None:
    """No engine is asked when the answer would change nothing."""
    assert "container" == choose("container", no_trouble).kind
    assert "embedded" == choose("embedded", never_asked).kind


@pytest.mark.parametrize("url", ["redis://h:1/0", "rediss://h", "unix:///run/redis.sock"])
def test_a_url_is_taken_as_it_is(url: str) -> None:
    """Each scheme that redis-py knows."""
    assert Choice("url", "FETCHFLEET_TEST_REDIS names it", url) == choose(url, never_asked)


def test_a_container_that_cannot_be_run_is_an_error_when_asked_for() -> None:
    """Not a skip: whoever asks for it wants to know."""
    with pytest.raises(ChoiceError, match=NO_ENGINE):
        choose("container", trouble)


@pytest.mark.parametrize("asked", ["docker", "http://:hunter2@h", "redis:/:hunter2@h"])
def test_anything_else_is_an_error_that_quotes_nothing(asked: str) -> None:
    """It may be a mistyped URL with a password in it."""
    with pytest.raises(ChoiceError, match="must be container, embedded or a URL") as caught:
        choose(asked, never_asked)

    assert asked not in str(caught.value)


def test_a_redis_that_is_there_is_for_one_process() -> None:
    """Several would empty it under each other; whatever is made for a run is made for each."""
    with pytest.raises(ChoiceError, match="-n 0"):
        refuse_to_share(choose("redis://h:1", never_asked), 2)
    refuse_to_share(choose("redis://h:1", never_asked), 0)
    refuse_to_share(choose("embedded", never_asked), 2)


def test_the_header_shows_no_password() -> None:
    """It is in every CI log."""
    said = str(choose("rediss://user:hunter2@h:1/0", never_asked))

    assert "rediss://h:1/0, because FETCHFLEET_TEST_REDIS names it" == said
