"""The files that a command writes for its user: checked before the work begins, and named in every error."""

import errno
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Self

from fetchfleet.worker.errors import BAD_USE, CommandError


def check_writable(option: str, path: Path) -> None:
    """Raise CommandError, which names option, file and reason, if the file cannot be written.

    A file that is there stays as it is, and none is left that was not there.
    """
    try:
        try:
            mode = path.stat().st_mode
        except FileNotFoundError:
            new = path.resolve()  # the path may be a link to a file that is not there yet
            os.close(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
            new.unlink()
            return
        if not stat.S_ISFIFO(mode):
            os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY))
        elif not os.access(path, os.W_OK):  # opening and closing a pipe would end its reader
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        remedy = "; its folder must be there before" if error.errno == errno.ENOENT else ""
        raise CommandError(f"{option} {path}: {error.strerror}{remedy}", BAD_USE) from None


def check_distinct(files: Mapping[str, Path | None]) -> None:
    """Raise CommandError if two of the files, by what they are given as, are the same; not for devices."""
    seen: dict[str, str] = {}
    for name, path in files.items():
        try:
            if path is None or (path.exists() and not path.is_file()):
                continue
        except OSError:  # `check_writable` says why no such file can be
            continue
        other = seen.setdefault(os.path.realpath(path), name)
        if other != name:
            raise CommandError(f"{other} and {name} are the same file, {path}: give each its own", BAD_USE)


class ReportFile:
    """The results of a batch, one JSON line each. A context manager; its errors name the file."""

    def __init__(self, path: Path, *, append: bool) -> None:
        self._path = path
        self._mode = "ab" if append else "wb"
        self._file: IO[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self._file = self._path.open(self._mode)
        except OSError as error:
            raise self._named(error) from None
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        found = os.fstat(self._opened.fileno())
        try:
            self._opened.close()
        except OSError as error:
            if kind is None:  # else the error under way is the first one
                raise self._named(error) from None
        if kind is None and stat.S_ISREG(found.st_mode) and not found.st_nlink:
            raise CommandError(f"--report {self._path}: was removed while it was written")

    def add(self, lines: bytes) -> None:
        """Append lines, which may stay in memory until `flush`. Raises CommandError."""
        try:
            self._opened.write(lines)
        except OSError as error:
            raise self._named(error) from None

    def flush(self) -> None:
        """Pass all lines to the operating system. Raises CommandError."""
        try:
            self._opened.flush()
        except OSError as error:
            raise self._named(error) from None

    @property
    def _opened(self) -> IO[bytes]:
        assert self._file is not None
        return self._file

    def _named(self, error: OSError) -> CommandError:
        return CommandError(f"--report {self._path}: {error.strerror}")
