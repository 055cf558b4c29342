"""A bare aiohttp script: eight fetches at once per host, each body to a file.

    python -m tools.bench.contenders.aiohttp_script URLS OUT AT_ONCE

No queue, no retries, no checks.
"""

import asyncio
import sys
from pathlib import Path

import aiohttp

PER_HOST = 8
CHUNK_BYTES = 256 * 1024


async def fetch(session: aiohttp.ClientSession, url: str, out: Path) -> None:
    """Fetch a URL into a file named after it. Writes block the event loop, as in a simple script."""
    async with session.get(url) as response:
        response.raise_for_status()
        with (out / url.rpartition("/")[2]).open("wb") as file:
            async for chunk in response.content.iter_chunked(CHUNK_BYTES):
                file.write(chunk)


async def main(urls: list[str], out: Path, at_once: int) -> None:
    """Fetch all URLs, as fast as the connections allow."""
    connector = aiohttp.TCPConnector(limit=at_once, limit_per_host=PER_HOST)
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        await asyncio.gather(*(fetch(session, url, out) for url in urls))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]).read_text().split(), Path(sys.argv[2]), int(sys.argv[3])))
