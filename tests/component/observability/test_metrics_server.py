"""The server of a worker's metrics."""

import asyncio
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress

import httpx
import pytest

from fetchfleet.worker.errors import BAD_USE, CommandError
from fetchfleet.worker.observability import metrics_server
from fetchfleet.worker.observability.metrics_server import MAX_CONNECTIONS, MetricsServer, response_to
from tests.component.conftest import Start
from tests.support.waiting import wait_until
from tools.one_worker import OneWorker

HOST = "127.0.71.10"


def free_port(host: str = HOST) -> int:
    """Return a port that nothing listens on."""
    with socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as free:
        return int(free.getsockname()[1])


@pytest.fixture
async def served(start: Start) -> AsyncIterator[tuple[OneWorker, int]]:
    """Yield a worker, and the port of its metrics."""
    worker, server, port = await start(), MetricsServer(), free_port()
    async with server.serve(HOST, port):
        server.read = worker.runtime.figures
        yield worker, port


async def test_a_slow_scraper_delays_neither_the_worker_nor_other_scrapers(
    served: tuple[OneWorker, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Connections that send no request are closed. More than the maximum are closed at once."""
    monkeypatch.setattr(metrics_server, "WITHIN_S", 0.3)
    _, port = served
    async with AsyncExitStack() as connections, httpx.AsyncClient() as client:
        silent = []
        for _ in range(MAX_CONNECTIONS - 1):
            reader, writer = await asyncio.open_connection(HOST, port)
            connections.callback(writer.close)
            silent.append(reader)
        response = await client.get(f"http://{HOST}:{port}/metrics")
        assert response.status_code == 200
        assert "fetchfleet_ready 1.0" in response.text
        assert [b""] * len(silent) == await asyncio.gather(*(reader.read() for reader in silent))


async def test_connections_beyond_the_maximum_are_closed_at_once(served: tuple[OneWorker, int]) -> None:
    """Those that are open stay open."""
    _, port = served
    async with AsyncExitStack() as connections:
        for _ in range(MAX_CONNECTIONS):
            _, writer = await asyncio.open_connection(HOST, port)
            connections.callback(writer.close)
        reader, writer = await asyncio.open_connection(HOST, port)
        connections.callback(writer.close)
        with suppress(ConnectionError):
            assert await reader.read() == b""


async def test_other_requests_are_refused(served: tuple[OneWorker, int]) -> None:
    """One path, GET and HEAD, and header sections of a bounded size."""
    _, port = served
    base = f"http://{HOST}:{port}"
    async with httpx.AsyncClient() as client:
        assert [
            (await client.request(method, base + path)).status_code
            for method, path in (
                ("GET", "/"),
                ("POST", "/metrics"),
                ("HEAD", "/metrics"),
                ("GET", "/metrics?x"),
            )
        ] == [404, 405, 200, 200]
        with pytest.raises(httpx.TransportError):
            await client.get(base + "/metrics", headers={"X": "x" * 20_000})


def test_the_metrics_of_a_starting_worker_are_unavailable() -> None:
    """Prometheus scrapes again later."""
    assert response_to(b"GET /metrics HTTP/1.1\r\n\r\n", None).startswith(b"HTTP/1.1 503 ")


async def test_a_port_in_use_and_a_missing_library_are_errors_of_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """The messages name the address, or the command that installs the library."""
    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            CommandError, match=rf"--metrics: cannot listen on {HOST}, port {port}: .*in use"
        ) as used:
            async with MetricsServer().serve(HOST, port):
                pass
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(CommandError, match=r"pip install 'fetchfleet\[metrics\]'") as missing:
        async with MetricsServer().serve(HOST, port):
            pass

    assert {used.value.exit_code, missing.value.exit_code} == {BAD_USE}


async def test_an_ipv6_address_is_served() -> None:
    """The setting has it in brackets."""
    server, port = MetricsServer(), free_port("::1")
    async with server.serve("::1", port), httpx.AsyncClient() as client:
        response = await client.get(f"http://[::1]:{port}/metrics")
    assert response.status_code == 503
    await wait_until(lambda: len(asyncio.all_tasks()) == 1, "the end of the connections")
