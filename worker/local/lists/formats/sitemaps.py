"""Sitemaps and sitemap indexes (https://www.sitemaps.org/protocol.html), read in bounded memory. Pure.

A document type declaration is refused. So no entity can be defined, and none expands.
"""

from collections.abc import Iterator
from typing import IO
from xml.parsers import expat

from fetchfleet.jobs.contract.urls import MAX_URL_BYTES
from fetchfleet.worker.local.lists.rows import ListError, Row

BLOCK_BYTES = 64 * 1024
MAX_DEPTH = 100
MAX_TOKEN_BYTES = 1 << 20
"""The largest tag or comment, which the parser keeps in memory."""
SITEMAP, INDEX = "urlset", "sitemapindex"
"""The root elements of a sitemap and of an index, which has the URLs of sitemaps."""
ENTRIES = {SITEMAP: "url", INDEX: "sitemap"}
"""The element of an entry, by root."""


class SitemapReader:
    """The reader of the URLs in a sitemap, or in an index."""

    noun = "URL"
    description = "a sitemap"
    is_index = False

    def __init__(self, name: str, root: str = SITEMAP) -> None:
        """name: of the file. root: the root element that it must have."""
        self._name = name
        self._root = root
        self.is_index = root == INDEX

    def read(self, file: IO[bytes]) -> Iterator[Row]:
        """Yield the text of each `loc`."""
        parser = _Parser(self._root)
        number = 0
        try:
            while block := file.read(BLOCK_BYTES):
                parser.feed(block)
                for url in parser.take():
                    number += 1
                    yield number, url
            parser.feed(b"", last=True)
        except (expat.ExpatError, ValueError, LookupError) as error:  # LookupError for its encoding
            raise ListError(f"{self._name}: not a valid sitemap: {error}") from None


class _Parser:
    """Collects the `loc` of each entry."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._path: list[str] = []
        self._prefix = ""
        self._text: list[str] | None = None
        self._chars = 0
        self._fed_bytes = 0
        self._urls: list[str] = []
        self._expat = expat.ParserCreate()
        self._expat.StartDoctypeDeclHandler = self._refuse
        self._expat.StartElementHandler = self._start
        self._expat.EndElementHandler = self._end
        self._expat.CharacterDataHandler = self._add

    def feed(self, block: bytes, *, last: bool = False) -> None:
        """Parse the next bytes. Raises ExpatError and ValueError."""
        self._expat.Parse(block, last)
        self._fed_bytes += len(block)
        if self._fed_bytes - self._expat.CurrentByteIndex > MAX_TOKEN_BYTES:
            raise ValueError(f"it has a tag or comment of more than {MAX_TOKEN_BYTES:,} bytes")

    def take(self) -> list[str]:
        """Return the URLs that were found since the last call."""
        urls, self._urls = self._urls, []
        return urls

    def _refuse(self, *_: object) -> None:
        raise ValueError("it has a document type declaration, which may define entities; remove it")

    def _start(self, name: str, _: dict[str, str]) -> None:
        prefix, _colon, local = name.rpartition(":")
        if not self._path:
            self._prefix = prefix
        if not self._path and local != self._root:
            raise ValueError(f"its root element is {name[:40]!a}, not {self._root}")
        if len(self._path) >= MAX_DEPTH:
            raise ValueError(f"its elements are nested more than {MAX_DEPTH} levels deep")
        self._path.append(local if prefix == self._prefix else name)
        if self._path[1:] == [ENTRIES[self._root], "loc"]:
            self._text, self._chars = [], 0

    def _end(self, _: str) -> None:
        if self._text is not None and self._path[1:] == [ENTRIES[self._root], "loc"]:
            self._urls.append("".join(self._text).strip())
            self._text = None
        self._path.pop()

    def _add(self, text: str) -> None:
        if self._text is not None and self._chars <= MAX_URL_BYTES:
            self._text.append(text)
            self._chars += len(text)
