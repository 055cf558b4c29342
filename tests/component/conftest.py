"""Fixtures of component tests: workers, two hostile origins and a nameserver."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from fetchfleet.worker.lanes.parameters import LaneParameters
from fetchfleet.worker.runtime.timings import WorkerTimings
from fetchfleet.worker.settings import ENGINES
from tests.support import engine_skips
from tests.support.log_lines import capture_logs
from tests.support.nameserver import Nameserver, nameserver
from tests.support.objects_worker import ObjectsWorker
from tools.one_worker import OneWorker
from tools.origin import behaviours as o
from tools.origin.certificates import HAS_OPENSSL
from tools.origin.server import Origin

HOST = "127.0.0.11"
OTHER_HOST = "127.0.0.12"

QUICK = WorkerTimings(poll_delay_s=0.02)
"""Timings with a poll of arq's queue that is fast enough for a test."""


def tuned(timings: WorkerTimings = QUICK, **lanes: Any) -> WorkerTimings:
    """Return the timings with these lane parameters."""
    return replace(timings, lanes=LaneParameters(**lanes))


on_both_sinks = pytest.mark.usefixtures("object_server", "sink_kind")
"""Runs a test with bodies as files, and with bodies as objects of a store."""

on_both_engines = pytest.mark.usefixtures("engine")
"""Runs a test on each engine."""

needs_openssl = pytest.mark.skipif(not HAS_OPENSSL, reason="needs the openssl command")

Start = Callable[..., Awaitable[OneWorker]]
Lines = list[Any]


@pytest.fixture
def lines() -> Iterator[Lines]:
    """The log lines of the test, as dicts."""
    with capture_logs() as captured:
        yield captured


@pytest.fixture
def timings() -> WorkerTimings:
    """The default timings of the workers of a test."""
    return QUICK


@pytest.fixture
async def start(
    redis_url: str, tmp_path: Path, lines: Lines, timings: WorkerTimings, request: pytest.FixtureRequest
) -> AsyncIterator[Start]:
    """A function that starts workers with the parameters of OneWorker; they stop after the test.

    They use the engine of the fixture `engine` if the test requests it, and store bodies as `sink_kind` says.
    """
    engine = {"engine": request.getfixturevalue("engine")} if "engine" in request.fixturenames else {}
    worker_type: Callable[..., OneWorker] = OneWorker
    if "sink_kind" in request.fixturenames and request.getfixturevalue("sink_kind") == "objects":
        worker_type = partial(ObjectsWorker, request.getfixturevalue("bucket"))
    async with AsyncExitStack() as workers:

        async def start(**parameters: Any) -> OneWorker:
            defaults = {"redis_url": redis_url, "timings": timings, "out": tmp_path / "out", **engine}
            return await workers.enter_async_context(worker_type(**{**defaults, **parameters}))

        yield start


@pytest.fixture
async def worker(start: Start) -> OneWorker:
    """A running worker."""
    return await start()


@pytest.fixture
async def names() -> AsyncIterator[Nameserver]:
    """A nameserver; the test sets its replies."""
    async with nameserver("127.0.53.1") as serving:
        yield serving


@pytest.fixture
async def origin() -> AsyncIterator[Origin]:
    """An origin that responds with "ok" unless the test changes its behaviour."""
    async with Origin.serving(HOST, o.OK) as serving:
        yield serving


@pytest.fixture
async def other() -> AsyncIterator[Origin]:
    """A second origin, on another host."""
    async with Origin.serving(OTHER_HOST, o.OK) as serving:
        yield serving


@pytest.fixture(params=["files", "objects"])
def sink_kind(request: pytest.FixtureRequest) -> str:
    """The kind of sink of the workers of the test, which runs once for each."""
    return str(request.param)


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    """The engine of the test, which runs once for each."""
    return str(request.param)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests of the httpx engine if the run uses another engine."""
    engine_skips.skip_httpx_only(items)
