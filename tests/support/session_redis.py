"""Which Redis a test run uses: a container's, an embedded one, or one that is there already."""

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
    """The Redis that was asked for cannot be used; the message says why and what to do."""


class Choice(NamedTuple):
    """The Redis of a test run, and why it is that one; `url` only for one that is there already."""

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
    """The Redis for what FETCHFLEET_TEST_REDIS says; raises ChoiceError."""
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


def refuse_what_is_not_ours(choice: Choice) -> None:
    """Raises ChoiceError when the Redis of a URL holds a key or cannot be asked: the tests empty it."""
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
    """Raises ChoiceError when several processes would empty the one Redis that a URL names."""
    if choice.kind == "url" and processes:
        raise ChoiceError(f"{VARIABLE}: {processes} processes cannot share one Redis; run pytest with -n 0")


@contextmanager
def serve(choice: Choice) -> Iterator[str]:
    """The URL of the chosen Redis for the length of a block; it ends empty or gone."""
    if choice.kind == "container":
        with containers.redis_in_container() as url:
            yield url
    elif choice.kind == "embedded":
        with serve_redis() as url:
            yield url
    else:
        yield choice.url
        flush(choice.url)
