"""A Chromium that tests drive as an operator would, and what it must not do meanwhile."""

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from playwright.async_api import BrowserContext, Page, async_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")

_OBSERVE = """
window.shifts = [];
window.violations = [];
new PerformanceObserver((list) => {
  for (const entry of list.getEntries()) if (!entry.hadRecentInput) window.shifts.push(entry.value);
}).observe({type: "layout-shift", buffered: true});
document.addEventListener("securitypolicyviolation", (event) => {
  window.violations.push(event.violatedDirective);
});
"""


class Browsing:
    """Tabs of one session, and the faults of their pages."""

    def __init__(self, context: BrowserContext, base_url: str) -> None:
        self._context = context
        self._base_url = base_url
        self.faults: list[str] = []
        """Messages in the consoles of the tabs, errors, and requests to other origins."""
        context.on("console", lambda message: self.faults.append(f"console: {message.text}"))
        context.on("weberror", lambda error: self.faults.append(f"error: {error.error}"))
        context.on("request", lambda request: self._check(request.url))

    def _check(self, url: str) -> None:
        if not url.startswith((f"{self._base_url}/", "data:")):
            self.faults.append(f"request: {url}")

    async def tab(self, path: str = "/") -> Page:
        """Open a page in a new tab."""
        tab = await self._context.new_page()
        await tab.goto(path)
        return tab


@asynccontextmanager
async def browsing(base_url: str, *, scripts: bool = True, width: int = 1280) -> AsyncIterator[Browsing]:
    """Yield a session of a browser on a server. scripts: run JavaScript."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            context = await browser.new_context(
                base_url=base_url, java_script_enabled=scripts, viewport={"width": width, "height": 900}
            )
            context.set_default_timeout(20_000)
            await context.add_init_script(_OBSERVE)
            yield Browsing(context, base_url)
        finally:
            await browser.close()


async def shift_of(tab: Page) -> float:
    """Return how far elements of the page have moved without an input, as cumulative layout shift."""
    shift: float = await tab.evaluate("window.shifts.reduce((sum, value) => sum + value, 0)")
    return shift


async def violations_of(tab: Page) -> list[str]:
    """Return the directives of the content security policy that the page has violated."""
    found: list[str] = await tab.evaluate("window.violations")
    return found


async def overflow_of(tab: Page) -> int:
    """Return by how many pixels the page is wider than its window."""
    root = "document.documentElement"
    width: int = await tab.evaluate(f"{root}.scrollWidth - {root}.clientWidth")
    return width
