"""A worker and two hostile origins for each test that asks for them."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from fetchfleet.worker.lanes.parameters import LaneParameters
from fetchfleet.worker.runtime.timings import WorkerTimings
from fetchfleet.worker.settings import ENGINES
from tests.support import engine_skips
from tests.support.nameserver import Nameserver, nameserver
from tools.one_worker import OneWorker
from tools.origin import behaviours as o
from tools.origin.certificates import HAS_OPENSSL
from tools.origin.server import Origin

HOST = "127.0.0.11"
OTHER_HOST = "127.0.0.12"

QUICK = WorkerTimings(poll_delay_s=0.02)
"""arq looks at its queue often enough for a test."""


def tuned(timings: WorkerTimings = QUICK, **lanes: Any) -> WorkerTimings:
    """The timings, with those of lanes that are named."""
    return replace(timings, lanes=LaneParameters(**lanes))


on_both_engines = pytest.mark.usefixtures("engine")
"""Runs a test of what an engine could do differently on each of them."""

needs_openssl = pytest.mark.skipif(not HAS_OPENSSL, reason="needs the openssl command")

Start = Callable[..., Awaitable[OneWorker]]
Lines = list[Any]


@pytest.fixture
def lines() -> Iterator[Lines]:
    """Every log line from here on, as a dict."""
    with capture_logs() as captured:
        yield captured


@pytest.fixture
def timings() -> WorkerTimings:
    """The timings of each worker that is given none."""
    return QUICK


@pytest.fixture
async def start(
    redis_url: str, tmp_path: Path, lines: Lines, timings: WorkerTimings, request: pytest.FixtureRequest
) -> AsyncIterator[Start]:
    """Starts workers, as OneWorker replies, and stops them after the test; on its engine if it has one."""
    given = {"engine": request.getfixturevalue("engine")} if "engine" in request.fixturenames else {}
    async with AsyncExitStack() as workers:

        async def start(**how: Any) -> OneWorker:
            how = {"redis_url": redis_url, "timings": timings, "out": tmp_path / "out", **given, **how}
            return await workers.enter_async_context(OneWorker(**how))

        yield start


@pytest.fixture
async def worker(start: Start) -> OneWorker:
    """A running worker."""
    return await start()


@pytest.fixture
async def names() -> AsyncIterator[Nameserver]:
    """A nameserver whose responses the test sets."""
    async with nameserver("127.0.53.1") as serving:
        yield serving


@pytest.fixture
async def origin() -> AsyncIterator[Origin]:
    """An origin that responds with "ok" unless the test changes its behaviour."""
    async with Origin.serving(HOST, o.OK) as serving:
        yield serving


@pytest.fixture
async def other() -> AsyncIterator[Origin]:
    """Another such origin, on another host."""
    async with Origin.serving(OTHER_HOST, o.OK) as serving:
        yield serving


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    """Each engine."""
    return str(request.param)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests of httpx alone if another engine is chosen."""
    engine_skips.skip_httpx_only(items)
