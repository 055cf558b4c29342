"""The name of a body that has a template, or that does not replace a file of its name.

A body whose name is taken gets the name with its fetch ID. If the file there has the same bytes, it is used
instead, so a repeated attempt leaves no second copy.
"""

import os
import threading
from contextlib import suppress
from io import FileIO
from typing import NamedTuple

from fetchfleet.jobs.contract.checks.field_checks import IfExists
from fetchfleet.jobs.contract.entry import Entry
from fetchfleet.worker.errors import BadDestError, ExistsError, InTheWayError
from fetchfleet.worker.sink.base import HttpExchange
from fetchfleet.worker.sink.files.directory import Directory
from fetchfleet.worker.sink.files.open_file import hashed
from fetchfleet.worker.sink.names import is_content_addressed, path_for, suffixed


class Content(NamedTuple):
    """The complete body."""

    size_bytes: int
    sha256: str
    durability: str
    """The policy's `durability`, which applies to a file that is used in its place too."""


class Place(NamedTuple):
    """The file of a stored body: its own, or an existing one with the same bytes."""

    path: str
    stat: os.stat_result | None = None
    """None if the file was not examined."""


class BodyName:
    """The name of one body. Its methods run off the loop."""

    def __init__(self, entry: Entry, exchange: HttpExchange | None) -> None:
        self._entry = entry
        self._exchange = exchange
        self._on_existing = entry.fetch.on_existing
        self.suffixes = self._on_existing is IfExists.SUFFIX
        """The body gets another name if its name is taken by a file with other bytes, which is read."""

    def _path(self, sha256: str) -> str:
        """Return the path of the body if no other file has it. Raises BadDestError."""
        return path_for(self._entry, self._exchange, sha256)

    def existing(self, directory: Directory, content: Content) -> Place | None:
        """Return the place of a file with these bytes, if the name is derived from them; else None."""
        if not self.suffixes or not is_content_addressed(self._entry):
            return None
        return _same_body(directory, self._path(content.sha256), content)

    def link(self, directory: Directory, file: int, content: Content) -> Place | None:
        """Give an unnamed file the first free name, or return a file with its bytes.

        Returns None on an error, or if no name is free: `put` then decides, or raises the error.
        """
        path, stat = self._path(content.sha256), os.fstat(file)
        with suppress(InTheWayError):
            for candidate in (path, suffixed(path, self._entry.id)) if self.suffixes else (path,):
                if directory.name(file, candidate):
                    return Place(candidate, stat)
                if not self.suffixes or directory.stat(candidate) is None:
                    return None
                same = _same_body(directory, candidate, content)
                if same is not None:
                    return same
        return None

    def put(self, directory: Directory, partial: str, content: Content) -> Place:
        """Give a partial file the first free name, or remove it if a file has its bytes.

        Raises InTheWayError, ExistsError or OSError.
        """
        path = self._path(content.sha256)
        if not self.suffixes:
            replace = self._on_existing is IfExists.REPLACE
            directory.put(partial, path, replace=replace, sync=content.durability == "full")
            return Place(path)
        while True:
            try:
                return self._put_beside(directory, partial, path, content)
            except InTheWayError:
                around = _around_files(directory, path)
                if around == path:  # no file: a symbolic link
                    raise
                path = around  # another worker may take that name too

    def _put_beside(self, directory: Directory, partial: str, path: str, content: Content) -> Place:
        """Give a partial file this path, or that with the fetch ID if another file has the path."""
        sync, last = content.durability == "full", suffixed(path, self._entry.id)
        for candidate in (path, last):
            try:
                directory.put(partial, candidate, replace=False, sync=sync)
            except ExistsError:
                same = _same_body(directory, candidate, content)
                if same is not None:
                    directory.drop(partial)
                    return same
            except InTheWayError:
                if candidate == last:
                    raise
            else:
                return Place(candidate)
        directory.put(partial, last, sync=sync)  # the file there is of an earlier attempt at the same fetch
        return Place(last)


def _same_body(directory: Directory, path: str, content: Content) -> Place | None:
    """Return the place of a file with these bytes, None if it has others.

    Makes it as durable as the policy requires.
    """
    found = directory.stat(path)
    if found is None or found.st_size != content.size_bytes:
        return None
    unreadable = suppress(BadDestError, FileNotFoundError, PermissionError)
    with unreadable, FileIO(directory.open_file(path)) as file:
        found = os.fstat(file.fileno())
        if found.st_size != content.size_bytes:
            return None
        if hashed(file, content.size_bytes, "sha256", threading.Event()).hexdigest() != content.sha256:
            return None
        if content.durability != "none":
            os.fsync(file)
        if content.durability == "full":
            with directory.chain(path.rpartition("/")[0], make=False) as chain:
                for folder in reversed(chain):
                    os.fsync(folder)
        return Place(path, found)
    return None


def _around_files(directory: Directory, path: str) -> str:
    """Return the path with `_` appended to each folder whose name a file has: `a` and `a/b` are both URLs."""
    *folders, name = path.split("/")
    done = ""
    for folder in folders:
        done += folder
        while directory.stat(done) is not None:
            done += "_"
        done += "/"
    return done + name
