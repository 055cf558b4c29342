"""Fixtures of all tests, and a check that a test leaks no resources."""

import inspect
import io
import logging
import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import structlog
from hypothesis import settings
from redis.asyncio import Redis

from fetchfleet import Fleet
from fetchfleet.jobs.redis_connection import connect
from fetchfleet.worker.observability import log
from tests.support import containers, fork_server, leaks, log_lines, object_store, session_redis
from tests.support.redis import flush, nothing_stranded
from tests.support.waiting import wait_until

# No deadline: an example of Hypothesis may take a long time on a slow machine.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")


CHOICE = pytest.StashKey[session_redis.Choice]()


def pytest_configure(config: pytest.Config) -> None:
    """Choose the Redis of the run before the collection; abort the run if it cannot be used."""
    _use_own_temporary_folder(config)
    # Loading the system's CAs takes 35 ms in each worker process. Tests that trust a CA name its file.
    os.environ["SSL_CERT_FILE"] = str(Path(__file__).parent / "support" / "unused_ca.pem")
    try:
        requested = os.environ.get(session_redis.VARIABLE, "")
        config.stash[CHOICE] = choice = session_redis.choose(requested, containers.container_error)
        session_redis.refuse_used_redis(choice)
        session_redis.refuse_to_share(choice, config.getoption("numprocesses", None) or 0)
    except session_redis.ChoiceError as error:
        raise pytest.UsageError(str(error)) from None


def _use_own_temporary_folder(config: pytest.Config) -> None:
    """Create temporary files in a folder of this run. The location of tmp_path does not change."""
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())
    folder = tempfile.TemporaryDirectory(prefix="ff-tests-")
    config.add_cleanup(folder.cleanup)
    os.environ["TMPDIR"] = tempfile.tempdir = folder.name


def pytest_report_header(config: pytest.Config) -> str:
    """Return the Redis of the run, and the reason for the choice."""
    return f"redis: {config.stash[CHOICE]}"


@pytest.fixture(scope="session")
def redis_server(pytestconfig: pytest.Config) -> Iterator[str]:
    """The URL of the Redis of the session. Tests use `redis_url`, which empties it first."""
    with session_redis.serve(pytestconfig.stash[CHOICE]) as url:
        yield url


@pytest.fixture
def redis_url(redis_server: str) -> Iterator[str]:
    """The URL of an empty Redis. The test may leave only keys that jobs/keys.py allows."""
    flush(redis_server)
    with nothing_stranded(redis_server):
        yield redis_server


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    """A client of the Redis at `redis_url`."""
    client = connect(redis_url)
    yield client
    await client.aclose()
    await client.connection_pool.aclose()


@pytest.fixture
async def fleet(redis_url: str) -> AsyncIterator[Fleet]:
    """A producer's client of the Redis at `redis_url`."""
    async with Fleet(redis_url) as client:
        yield client


@pytest.fixture(autouse=True)
def registered_log_lines(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test with a log line that does not fit the registry of events.

    Checks the lines of the test process, and the log files of workers below `tmp_path`.
    """
    folder = request.getfixturevalue("tmp_path") if "tmp_path" in request.fixturenames else None
    with log_lines.capture_logs():
        yield
    if folder is not None:
        log_lines.assert_logs_registered(folder)


@pytest.fixture
def stream(any_stream: io.StringIO) -> Iterator[io.StringIO]:
    """The log output of the test, configured as in a worker. Its lines must fit the registry of events."""
    yield any_stream
    log_lines.assert_registered(any_stream.getvalue().splitlines())


@pytest.fixture
def any_stream() -> Iterator[io.StringIO]:
    """The log output of the test, configured as in a worker. Its lines may have any event and fields."""
    before, root = structlog.get_config(), logging.getLogger()
    handlers, level = root.handlers, root.level
    written = io.StringIO()
    log.configure(written, worker="one")
    yield written
    structlog.configure(**before)
    root.handlers = handlers
    root.setLevel(level)


@pytest.fixture(scope="session")
def object_server() -> Iterator[object_store.ObjectServer]:
    """An S3 server for the session. Tests use `bucket`."""
    with object_store.serving() as server:
        yield server


@pytest.fixture
def bucket(
    object_server: object_store.ObjectServer, monkeypatch: pytest.MonkeyPatch
) -> Iterator[object_store.Bucket]:
    """An empty bucket of the server, which the environment names. The rules of the test end with it."""
    for name, value in object_server.environment.items():
        monkeypatch.setenv(name, value)
    yield object_server.bucket()
    object_server.release()


@pytest.fixture(scope="session")
def forks() -> Iterator[None]:
    """Start fetchfleet processes as forks of one process (tests/support/fork_server.py)."""
    with fork_server.serving():
        yield


@pytest.fixture(autouse=True)
def no_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaks a process, a task, a socket or a file. Unit tests are not checked."""
    if "unit" in request.path.parts:
        yield
        return
    if not {"e2e", "chaos"}.isdisjoint(request.path.parts):
        request.getfixturevalue("forks")
    if inspect.iscoroutinefunction(request.function):
        request.getfixturevalue("no_leaks_in_loop")
    before, open_before = leaks.processes(), leaks.OpenResources()
    yield
    leaked = leaks.children(apart_from=before)
    assert not leaked, f"leaked child processes: {leaked}"
    if not inspect.iscoroutinefunction(request.function):
        assert_all_closed(open_before)


@pytest.fixture
async def no_leaks_in_loop() -> AsyncIterator[None]:
    """Fail a test that leaks an asyncio task, or sockets that the event loop does not close."""
    before = leaks.OpenResources()
    yield
    leaked = leaks.tasks()
    assert not leaked, f"leaked tasks: {leaked}"
    with suppress(AssertionError):  # a transport closes in a later iteration of the loop
        await wait_until(lambda: not before.since(), "everything to be closed", timeout_s=2)
    assert_all_closed(before)


def assert_all_closed(before: leaks.OpenResources) -> None:
    """Check that sockets and files opened since the snapshot are closed, and temporary files removed."""
    leaked = before.since()
    assert not leaked, f"leaked sockets and files: {leaked}"
