"""The command `serve` as a process: its start, its errors and its end."""

import asyncio
import json
import re
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from redis.asyncio import Redis

from tests.support.console import served, url_in
from tests.support.fork_server import Process
from tests.support.lanes import backlog, paths, url, waiting
from tests.support.waiting import wait_until
from tests.support.workers import fetchfleet

TOKEN = "a-token-of-enough-characters"


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a server without Redis."""
    folder = tmp_path_factory.mktemp("serving")
    with served(folder / "serve.log", "--redis", f"unix://{folder}/none.sock"):
        yield asyncio.run(url_in(folder / "serve.log"))


async def test_a_server_starts_without_redis_and_stops_on_sigterm(tmp_path: Path) -> None:
    """A request meanwhile gets 503 with Retry-After, and the exit code is 0."""
    log = tmp_path / "serve.log"
    with served(log, "--redis", f"unix://{tmp_path}/none.sock", "--redis-patience", "0") as process:
        async with httpx.AsyncClient(base_url=await url_in(log)) as client:
            alive = await client.get("/healthz")
            refused = await client.get("/v1/batches")
        process.send_signal(signal.SIGTERM)
        code = process.wait(30)
    events = [json.loads(line)["event"] for line in log.read_text().splitlines()]

    assert (200, "ok\n") == (alive.status_code, alive.text)
    assert 503 == refused.status_code
    assert int(refused.headers["retry-after"]) > 0
    assert 0 == code
    assert ["console.started", "console.stopped"] == [event for event in events if event != "console.redis"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--listen", "0.0.0.0:0"], "add --token-file FILE, or listen on 127.0.0.1"),
        (["--listen", "fleet.example:80"], "add --token-file FILE"),
        (["--listen", "8080"], "write it like 127.0.0.1:8080"),
        (["--listen", "127.0.0.1:70000"], "write it like 127.0.0.1:8080"),
        (["--token-file", "none"], "--token-file none: No such file"),
        (["--redis", "http://a"], "not a Redis URL"),
    ],
)
def test_bad_arguments_exit_with_2_and_the_remedy(arguments: list[str], message: str) -> None:
    """No socket listens then."""
    ended = fetchfleet("serve", *arguments)

    assert (2, True) == (ended.returncode, message in ended.stderr), ended.stderr


@pytest.mark.parametrize(
    ("text", "mode", "message"),
    [
        ("short", 0o600, "at least 16 printable ASCII characters"),
        ("with a space in the middle", 0o600, "no space"),
        ("ä" * 20, 0o600, "printable ASCII"),
        (TOKEN, 0o644, "chmod 600"),
        (TOKEN, 0o622, "chmod 600"),
    ],
)
def test_an_unusable_token_file_exits_with_2_and_the_remedy(
    tmp_path: Path, text: str, mode: int, message: str
) -> None:
    """The error does not show the token."""
    file = tmp_path / "token"
    file.write_text(text)
    file.chmod(mode)
    ended = fetchfleet("serve", "--listen", "127.0.0.1:0", "--token-file", file)

    assert (2, True) == (ended.returncode, message in ended.stderr), ended.stderr
    assert text not in ended.stderr


async def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    """The second server ends at once."""
    log = tmp_path / "serve.log"
    with served(log, "--redis", f"unix://{tmp_path}/none.sock"):
        listen = (await url_in(log)).removeprefix("http://")
        ended = fetchfleet("serve", "--listen", listen)

    assert (1, True) == (ended.returncode, "Address already in use" in ended.stderr)


async def test_a_server_killed_during_a_submit_leaves_no_fetch_twice_or_out(
    redis_url: str, redis: Redis, tmp_path: Path
) -> None:
    """The repeat with the same Idempotency-Key adds the fetches that were missing, to the same batch."""
    lines = [b'{"url":"%s"}\n' % url(f"/{place}").encode() for place in range(1200)]
    fields = {"Content-Type": "application/x-ndjson", "Idempotency-Key": "import 7"}

    async def body(process: Process) -> AsyncIterator[bytes]:
        yield b"".join(lines[:700])
        await wait_until(lambda: backlog(redis), "the first chunk")
        process.kill()
        process.wait(30)
        yield b"".join(lines[700:])

    with served(tmp_path / "first.log", "--redis", redis_url) as process:
        async with httpx.AsyncClient(base_url=await url_in(tmp_path / "first.log")) as client:
            with pytest.raises(httpx.TransportError):
                await client.post("/v1/batches", content=body(process), headers=fields)
    cut = await backlog(redis)
    with served(tmp_path / "second.log", "--redis", redis_url):
        async with httpx.AsyncClient(base_url=await url_in(tmp_path / "second.log")) as client:
            responses = [
                await client.post("/v1/batches", content=b"".join(lines), headers=fields) for _ in range(2)
            ]
            batch = (await client.get(responses[0].headers["location"])).json()["batch"]

    assert 500 == cut
    assert [202, 202] == [response.status_code for response in responses]
    assert responses[0].content == responses[1].content
    assert (1200, "running") == (batch["counts"]["total"], batch["state"])
    assert [f"/{place}" for place in range(1200)] == paths(await waiting(redis))


async def test_a_proxy_on_this_machine_names_the_client_and_https(tmp_path: Path) -> None:
    """The session cookie is Secure then, and the log has the address of the client."""
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    (tmp_path / "token").chmod(0o600)
    log, forwarded = tmp_path / "serve.log", {"X-Forwarded-Proto": "https", "X-Forwarded-For": "203.0.113.9"}
    with served(log, "--redis", f"unix://{tmp_path}/none.sock", "--token-file", str(tmp_path / "token")):
        async with httpx.AsyncClient(base_url=await url_in(log)) as client:
            plain = await client.post("/login", data={"token": TOKEN})
            proxied = await client.post("/login", data={"token": TOKEN}, headers=forwarded)
        await wait_until(lambda: log.read_text().count("console.action") == 2, "the log")
    actions = [json.loads(line) for line in log.read_text().splitlines() if "console.action" in line]

    assert [False, True] == [of.headers["set-cookie"].endswith("; Secure") for of in (plain, proxied)]
    assert ["127.0.0.1", "203.0.113.9"] == [line["peer"] for line in actions]


@pytest.mark.parametrize(
    "request_",
    [
        b"\x16\x03\x01\x02\x00\x01",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 200_000 + b"\r\n\r\n",
        b"POST /v1/batches HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/batches HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: localhost\r\n\r\n",
        b"GET /" + b"%00" * 10_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET //evil.example/%2e%2e/ HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /static/%2e%2e/console.css HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"CONNECT localhost:80 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ],
)
async def test_hostile_requests_get_an_error_or_the_end_of_the_connection(
    serving: str, request_: bytes
) -> None:
    """The server goes on."""
    reader, writer = await asyncio.open_connection(*serving.removeprefix("http://").split(":"))
    writer.write(request_)
    response = b""
    async with asyncio.timeout(10):
        with suppress(OSError):  # the server may close the connection before it has read all
            writer.write_eof()
            response = await reader.read()
    writer.close()
    async with httpx.AsyncClient(base_url=serving) as client:
        alive = await client.get("/healthz")

    assert re.match(rb"HTTP/1.1 4\d\d |\Z", response), response[:200]
    assert 200 == alive.status_code
