"""An operator handles an incident in a browser: finds the failing host, pauses it, retries what it failed."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from playwright.async_api import Page, expect

from fetchfleet import Fleet
from tests.support.browser import (
    Browsing,
    browsing,
    needs_chromium,
    overflow_of,
    shift_of,
    violations_of,
)
from tests.support.console import TOKEN, served, url_in
from tests.support.origins import serve_origins
from tests.support.waiting import wait_until
from tests.support.workers import workers
from tools.origin.behaviours import OK, latency, status
from tools.origin.server import Origin

pytestmark = needs_chromium

GOOD, BAD = "127.0.43.1", "127.0.43.2"
POLICY = """\
[default]
attempts = 1
concurrency = 4
breaker_failures = 3
breaker_reset_s = 600
breaker_cap_s = 600
"""
MAX_SHIFT = 0.01
"""The largest sum of layout shifts: digits of a right-aligned number move the others a little."""
UPDATES = 2
FAILURES = 3
"""The failures that open the breaker."""


class Incident(NamedTuple):
    """A fleet of which one host fails."""

    url: str
    """The URL of the console."""
    good: Origin
    bad: Origin
    batch: str
    """The ID of the batch with fetches of both hosts."""


@asynccontextmanager
async def incident(
    fleet: Fleet, redis_url: str, folder: Path, latency_s: float = 0.02
) -> AsyncIterator[Incident]:
    """Yield a fleet with a worker and a console. The breaker of the failing host is open."""
    hosts = {"good": (GOOD, latency(latency_s)), "bad": (BAD, status(503))}
    log, token_file = folder / "console.log", folder / "token"
    token_file.touch(0o600)
    token_file.write_text(TOKEN)
    arguments = ("--redis", redis_url, "--token-file", str(token_file))

    async def has_failed() -> bool:
        return len([letter async for letter in fleet.dead.iter()]) >= FAILURES

    async with serve_origins(hosts) as origins:
        with workers(1, redis_url, folder / "fleet", POLICY), served(log, *arguments):
            urls = [origins[name].url(f"/{place}") for place in range(30) for name in ("good", "bad")]
            batch = await fleet.submit(urls)
            await wait_until(has_failed, "the failures")
            yield Incident(await url_in(log), origins["good"], origins["bad"], batch.id)


async def shows(tab: Page, text: str, *, scripts: bool, within: str = "main") -> None:
    """Wait until the page shows a text: by itself with scripts, else by reloads."""
    place = tab.locator(within)
    if scripts:
        await expect(place).to_contain_text(text, timeout=15_000)
        return

    async def is_shown() -> bool:
        await tab.reload()
        return text in await place.inner_text()

    await wait_until(is_shown, text, 15, 0.1)


@pytest.mark.parametrize("scripts", [True, False], ids=["with-javascript", "without-javascript"])
async def test_an_operator_handles_an_incident(
    fleet: Fleet, redis_url: str, tmp_path: Path, *, scripts: bool
) -> None:
    """From the front page to the end of the batch, through the browser alone."""
    async with (
        incident(fleet, redis_url, tmp_path) as of,
        browsing(of.url, scripts=scripts) as session,
    ):
        tab = await _logged_in(session)
        await shows(tab, f"{BAD} fails: its circuit breaker is open", scripts=scripts)
        await tab.get_by_role("link", name=re.compile(f"Host.*{re.escape(BAD)} fails")).click()
        await expect(tab.get_by_role("heading", level=1)).to_have_text(BAD)
        await expect(tab.locator("#live-why")).to_contain_text("The host responds with 503")
        await expect(tab.locator("#live-answers")).to_contain_text("503")

        await tab.get_by_role("button", name="Pause", exact=True).last.click()
        await expect(tab.get_by_role("status")).to_contain_text(f"{BAD} is paused")
        await shows(tab, "paused", scripts=scripts, within="#live-state")

        of.bad.behaviour = OK
        await tab.get_by_role("button", name="Resume").click()
        await expect(tab.get_by_role("status")).to_contain_text(f"{BAD} is resumed")
        await tab.get_by_role("button", name="Reset").click()
        await expect(tab.get_by_role("status")).to_contain_text(f"{BAD} reset: breaker")

        await tab.goto(f"/batches/{of.batch}")
        await shows(tab, "ended", scripts=scripts, within="#live-state")
        failed = (await fleet.batch(of.batch).counts()).failed
        await expect(tab.locator("#live-failures")).to_contain_text("http_status")

        retried = await _retry_dead_letters(tab, failed)
        await tab.goto(f"/batches/{retried}")
        await shows(tab, "ended", scripts=scripts, within="#live-state")
        await expect(tab.locator("#live-progress")).to_contain_text(f"{failed} stored")

        assert failed >= FAILURES
        assert [] == session.faults
        assert 0 == await fleet.dead.purge()


async def _logged_in(session: Browsing) -> Page:
    """Return a tab with the front page, after the login."""
    tab = await session.tab()
    await tab.get_by_label("Token").fill(TOKEN)
    await tab.get_by_role("button", name="Log in").click()
    await expect(tab.get_by_role("heading", name="Problems")).to_be_visible()
    return tab


async def _retry_dead_letters(tab: Page, failed: int) -> str:
    """Retry the dead letters of the failing host; return the ID of their batch."""
    await tab.get_by_role("link", name="Dead letters").first.click()
    await tab.get_by_label("Host").fill(BAD)
    await tab.get_by_role("button", name="Apply").click()
    await tab.get_by_role("link", name="Retry these").click()
    await expect(tab.get_by_role("heading", level=1)).to_have_text(f"Retry {failed} dead letters?")
    await tab.get_by_role("button", name=f"Retry {failed} dead letters").click()
    notice = await tab.get_by_role("status").inner_text()
    found = re.search(rf"{failed} fetches enqueued again, as batch ([0-9a-f]{{16}})", notice)
    assert found, notice
    return found[1]


async def test_pages_update_in_place_fit_small_windows_and_obey_their_policy(
    fleet: Fleet, redis_url: str, tmp_path: Path
) -> None:
    """While a batch runs, nothing on a page moves by itself, and no page is wider than a window of 400 px."""
    async with incident(fleet, redis_url, tmp_path, 0.3) as of:
        batch = f"/batches/{of.batch}"
        live = ["/", "/hosts", f"/hosts/{GOOD}", "/batches", batch]
        letter = await anext(fleet.dead.iter())
        others = ["/hosts/default", f"{batch}/results", f"{batch}/cancel", "/dead", "/dead/retry"]
        async with browsing(of.url, width=400) as session:
            await (await _logged_in(session)).close()
            tabs = [await session.tab(path) for path in live]
            await asyncio.gather(*(_updated(tab) for tab in tabs))
            for tab, path in zip(tabs, live, strict=True):
                assert (0, []) == (await overflow_of(tab), await violations_of(tab)), path
                assert await shift_of(tab) <= MAX_SHIFT, path
                await tab.close()  # each live page has a connection, and a browser has six for a server
            tail = await session.tab("/events")
            await fleet.submit([of.good.url(f"/more/{place}") for place in range(60)])
            await expect(tail.locator("#tail-lines tr").first).to_be_visible(timeout=15_000)
            assert await shift_of(tail) <= MAX_SHIFT
            for path in [*others, f"/dead/{letter.position}"]:
                await tail.goto(path)
                assert (0, []) == (await overflow_of(tail), await violations_of(tail)), path

            assert [] == session.faults
        await asyncio.gather(*(fleet.batch(batch.id).cancel() for batch in await fleet.batches()))
        await fleet.dead.purge()


async def _updated(tab: Page) -> None:
    """Wait until a page has been updated in place a few times."""
    moment = tab.locator("#live-moment")
    for _ in range(UPDATES):
        await expect(moment).not_to_have_text(await moment.inner_text(), timeout=15_000)
