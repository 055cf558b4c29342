"""The fetches of a list as a stream that is read twice: to check them, then to enqueue them."""

import hashlib
import io
from bisect import bisect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from typing import IO, NamedTuple, Protocol, Self

import msgspec

from fetchfleet.jobs.contract.fetch import Fetch, encode
from fetchfleet.jobs.contract.fetch_list import bounded, error_of, numbered, read_fetch
from fetchfleet.jobs.contract.ids import BATCH_ID_CHARS
from fetchfleet.jobs.contract.urls import UrlError, canonical_url
from fetchfleet.jobs.errors import InvalidFetchError
from fetchfleet.worker.local.lists.rows import BadRow, ListChangedError, Reader, Row
from fetchfleet.worker.local.lists.sources import ListFile

KEPT = 10_000
"""The most fetches of a list that stays in memory, and is enqueued completely or not at all."""

_OF_A_URL = Fetch(url="http://localhost/")

Change = Callable[[Fetch], Fetch]
Wanted = Callable[[Fetch], bool]


class TextReader:
    """The reader of a text: a URL or a JSON object a line."""

    noun = "line"
    description = ""
    is_index = False

    def read(self, file: IO[bytes]) -> Iterator[Row]:
        """Yield the lines that are not skipped."""
        return numbered(bounded(io.TextIOWrapper(file, encoding="utf-8", errors="surrogateescape")))


class Part(NamedTuple):
    """A file of a list, and the reader of its format."""

    file: ListFile
    reader: Reader
    sample: Sequence[str] = ()
    """The first lines of a text."""


class RowPlace(NamedTuple):
    """The place of a fetch in a list."""

    part: Part
    number: int
    """Its number in the file."""

    @property
    def text(self) -> str:
        """The place without its file, such as `line 5`."""
        return f"{self.part.reader.noun} {self.number}"


class Rows:
    """The rows of all files of a list, numbered throughout. Iterating reads the files again."""

    def __init__(self, parts: Sequence[Part], expand: Callable[[str], Iterable[str]] | None = None) -> None:
        """expand: returns the texts that a text stands for."""
        self.parts = parts
        self._expand = expand
        self._starts = [0] * len(parts)
        """For each file, the last number before it."""

    def __iter__(self) -> Iterator[Row]:
        start = 0
        for place, part in enumerate(self.parts):
            self._starts[place] = start
            number = 0
            with part.file.opened() as file:
                if self._expand is None and len(self.parts) == 1:
                    yield from part.reader.read(file)
                    return
                for number, text in part.reader.read(file):
                    if self._expand is None:
                        yield start + number, text
                        continue
                    for expanded in self._expand(text):
                        yield start + number, expanded
            start += number

    def place(self, number: int) -> RowPlace:
        """Return the place of a row that was read."""
        index = bisect(self._starts, number - 1) - 1
        return RowPlace(self.parts[index], number - self._starts[index])

    def other_place(self, number: int, here: int) -> str:
        """Return the place of a row, for an error of the row `here`: with its file if that is another."""
        place = self.place(number)
        file = "" if place.part is self.place(here).part else f" of {place.part.file.name}"
        return f"{place.text}{file}"


class Checked(msgspec.Struct, frozen=True):
    """The findings of the first pass."""

    count: int
    digest: str
    """Of the JSON of all fetches, 64 hex digits."""
    kept: Sequence[Fetch] | None
    """The fetches, if they are few."""
    conflicts: Mapping[int, int]
    """The rows whose dest an earlier row has, each with the number of that row."""


class FetchStream:
    """The fetches of a list that was checked. A context manager that closes the files at its end."""

    def __init__(
        self,
        checked: Checked,
        rows: Rows,
        changes: Sequence[Change] = (),
        select: Callable[[], Wanted] | None = None,
        skipped: int = 0,
    ) -> None:
        """changes, select: those of the first pass. skipped: number of invalid rows."""
        self.count = checked.count
        self.digest = checked.digest
        self.skipped = skipped
        self._checked = checked
        self._rows = rows
        self._changes = changes
        self._select = select

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def notes(self) -> list[str]:
        """The forms of files that are not texts of the usual grammar, each with its first file."""
        first: dict[str, str] = {}
        for part in self._rows.parts:
            if part.reader.description:
                first.setdefault(part.reader.description, part.file.name)
        return [f"{file}: {description}" for description, file in first.items()]

    def close(self) -> None:
        """Close the files."""
        for part in self._rows.parts:
            part.file.close()

    @property
    def batch_id(self) -> str:
        """The batch ID of the list, by which a repeated command finds an interrupted run."""
        return self.digest[:BATCH_ID_CHARS]

    def fetches(self) -> Sequence[Fetch] | Iterator[Fetch]:
        """Return the fetches: a list of at most KEPT, or an iterator, which reads the files again.

        The iterator raises ListChangedError if a file has changed.
        """
        return self._read_again() if self._checked.kept is None else self._checked.kept

    def _read_again(self) -> Iterator[Fetch]:
        count = 0
        wanted = None if self._select is None else self._select()
        for number, text in self._rows:
            if number in self._checked.conflicts or isinstance(text, BadRow):
                continue
            try:
                fetch = read_fetch(text) if text.startswith("{") else fetch_of(canonical_url(text))
                if self._changes:
                    fetch = changed(fetch, self._changes)
            except (InvalidFetchError, UrlError):  # a row that is skipped
                continue
            if wanted is None or wanted(fetch):
                count += 1
                yield fetch
        if count != self.count:
            raise ListChangedError(
                f"the list had {self.count} fetches when it was checked, and has {count} now"
            )


def fetch_of(url: str) -> Fetch:
    """Return the fetch of a canonical URL. It is not checked again, which takes half the time."""
    fetch = copy(_OF_A_URL)
    msgspec.structs.force_setattr(fetch, "url", url)
    return fetch


def in_memory(fetches: Sequence[Fetch]) -> FetchStream:
    """Return the stream of fetches that were read from no list."""
    digest = hashlib.sha256()
    for fetch in fetches:
        digest.update(encode(fetch) + b"\n")
    return FetchStream(Checked(len(fetches), digest.hexdigest(), fetches, {}), Rows([]))


def changed(fetch: Fetch, changes: Iterable[Change]) -> Fetch:
    """Apply changes to a fetch. Raises InvalidFetchError."""
    for change in changes:
        fetch = change(fetch)
    return fetch


class DestCheck(Protocol):
    """The receiver of the fetches of a pass that set a dest."""

    def add(self, number: int, fetch: Fetch) -> None:
        """Add a fetch. May raise InvalidFetchError."""

    def conflicts(self) -> Mapping[int, int]:
        """Return the rows whose dest an earlier row has, each with the number of that row."""


def check(
    rows: Rows,
    reject: Callable[[RowPlace, str, str], None],
    changes: Sequence[Change] = (),
    wanted: Wanted | None = None,
    observe: Callable[[str], None] | None = None,
    dests: DestCheck | None = None,
) -> Checked:
    """Read a list and check every fetch: the first pass.

    reject: called with place, text and error of each invalid row. wanted: returns whether a fetch is used.
    observe: called with the URL of each one. dests: the conflicts of an earlier call; without them, they are
    searched and returned, but not rejected.
    """
    count, digest = 0, hashlib.sha256()
    kept: list[Fetch] = []
    as_listed = not changes and wanted is None
    for number, text in rows:
        try:
            if isinstance(text, BadRow):
                raise InvalidFetchError(text.error)  # noqa: TRY301 caught as that of any row
            if as_listed and count >= KEPT and not text.startswith("{"):
                url = canonical_url(text)  # ASCII without quotes, so its JSON needs no escapes
                digest.update(b'{"url":"%b"}\n' % url.encode())
            else:
                fetch = changed(read_fetch(text), changes)
                if fetch.dest is not None:
                    dests = dests or _dest_log()
                    dests.add(number, fetch)
                if wanted is not None and not wanted(fetch):
                    continue
                url = fetch.url
                digest.update(encode(fetch) + b"\n")
                if count < KEPT:
                    kept.append(fetch)
        except (InvalidFetchError, UrlError) as error:
            reject(rows.place(number), text, error_of(text, error))
            continue
        count += 1
        if observe is not None:
            observe(url)
    conflicts = {} if dests is None else dests.conflicts()
    return Checked(count, digest.hexdigest(), kept if count <= KEPT else None, conflicts)


def _dest_log() -> DestCheck:
    from fetchfleet.worker.local.lists.dest_log import DestLog  # noqa: PLC0415 most lists have no dest

    return DestLog()
