"""Choose the Redis of a test run: in a container, embedded, or an existing one."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple

import redis

from fetchfleet.worker.observability import redact
from tests.support import containers
from tests.support.redis import flush, serve_redis

VARIABLE = "FETCHFLEET_TEST_REDIS"
SCHEMES = ("redis://", "rediss://", "unix://")


class ChoiceError(Exception):
    """The requested Redis cannot be used; the message gives the reason and the remedy."""


class Choice(NamedTuple):
    """The Redis of a test run."""

    kind: Literal["container", "embedded", "url"]
    reason: str
    url: str = ""
    """The URL of an existing Redis."""

    def __str__(self) -> str:
        names = {
            "container": f"a container of {containers.IMAGE}",
            "embedded": "embedded",
            "url": redact.url(self.url),
        }
        return f"{names[self.kind]}, because {self.reason}"


def choose(value: str, container_error: Callable[[], str | None]) -> Choice:
    """Choose by the value of FETCHFLEET_TEST_REDIS; raise ChoiceError if it cannot be used.

    container_error: returns the reason no container can run, None if one can.
    """
    if value.startswith(SCHEMES):
        return Choice("url", f"{VARIABLE} names it", value)
    if value == "embedded":
        return Choice("embedded", f"{VARIABLE} requests it")
    if value not in {"", "container"}:  # not quoted: it may be a mistyped URL with a password
        raise ChoiceError(f"{VARIABLE} must be container, embedded or a URL: {', '.join(SCHEMES)}")
    error = container_error()
    if value and error:
        raise ChoiceError(f"{VARIABLE}=container, but no container can run: {error}")
    if value:
        return Choice("container", f"{VARIABLE} requests it")
    if error:
        return Choice("embedded", f"no container can run: {error}")
    return Choice("container", "a Docker engine can run it")


def refuse_used_redis(choice: Choice) -> None:
    """Raise ChoiceError if the Redis of a URL is unreachable, or holds keys that the tests would delete."""
    if choice.kind != "url":
        return
    try:
        with redis.Redis.from_url(choice.url) as client:
            filled = sorted(client.info("keyspace"))
    except (redis.RedisError, OSError, ValueError) as error:
        raise ChoiceError(f"{VARIABLE}: that Redis is unusable: {redact.text(error)}") from None
    if filled:
        raise ChoiceError(
            f"{VARIABLE}: that Redis holds keys (in {', '.join(filled)}), which the tests would delete;"
            " name an empty Redis"
        )


def refuse_to_share(choice: Choice, processes: int) -> None:
    """Raise ChoiceError if several processes would empty the same Redis."""
    if choice.kind == "url" and processes:
        raise ChoiceError(f"{VARIABLE}: {processes} processes cannot share one Redis; run pytest with -n 0")


@contextmanager
def serve(choice: Choice) -> Iterator[str]:
    """Yield the URL of the chosen Redis; empty or stop it at the end of the block."""
    if choice.kind == "container":
        with containers.redis_in_container() as url:
            yield url
    elif choice.kind == "embedded":
        with serve_redis() as url:
            yield url
    else:
        yield choice.url
        flush(choice.url)
