"""The examples as users start them: the service under uvicorn, the script from a shell."""

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from examples.nightly import main
from fetchfleet.worker.local.process import die_with_parent
from tests.support.redis import nothing_stranded, serve_redis
from tests.support.waiting import wait_until
from tests.support.workers import workers
from tools.origin.behaviours import (
    by_path,
    held,
    ok,
    retry_after,
    sequence,
    stall_headers,
    status,
    truncated,
)
from tools.origin.server import Origin

ROOT = Path(__file__).parents[3]
SERVICE = [sys.executable, "-W", "error", "-m", "uvicorn", "examples.imports_service:app", "--port", "0"]
NIGHTLY = [sys.executable, "-W", "error", "-m", "examples.nightly"]
_LISTENS = re.compile(r"running on (http://[\d.:]+)")


@asynccontextmanager
async def service(redis_url: str, folder: Path) -> AsyncIterator[httpx.AsyncClient]:
    """Yield a client of the service; end the service with SIGTERM after the block."""
    log = folder / "service.log"
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: ASYNC220 it only starts it
            SERVICE,
            cwd=ROOT,
            env={**os.environ, "FETCHFLEET_REDIS_URL": redis_url},
            stdout=output,
            stderr=output,
            start_new_session=True,
            preexec_fn=die_with_parent,  # noqa: PLW1509 no threads hold locks here
        )
    try:
        listens = await wait_until(lambda: _LISTENS.findall(log.read_text()), "the service to listen", 30)
        async with httpx.AsyncClient(base_url=listens[0], timeout=30, trust_env=False) as client:
            yield client
        process.terminate()
        await wait_until(lambda: process.poll() is not None, "the service to end", 30)
        assert "Application shutdown complete" in log.read_text()
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


async def ended(client: httpx.AsyncClient, status_url: str) -> dict[str, Any]:
    """Wait until the import has ended; return its progress."""

    async def progress() -> dict[str, Any] | None:
        shown: dict[str, Any] = (await client.get(status_url)).json()
        return shown if shown["ended"] else None

    return await wait_until(progress, f"{status_url} to end", 60) or {}


def json_lines(text: str) -> list[dict[str, Any]]:
    """Return the objects of JSON lines."""
    return [json.loads(line) for line in text.splitlines()]


def times_seen(origin: Origin) -> Counter[str]:
    """Return the number of requests for each path."""
    return Counter(seen.target for seen in origin.requests)


async def test_an_import_is_accepted_and_its_results_are_served(redis_url: str, tmp_path: Path) -> None:
    """The host truncates one body, throttles one request and has no resource for another one."""
    behaviour = by_path(
        {
            "/gone": status(404),
            "/cut": sequence(truncated(b"ha", 4), ok(b"/cut")),
            "/busy": sequence(retry_after(0.1), ok(b"/busy")),
        },
        otherwise=ok(str.encode),
    )
    paths = ["/gone", "/cut", "/busy", *(f"/{i}" for i in range(20))]
    async with (
        Origin.serving("127.0.0.191", behaviour) as origin,
        service(redis_url, tmp_path) as client,
    ):
        with workers(1, redis_url, tmp_path) as running:
            order = {"urls": [origin.url(path) for path in paths], "name": "logos"}
            accepted = await client.post("/imports", json=order)
            progress = await ended(client, accepted.headers["Location"])
            told = await client.get(f"{accepted.headers['Location']}/results")
            failed = await client.get(f"{accepted.headers['Location']}/results?outcome=failed")
    results = {result["meta"]["place"]: result for result in json_lines(told.text)}
    bodies = {place: running.out / result["path"] for place, result in results.items() if result["path"]}

    assert 202 == accepted.status_code
    assert {"id": progress["id"], "total": 23, "status": accepted.headers["Location"]} == accepted.json()
    assert (23, 22, 1) == (progress["done"], progress["stored"], progress["failed"])
    assert set(range(23)) == results.keys()
    assert {"logos"} == {result["meta"]["import"] for result in results.values()}
    assert dict(enumerate(paths[1:], 1)) == {place: body.read_text() for place, body in bodies.items()}
    assert [results[0]] == json_lines(failed.text)
    assert "http_status" == results[0]["reason"]


async def test_results_stream_while_the_import_runs(redis_url: str, tmp_path: Path) -> None:
    """The first line arrives before the last fetch may end."""
    may_end = asyncio.Event()
    async with (
        Origin.serving("127.0.0.192", by_path({"/held": held(may_end)}, otherwise=ok())) as origin,
        service(redis_url, tmp_path) as client,
    ):
        with workers(1, redis_url, tmp_path):
            order = {"urls": [origin.url("/quick"), origin.url("/held")]}
            link = (await client.post("/imports", json=order)).headers["Location"]
            async with client.stream("GET", f"{link}/results") as stream:
                lines = stream.aiter_lines()
                first = json.loads(await anext(lines))
                meanwhile = (await client.get(link)).json()
                may_end.set()
                rest = [json.loads(line) async for line in lines]

    assert [origin.url("/quick"), origin.url("/held")] == [first["url"], *(line["url"] for line in rest)]
    assert (1, False) == (meanwhile["done"], meanwhile["ended"])


async def test_the_same_idempotency_key_is_the_same_import(redis_url: str, tmp_path: Path) -> None:
    """Every URL is fetched once. The key with another order gets 422."""
    async with (
        Origin.serving("127.0.0.193", ok()) as origin,
        service(redis_url, tmp_path) as client,
    ):
        with workers(1, redis_url, tmp_path):
            order = {"urls": [origin.url(f"/{i}") for i in range(20)]}
            orders = [order, order, {"urls": [origin.url("/other")]}]
            replies = [
                await client.post("/imports", json=order, headers={"Idempotency-Key": "logos-7"})
                for order in orders
            ]
            first, second, other = replies
            progress = await ended(client, first.json()["status"])

    assert first.json() == second.json()
    assert 422 == other.status_code
    assert 20 == progress["stored"]
    assert {f"/{i}": 1 for i in range(20)} == times_seen(origin)


async def test_an_import_can_be_stopped(redis_url: str, tmp_path: Path) -> None:
    """Its unfinished fetches end as cancelled."""
    async with (
        Origin.serving("127.0.0.197", stall_headers(60)) as origin,
        service(redis_url, tmp_path) as client,
    ):
        with workers(1, redis_url, tmp_path):
            order = {"urls": [origin.url(f"/{i}") for i in range(20)]}
            link = (await client.post("/imports", json=order)).headers["Location"]
            await wait_until(lambda: origin.requests, "a request")
            stopped = await client.delete(link)
            progress = await ended(client, link)

    assert 202 == stopped.status_code
    assert 20 == progress["cancelled"]


async def test_an_invalid_order_is_refused_and_nothing_is_enqueued(
    redis_url: str, redis: Redis, tmp_path: Path
) -> None:
    """422 names the bad item; an unknown or malformed ID gets 404."""
    async with service(redis_url, tmp_path) as client:
        bad_url = await client.post("/imports", json={"urls": ["http://a.example/", "ftp://a.example/"]})
        no_urls = await client.post("/imports", json={"urls": []})
        links = ["/imports/0123456789abcdef", "/imports/nonsense"]
        unknown = [await client.get(f"{link}{more}") for link in links for more in ("", "/results")]

    assert 422 == bad_url.status_code
    assert "item 1: url:" in bad_url.json()["detail"]
    assert 422 == no_urls.status_code
    assert [404] * 4 == [reply.status_code for reply in unknown]
    assert 0 == await redis.dbsize()


async def test_without_redis_the_service_responds_with_503_and_retry_after(tmp_path: Path) -> None:
    """No route's response shows the address of Redis, and an open stream ends as incomplete."""
    with ExitStack() as while_redis_lives:
        redis_url = while_redis_lives.enter_context(serve_redis())
        while_redis_lives.enter_context(nothing_stranded(redis_url))
        async with service(redis_url, tmp_path) as client:
            order = {"urls": ["http://a.example/"]}
            link = (await client.post("/imports", json=order)).headers["Location"]
            async with client.stream("GET", f"{link}/results") as stream:
                while_redis_lives.close()
                with pytest.raises(httpx.RemoteProtocolError, match="incomplete"):
                    await stream.aread()
            replies = [
                await client.post("/imports", json=order),
                await client.get(link),
                await client.get(f"{link}/results"),
            ]

    assert [503] * 3 == [reply.status_code for reply in replies]
    assert all(int(reply.headers["Retry-After"]) > 0 for reply in replies)
    assert not any("redis.sock" in reply.text for reply in replies)


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
async def test_the_curl_commands_of_the_page_work(redis_url: str, tmp_path: Path) -> None:
    """The test's service and host replace those on the page."""
    page = (ROOT / "examples" / "README.md").read_text()
    ordering, reading = (
        block for block in re.findall(r"```sh\n(.*?)```", page, re.DOTALL) if "curl" in block
    )
    async with (
        Origin.serving("127.0.0.194", by_path({"/a.png": ok(), "/b.png": status(404)})) as origin,
        service(redis_url, tmp_path) as client,
    ):

        async def shell(commands: str, **variables: str) -> str:
            commands = commands.replace("https://example.com/", origin.url())
            commands = commands.replace("localhost:8000", client.base_url.netloc.decode())
            environment = {**os.environ, "NO_PROXY": "*", **variables}
            ran = await asyncio.to_thread(
                subprocess.run, ["bash", "-ec", commands], env=environment, capture_output=True, timeout=90
            )
            return ran.stdout.decode()

        with workers(1, redis_url, tmp_path):
            ordered = await shell(ordering)
            link = re.findall(r"location: (\S+)", ordered)[0]
            await ended(client, link)
            read = await shell(reading, id=link.rpartition("/")[2])

    assert "202 Accepted" in ordered
    assert '"ended":true' in read
    assert (1, 2) == (read.count('"outcome":"stored"'), read.count('"outcome":"failed"'))


async def nightly(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    """Run the script in a thread, so that the loop can serve the origin."""
    command = [*NIGHTLY, *map(str, arguments)]
    return await asyncio.to_thread(
        subprocess.run, command, cwd=ROOT, capture_output=True, text=True, timeout=90, check=False
    )


async def test_a_second_start_on_the_same_day_enqueues_nothing(redis_url: str, tmp_path: Path) -> None:
    """It prints the summary of the day's batch again. The next day has its own batch."""
    listed = tmp_path / "urls.txt"
    async with Origin.serving("127.0.0.195", ok(b"body")) as origin:
        listed.write_text("\n".join(origin.url(f"/{i}") for i in range(20)))
        with workers(1, redis_url, tmp_path):
            arguments = (listed, "--redis", redis_url, "--date")
            first = await nightly(*arguments, "2030-01-30")
            second = await nightly(*arguments, "2030-01-30")
            once = times_seen(origin)
            tomorrow = await nightly(*arguments, "2030-01-31")
            listed.write_text(origin.url("/0"))
            shorter = await nightly(*arguments, "2030-01-30")

    assert [0, 0, 0] == [ran.returncode for ran in (first, second, tomorrow)], first.stderr
    assert "2030-01-30 urls.txt: 20 of 20 succeeded, 80 bytes" in first.stdout
    assert 1 == len(first.stdout.splitlines())
    assert first.stdout == second.stdout
    assert {f"/{i}": 1 for i in range(20)} == once
    assert {f"/{i}": 2 for i in range(20)} == times_seen(origin)
    assert 2 == shorter.returncode
    assert "the list has changed" in shorter.stderr


async def test_a_failed_fetch_is_printed_on_standard_error_with_exit_code_1(
    redis_url: str, tmp_path: Path
) -> None:
    """The summary is printed as well."""
    listed = tmp_path / "urls.txt"
    async with Origin.serving("127.0.0.196", by_path({"/here": ok()})) as origin:
        listed.write_text(f"{origin.url('/here')}\n{origin.url('/gone')}\n")
        with workers(1, redis_url, tmp_path):
            ran = await nightly(listed, "--redis", redis_url)

    assert 1 == ran.returncode, ran.stderr
    assert [f"nightly: failed {origin.url('/gone')} http_status status=404"] == ran.stderr.splitlines()
    assert "1 of 2 succeeded" in ran.stdout


@pytest.mark.parametrize(
    ("text", "redis", "code", "named"),
    [
        (None, "redis://127.0.0.1:1", 2, "No such file"),
        (b"http://a.example/\nftp://a.example/\n", "redis://127.0.0.1:1", 2, "line 2: url:"),
        (b"http://a.example/caf\xe9\n", "redis://127.0.0.1:1", 2, "utf-8"),
        (b"http://a.example/\n", "http://127.0.0.1/", 2, "not a Redis URL"),
        (b"http://a.example/\n", "redis://:hunter2@127.0.0.1:1", 1, "Redis is unavailable"),
    ],
)
def test_an_error_of_the_script_is_one_line(
    text: bytes | None, redis: str, code: int, named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It exits with 2 for bad use and with 1 if Redis is unreachable, and shows no password."""
    listed = tmp_path / "urls.txt"
    if text is not None:
        listed.write_bytes(text)
    ended_with = main([str(listed), "--redis", redis, "--redis-patience", "0"])
    errors = capsys.readouterr().err

    assert code == ended_with
    assert named in errors
    assert 1 == len(errors.splitlines())
    assert "hunter2" not in errors


def test_the_wheel_carries_the_package_and_no_example(tmp_path: Path) -> None:
    """Its only top-level package is fetchfleet."""
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=90)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        rooms = {name.partition("/")[0] for name in archive.namelist()}

    assert {"fetchfleet"} == {room for room in rooms if not room.endswith(".dist-info")}
