"""The fields of `fetch.finished` about the connection, the response and the wait, on both engines."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from fetchfleet.worker.http.exchange import MAX_CONTENT_TYPE_BYTES
from fetchfleet.worker.policy.overrides import pause, resume
from tests.component.conftest import HOST, Lines, Start, needs_openssl, on_both_engines
from tests.support.nameserver import NAME, Nameserver, addresses
from tests.support.waiting import wait_until
from tools.origin import behaviours as o
from tools.origin import http2
from tools.origin.certificates import Authority
from tools.origin.http2 import Http2Origin, server_tls
from tools.origin.server import Origin

HERE = "127.0.71.9"
WIRE = ("protocol", "reused", "dns_ms", "tls_ms", "peer", "content_type")

pytestmark = on_both_engines


def finished(lines: Lines) -> Lines:
    """Return the lines of finished fetches so far."""
    return [line for line in lines if line["event"] == "fetch.finished"]


def wire_of(line: dict[str, Any]) -> tuple[Any, ...]:
    """Return the fields about the connection and the response."""
    return tuple(line[name] for name in WIRE)


async def test_a_connection_is_opened_once_and_then_reused(
    origin: Origin, start: Start, lines: Lines
) -> None:
    """The host is an address, so no name is resolved."""
    worker = await start(policy={"concurrency": 1})
    origin.behaviour = o.ok(headers=(("Content-Type", "text/plain; charset=utf-8"),))
    first, second = await worker.results(origin.url(path) for path in ("/1", "/2"))
    peer = f"{HOST}:{origin.port}"

    one, other = finished(lines)
    assert wire_of(one) == ("HTTP/1.1", False, None, None, peer, "text/plain; charset=utf-8")
    assert wire_of(other) == ("HTTP/1.1", True, None, None, peer, "text/plain; charset=utf-8")
    assert [line["path"] for line in (one, other)] == [first.path, second.path]
    assert {(line["hops"], line["priority"]) for line in (one, other)} == {(0, "normal")}
    for line in (one, other):
        assert line["waited_ms"] == {"queue": line["queue_ms"]}


async def test_redirects_are_counted_and_the_last_response_is_described(
    origin: Origin, start: Start, lines: Lines
) -> None:
    """Two redirects lead to a response without a Content-Type."""
    worker = await start()
    origin.behaviour = o.by_path({"/1": o.redirect("/2"), "/2": o.redirect("/3")}, o.ok())
    await worker.one(origin.url("/1"), priority="high")

    [line] = finished(lines)
    assert (line["hops"], line["status"], line["content_type"]) == (2, 200, None)
    assert (line["reused"], line["priority"]) == (True, "high")


async def test_a_resolved_name_and_a_refused_connection(
    names: Nameserver, start: Start, lines: Lines
) -> None:
    """The time of the resolution is known. Without a connection the other fields are null."""
    with socket.create_server((HERE, 0)) as closed:
        closed_port = closed.getsockname()[1]
    async with Origin.serving(HERE, o.OK) as origin:
        names.replies[NAME] = [addresses(HERE, ttl_s=60)]
        worker = await start(nameservers=names.address, policy={"attempts": 1, "ports": [origin.port]})
        await worker.one(f"http://{NAME}:{origin.port}/")
        await worker.one(f"http://{HERE}:{closed_port}/")

    resolved, refused = finished(lines)
    assert resolved["dns_ms"] >= 0
    assert (resolved["peer"], resolved["reused"]) == (f"{HERE}:{origin.port}", False)
    assert (refused["reason"], wire_of(refused)) == ("connect", (None,) * len(WIRE))


@needs_openssl
@pytest.mark.parametrize("http2_offered", [False, True])
async def test_a_tls_handshake_is_timed_in_both_protocols(
    tmp_path: Path, start: Start, lines: Lines, monkeypatch: pytest.MonkeyPatch, *, http2_offered: bool
) -> None:
    """The second fetch reuses the connection and has no handshake."""
    authority = Authority(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.cert))
    tls = server_tls(authority.issue("host", f"IP:{HERE}"))
    async with serving(tls, http2_offered=http2_offered) as port:
        worker = await start(policy={"http2": http2_offered, "attempts": 1, "concurrency": 1})
        await worker.results(f"https://{HERE}:{port}{path}" for path in ("/1", "/2"))
        await worker.stop()

    one, other = finished(lines)
    protocol = "HTTP/2" if http2_offered else "HTTP/1.1"
    assert one["tls_ms"] > 0
    assert one["tls_ms"] <= one["connect_ms"]
    assert (one["protocol"], one["reused"], one["peer"]) == (protocol, False, f"{HERE}:{port}")
    assert (other["protocol"], other["reused"], other["tls_ms"]) == (protocol, True, None)
    assert other["peer"] == one["peer"]


@asynccontextmanager
async def serving(tls: ssl.SSLContext, *, http2_offered: bool) -> AsyncIterator[int]:
    """Serve HTTP/2, or HTTP/1.1 only, over TLS; yield the port."""
    if http2_offered:
        async with Http2Origin.serving(HERE, tls, http2.ok) as origin:
            yield int(origin.base.rpartition(":")[2])
        return
    tls.set_alpn_protocols(["http/1.1"])

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(serve, HERE, 0, ssl=tls)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def test_a_hostile_content_type_is_bounded_and_redacted(
    origin: Origin, start: Start, lines: Lines
) -> None:
    """A host may repeat a secret of the request in it."""
    worker = await start()
    hostile = f"https://a.example/?token=hunter2;{'x' * 5000}"
    origin.behaviour = o.ok(headers=(("Content-Type", hostile),))
    await worker.one(origin.url())

    [line] = finished(lines)
    assert "hunter2" not in line["content_type"]
    assert len(line["content_type"]) <= MAX_CONTENT_TYPE_BYTES


async def test_the_wait_of_a_fetch_is_divided_by_cause(origin: Origin, start: Start, lines: Lines) -> None:
    """One fetch waits for its retry, the next for the end of the cool-down that the first one caused."""
    worker = await start(policy={"concurrency": 1, "retry_base_s": 0.3, "retry_cap_s": 0.3, "attempts": 5})
    origin.behaviour = o.by_path(
        {
            "/shaky": o.fail_times(2, 500),
            "/throttled": o.sequence(o.retry_after(1), o.ok()),
        },
        o.ok(),
    )
    await worker.one(origin.url("/shaky"))
    await worker.results(origin.url(path) for path in ("/throttled", "/next"))

    shaky, *cooled = finished(lines)
    assert shaky["waited_ms"].keys() == {"queue", "retry"}
    assert {line["outcome"] for line in (shaky, *cooled)} == {"stored"}
    for line in cooled:
        assert line["waited_ms"].keys() >= {"queue", "cooling"}
        assert line["waited_ms"]["cooling"] >= 500
    for line in (shaky, *cooled):
        assert abs(sum(line["waited_ms"].values()) - line["queue_ms"]) < 0.2


async def test_a_released_lane_remembers_why_it_was_closed(
    origin: Origin, start: Start, lines: Lines, redis: Redis
) -> None:
    """A paused lane is released. Its next owner knows how long the fetch waited for the pause."""
    worker = await start()
    notify, policy = worker.fleet.notify, worker.settings.policy
    await pause(redis, notify, HOST, policy)
    await worker.runtime.heartbeat.send()
    batch = await worker.submit([origin.url()])
    await wait_until(lambda: any(line.get("why") == "paused" for line in lines), "the release of the lane")
    await resume(redis, notify, HOST, policy, excepted=False)
    await batch.wait()

    [line] = finished(lines)
    assert line["waited_ms"]["paused"] > 0
