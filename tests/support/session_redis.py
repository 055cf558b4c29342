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
    """The requested Redis cannot be used; the message says why and what to do."""


class Choice(NamedTuple):
    """The Redis of a test run, and the reason. url: of an existing one."""

    kind: Literal["container", "embedded", "url"]
    why: str
    url: str = ""

    def __str__(self) -> str:
        what = {
            "container": f"a container of {containers.IMAGE}",
            "embedded": "embedded",
            "url": redact.url(self.url),
        }
        return f"{what[self.kind]}, because {self.why}"


def choose(asked: str, docker_trouble: Callable[[], str | None]) -> Choice:
    """Choose by the value of FETCHFLEET_TEST_REDIS; raise ChoiceError if it cannot be used."""
    if asked.startswith(SCHEMES):
        return Choice("url", f"{VARIABLE} names it", asked)
    if asked == "embedded":
        return Choice("embedded", f"{VARIABLE} asks for it")
    if asked not in {"", "container"}:  # not quoted: it may be a mistyped URL with a password
        raise ChoiceError(f"{VARIABLE} must be container, embedded or a URL: {', '.join(SCHEMES)}")
    trouble = docker_trouble()
    if asked and trouble:
        raise ChoiceError(f"{VARIABLE}=container, but no container can be run: {trouble}")
    if asked:
        return Choice("container", f"{VARIABLE} asks for it")
    if trouble:
        return Choice("embedded", f"no container can be run: {trouble}")
    return Choice("container", "a Docker engine answers and can run it")


def refuse_used_redis(choice: Choice) -> None:
    """Raise ChoiceError if the Redis of a URL is not empty or not reachable: the tests empty it."""
    if choice.kind != "url":
        return
    try:
        with redis.Redis.from_url(choice.url) as client:
            filled = sorted(client.info("keyspace"))
    except (redis.RedisError, OSError, ValueError) as error:
        raise ChoiceError(f"{VARIABLE}: cannot ask that Redis: {redact.text(error)}") from None
    if filled:
        raise ChoiceError(
            f"{VARIABLE}: that Redis holds keys (in {', '.join(filled)}), and the tests empty it;"
            " name an empty one"
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
