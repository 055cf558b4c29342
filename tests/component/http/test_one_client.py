"""Clients of httpx: its engine makes one for all fetches of a worker, the direct engine makes none."""

import asyncio
from typing import Any

import httpx
import pytest

from fetchfleet import Outcome
from tests.component.conftest import HOST, Start, on_both_engines
from tests.support.waiting import wait_until
from tools.one_worker import OneWorker
from tools.origin import behaviours
from tools.origin import server as o
from tools.origin.server import Origin


@pytest.fixture
def clients(monkeypatch: pytest.MonkeyPatch) -> list[httpx.AsyncClient]:
    """Return the list of httpx clients made from here on."""
    made: list[httpx.AsyncClient] = []
    init = httpx.AsyncClient.__init__

    def watched(self: httpx.AsyncClient, *args: Any, **options: Any) -> None:
        made.append(self)
        init(self, *args, **options)

    monkeypatch.setattr(httpx.AsyncClient, "__init__", watched)
    return made


async def test_a_worker_makes_one_client_and_closes_it(
    clients: list[httpx.AsyncClient], origin: Origin, other: Origin, start: Start
) -> None:
    """All hosts, attempts and redirects share it until the worker stops."""
    worker = await start(engine="httpx")
    [client] = clients
    origin.behaviour = behaviours.by_path(
        {"/to": behaviours.redirect(other.url), "/": behaviours.fail_times(2, 500)}
    )

    await worker.run(place.url(path) for place in (origin, other) for path in ("/a", "/b", "/to"))

    assert clients == [client]
    assert not client.is_closed
    await worker.stop()
    assert client.is_closed


async def test_the_direct_engine_makes_no_client(
    clients: list[httpx.AsyncClient], origin: Origin, start: Start
) -> None:
    """Its requests do not pass through httpx."""
    worker = await start(engine="direct")
    result = await worker.one(origin.url())

    assert (result.outcome, clients) == (Outcome.STORED, [])


@on_both_engines
async def test_connections_are_reused(origin: Origin, start: Start) -> None:
    """Fifty fetches need no more connections than run at once."""
    worker = await start(policy={"concurrency": 4})
    origin.behaviour = behaviours.latency(0.005)

    await worker.run(origin.url(f"/{n}") for n in range(50))

    assert len(origin.requests) == 50
    assert origin.connections_opened <= 4


@on_both_engines
async def test_connections_are_reused_after_errors_and_redirects(origin: Origin, start: Start) -> None:
    """A small body that is not kept is read to its end, so its connection stays usable."""
    worker = await start(policy={"concurrency": 1})
    origin.behaviour = behaviours.by_path(
        {
            "/404": behaviours.status(404, body=b"x" * 1000),
            "/302": behaviours.redirect("/ok"),
            "/": behaviours.OK,
        }
    )

    await worker.run(origin.url(f"/{path}{n}") for n in range(3) for path in ("404", "302", "ok"))

    assert origin.connections_opened == 1


@on_both_engines
async def test_an_endless_error_body_is_not_read_to_its_end(origin: Origin, worker: OneWorker) -> None:
    """A body that is not kept is dropped once it grows large."""

    async def endless(x: o.Exchange) -> None:
        await x.send_head(404, [("Content-Length", str(1 << 40))])
        while True:
            await x.send(b"x" * 10_000)

    origin.behaviour = endless

    result = await worker.one(origin.url())

    assert result.status == 404
    assert [seen.aborted for seen in origin.requests] == [True]


@on_both_engines
async def test_cookies_are_not_kept(origin: Origin, start: Start) -> None:
    """Neither the next fetch nor a redirect of the same fetch sends them."""
    worker = await start(policy={"concurrency": 1})
    cookie = ("Set-Cookie", "session=secret; Path=/")
    origin.behaviour = behaviours.by_path(
        {"/302": behaviours.status(302, [cookie, ("Location", "/")]), "/": behaviours.ok(b"", [cookie])}
    )

    await worker.run(origin.url(path) for path in ("/a", "/302", "/b"))

    assert len(origin.requests) == 4
    assert not [seen for seen in origin.requests if Origin.header(seen, "Cookie")]


@on_both_engines
async def test_a_cookie_of_the_fetch_is_sent(origin: Origin, worker: OneWorker) -> None:
    """The Cookie header of a producer is a header like others."""
    await worker.one(origin.url(), headers={"Cookie": "a=1"})

    assert Origin.header(origin.requests[0], "Cookie") == "a=1"


@on_both_engines
async def test_a_proxy_of_the_environment_is_ignored(
    origin: Origin, other: Origin, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy would receive every fetch, past the egress rule."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, other.url())
    worker = await start()

    result = await worker.one(origin.url())

    assert result.outcome is Outcome.STORED
    assert other.connections_opened == 0


async def test_httpx_follows_no_redirects_and_ignores_the_environment(
    clients: list[httpx.AsyncClient], start: Start
) -> None:
    """The worker decides on redirects and proxies."""
    await start(engine="httpx")
    [client] = clients

    assert (client.follow_redirects, client.trust_env) == (False, False)
    assert client.timeout.read is not None


async def test_a_stop_during_a_handshake_leaves_no_connection(start: Start) -> None:
    """The host accepts the connection and sends nothing."""
    came, gone = asyncio.Event(), asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        came.set()
        while await reader.read(1 << 16):
            pass
        writer.close()
        gone.set()

    worker = await start(grace_s=0.0)
    async with await asyncio.start_server(silent, HOST, 0) as server:
        await worker.submit([f"https://{HOST}:{server.sockets[0].getsockname()[1]}/"])
        await wait_until(came.is_set, "the connection")
        await worker.stop()
        await wait_until(gone.is_set, "the end of the connection")
