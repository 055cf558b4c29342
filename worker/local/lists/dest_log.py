"""The dests of a list of any length, to find fetches that would replace each other's bodies."""

import tempfile
from array import array
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import IO

from fetchfleet.jobs.contract.checks.field_checks import Dests, IfExists
from fetchfleet.jobs.contract.fetch import Fetch
from fetchfleet.jobs.errors import InvalidFetchError
from fetchfleet.worker.local.lists.rows import ListError

IN_MEMORY = 300_000
"""The most dests that are kept in memory; further ones are kept in temporary files too."""
FILES = 64
"""The number of these files. A dest always has the same one, so that one is compared at a time."""
MAX_CONFLICTS = 100_000
FIELDS = 3
"""Integers of a dest: its row and whether a file is kept, its hash, and the one of dest and key."""


class DestLog:
    """A `DestCheck` that compares dests, as 64-bit hashes, after the whole list was read."""

    def __init__(self, in_memory: int = IN_MEMORY) -> None:
        self._in_memory = in_memory
        self._entries = array("q")
        self._files: list[IO[bytes]] = []
        self._stack = ExitStack()

    def add(self, number: int, fetch: Fetch) -> None:
        """Add a fetch that has a dest."""
        keeps = fetch.on_existing is not IfExists.REPLACE
        keyed = 0 if fetch.key is None else hash((fetch.dest, fetch.key))
        self._entries.extend((number * 2 + keeps, hash(fetch.dest), keyed))
        if len(self._entries) >= FIELDS * self._in_memory:
            self._spill()

    def conflicts(self) -> Mapping[int, int]:
        """Return the rows with the dest of an earlier row, each with the number of that. Raises ListError."""
        found: dict[int, int] = {}
        with self._stack:
            if self._files:
                self._spill()
            for entries in self._groups():
                dests = Dests("row")
                for at in range(0, len(entries), FIELDS):
                    row, dest, keyed = entries[at : at + FIELDS]
                    first = dests.add_hash(row // 2, dest, keyed or None, keeps=bool(row & 1))
                    if first is not None:
                        found[row // 2] = first
                if len(found) > MAX_CONFLICTS:
                    raise ListError(
                        f"more than {MAX_CONFLICTS:,} fetches have the dest of an earlier fetch; choose"
                        " others, or set if_exists to skip, fail or suffix on all of them"
                    )
        return dict(sorted(found.items()))

    def _groups(self) -> Iterator["array[int]"]:
        yield self._entries
        for file in self._files:
            file.seek(0)
            entries = array("q")
            entries.frombytes(file.read())
            yield entries

    def _spill(self) -> None:
        """Move the dests to the files."""
        if not self._files:
            make = tempfile.TemporaryFile
            self._files = [self._stack.enter_context(make(prefix="fetchfleet-")) for _ in range(FILES)]
        groups = [array("q") for _ in range(FILES)]
        for at in range(0, len(self._entries), FIELDS):
            entry = self._entries[at : at + FIELDS]
            groups[entry[1] % FILES].extend(entry)
        for file, group in zip(self._files, groups, strict=True):
            file.write(group.tobytes())
        self._entries = array("q")


class KnownConflicts:
    """A `DestCheck` that refuses the rows with the dest of an earlier row."""

    def __init__(self, found: Mapping[int, int], place: Callable[[int, int], str]) -> None:
        """place: returns the place of a row, for an error of the row that is its second argument."""
        self._found = found
        self._place = place

    def add(self, number: int, fetch: Fetch) -> None:
        """Raise InvalidFetchError if the row has the dest of an earlier one."""
        first = self._found.get(number)
        if first is not None:
            raise InvalidFetchError(
                f"dest: {fetch.dest!r} is also the dest of {self._place(first, number)};"
                " choose another, or set if_exists to skip, fail or suffix on both"
            )

    def conflicts(self) -> Mapping[int, int]:
        """Return the conflicts that were found before."""
        return self._found
