"""A Scrapy spider that writes each body to a file, eight fetches at once per host.

python -m tools.bench.contenders.scrapy_spider URLS OUT AT_ONCE
"""

import sys
from pathlib import Path
from typing import Any

import scrapy
from scrapy.crawler import CrawlerProcess

PER_HOST = 8


class Files(scrapy.Spider):
    """Fetches every URL of the list into a file named after it."""

    name = "files"

    def __init__(self, listed: Path, out: Path) -> None:
        super().__init__()
        self.start_urls = listed.read_text().split()
        self._out = out

    def parse(self, response: Any, **_: Any) -> None:
        """Write the body, which Scrapy holds in memory."""
        (self._out / response.url.rpartition("/")[2]).write_bytes(response.body)


def main(listed: Path, out: Path, at_once: int) -> None:
    """Crawl the list."""
    process = CrawlerProcess(
        {
            "LOG_ENABLED": False,
            "TELNETCONSOLE_ENABLED": False,
            "CONCURRENT_REQUESTS": at_once,
            "CONCURRENT_REQUESTS_PER_DOMAIN": PER_HOST,
            "DOWNLOAD_DELAY": 0,
            "DOWNLOAD_MAXSIZE": 0,
            "DOWNLOAD_WARNSIZE": 0,
            "DOWNLOAD_TIMEOUT": 600,
            "ROBOTSTXT_OBEY": False,
        }
    )
    process.crawl(Files, listed=listed, out=out)
    process.start()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
