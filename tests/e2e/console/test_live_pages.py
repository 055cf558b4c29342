"""The streams that keep pages up to date, from a server process."""

import json
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from fetchfleet import Fleet
from tests.support.console import served, url_in
from tests.support.lanes import BATCH_ID, LANE, url
from tests.support.own_redis import own_redis
from tests.support.waiting import wait_until

STREAM = {"Accept": "text/event-stream"}


class Stream:
    """The events of a live page."""

    def __init__(self, lines: AsyncIterator[str]) -> None:
        self._lines = lines
        self.seen: list[str] = []
        """The names of the events, or the elements of fragments."""

    async def until(self, wanted: str, text: str = "") -> Any:
        """Return the data of the next event, or fragment of an element, that contains the text."""
        name = ""
        async for line in self._lines:
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: "):
                data = json.loads(line.removeprefix("data: "))
                self.seen.append(data["id"] if name == "fragment" else name)
                if self.seen[-1] == wanted and text in str(data):
                    return data
        raise AssertionError(f"the stream ended before {wanted} {text}")

    async def end(self) -> None:
        """Read to the end."""
        async for _ in self._lines:
            pass


@asynccontextmanager
async def stream(base_url: str, path: str) -> AsyncIterator[Stream]:
    """Yield the stream of a page."""
    async with (
        httpx.AsyncClient(base_url=base_url, timeout=20) as client,
        client.stream("GET", path, headers=STREAM) as response,
    ):
        assert "text/event-stream" == response.headers["content-type"].partition(";")[0]
        yield Stream(response.aiter_lines())


async def test_a_page_is_updated_by_the_fragments_that_change_until_the_server_stops(
    fleet: Fleet, redis_url: str, tmp_path: Path
) -> None:
    """A server with open streams stops on SIGTERM."""
    log = tmp_path / "serve.log"
    with served(log, "--redis", redis_url) as process:
        async with stream(await url_in(log), "/") as page:
            await page.until("live-moment")
            before = page.seen.copy()
            page.seen.clear()
            await fleet.submit([url("/0")], batch_id=BATCH_ID)
            await page.until("live-hosts", LANE)
            await page.until("live-moment")
            process.send_signal(signal.SIGTERM)
            await page.end()
        code = process.wait(30)

    assert {"ready", "live-tiles", "live-problems", "live-hosts", "live-failures"} <= set(before)
    assert "live-failures" not in page.seen
    assert 0 == code


async def test_a_stream_reports_an_outage_of_redis_and_its_end(tmp_path: Path) -> None:
    """The stream goes on, and so does the page."""
    log = tmp_path / "serve.log"
    with own_redis() as redis:
        await wait_until(redis.responds, "Redis")
        with served(log, "--redis", redis.url, "--redis-patience", "0"):
            async with stream(await url_in(log), "/hosts") as page:
                await page.until("live-moment")
                redis.kill()
                trouble = await page.until("trouble")
                redis.start()
                await page.until("ready")
                await page.until("live-moment")

    assert {"text": "Redis does not answer"} == trouble


async def test_a_page_that_does_not_exist_has_no_stream(redis_url: str, tmp_path: Path) -> None:
    """A browser does not try again by itself then."""
    log = tmp_path / "serve.log"
    with served(log, "--redis", redis_url):
        async with httpx.AsyncClient(base_url=await url_in(log)) as client:
            response = await client.get("/batches/x", headers=STREAM)

    assert 404 == response.status_code
