"""What every test may ask for, and what none may leave behind."""

import inspect
import os
from collections.abc import AsyncIterator, Iterator

import pytest
from hypothesis import settings
from redis.asyncio import Redis

from jobs import Fleet
from jobs.connect import connect
from tests.support import containers, left_behind, session_redis
from tests.support.redis import flush, leftovers

# A slow machine is no reason to fail: how long an example takes is never what a test is about.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")


CHOICE = pytest.StashKey[session_redis.Choice]()


def pytest_configure(config: pytest.Config) -> None:
    """Chooses the run's Redis before anything is collected; what cannot be used ends the run here."""
    try:
        asked = os.environ.get(session_redis.VARIABLE, "")
        config.stash[CHOICE] = choice = session_redis.choose(asked, containers.docker_trouble)
        session_redis.refuse_what_is_not_ours(choice)
    except session_redis.ChoiceError as error:
        raise pytest.UsageError(str(error)) from None


def pytest_report_header(config: pytest.Config) -> str:
    """Says which Redis the run uses, and why."""
    return f"redis: {config.stash[CHOICE]}"


@pytest.fixture(scope="session")
def redis_server(pytestconfig: pytest.Config) -> Iterator[str]:
    """The URL of the session's Redis; ask for `redis_url`, which empties it."""
    with session_redis.serve(pytestconfig.stash[CHOICE]) as url:
        yield url


@pytest.fixture
def redis_url(redis_server: str) -> Iterator[str]:
    """The URL of an empty Redis, in which the test may leave only what keys.py allows."""
    flush(redis_server)
    yield redis_server
    left = leftovers(redis_server)
    assert not left, "left in Redis:\n" + "\n".join(left)


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    """A client of that Redis."""
    client = connect(redis_url)
    yield client
    await client.aclose()
    await client.connection_pool.aclose()


@pytest.fixture
async def fleet(redis_url: str) -> AsyncIterator[Fleet]:
    """A producer's door to that Redis."""
    async with Fleet(redis_url) as door:
        yield door


@pytest.fixture(autouse=True)
def nothing_left_running(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails the test that leaves a child process or a task behind; the pure ones start none."""
    if request.path.parent.name == "pure":
        yield
        return
    if inspect.iscoroutinefunction(request.function):
        request.getfixturevalue("no_task_left_running")
    before = left_behind.children()
    yield
    left = {pid: name for pid, name in left_behind.children().items() if pid not in before}
    assert not left, f"child processes left behind: {left}"


@pytest.fixture
async def no_task_left_running() -> AsyncIterator[None]:
    """Fails the test that leaves an asyncio task behind."""
    yield
    left = left_behind.tasks()
    assert not left, f"tasks left behind: {left}"
