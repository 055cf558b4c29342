"""The output files of a command. They are checked before the work begins, and every error names its file."""

import errno
import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple, Self

from fetchfleet.worker.errors import BAD_USE, CommandError
from fetchfleet.worker.local.output import reports
from fetchfleet.worker.local.output.jsonl_export import STANDARD_OUTPUT
from fetchfleet.worker.local.process import STDOUT, closed_at_start
from fetchfleet.worker.observability import redact


class Outputs(NamedTuple):
    """The outputs of a command that follows a batch."""

    console: Callable[[], Any]
    """Returns the console for messages and progress, the same at each call."""
    report: Path | None = None
    """The file for results."""
    lines_to: str | None = None
    """The file for the records of all bodies, or one of STANDARD_OUTPUT."""
    rejects: Path | None = None
    """The file for invalid lines; if None, an invalid line refuses the list."""
    skipped: int = 0
    """The number of invalid lines that were skipped."""
    out: Path | None = None
    """The folder for bodies, if the command makes it."""
    summary: bool = True
    """Print a summary at the end."""

    def warn(self, message: str, style: str = "red") -> None:
        """Print a line above the progress display."""
        self.console().print(message, style=style, soft_wrap=True)

    def warn_of_redis(self, message: str) -> None:
        """Print that Redis does not answer, or answers again."""
        self.warn(redact.text(message), "yellow")


def check_outputs(file: str, outputs: Outputs) -> None:
    """Raise CommandError if an output cannot be written, or if it is the list or another output."""
    lines_to = outputs.lines_to
    export = None if lines_to is None or lines_to in STANDARD_OUTPUT else Path(lines_to)
    if lines_to in STANDARD_OUTPUT and STDOUT in closed_at_start:
        raise CommandError(f"--lines-to {lines_to}: standard output is closed", BAD_USE)
    files = {"--report": outputs.report, "--lines-to": export, "--skip-invalid": outputs.rejects}
    if outputs.report is not None:
        reports.check_ending("--report", outputs.report)
        reports.check_format("--report", outputs.report, reports.format_of(outputs.report))
        if (lines := reports.lines_of(outputs.report)) != outputs.report:
            files["--report (before its end)"] = lines
    check_distinct({"FILE": None if file == "-" else Path(file), "--out": outputs.out, **files})
    for option, path in files.items():
        if path is not None:
            check_writable(option, path)


def check_writable(option: str, path: Path) -> None:
    """Raise CommandError if the file cannot be written. An existing file is not changed, and none is made."""
    try:
        try:
            mode = path.stat().st_mode
        except FileNotFoundError:
            new = path.resolve()  # the path may be a link to a file that does not exist yet
            os.close(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
            new.unlink()
            return
        if not stat.S_ISFIFO(mode):
            os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY))
        elif not os.access(path, os.W_OK):  # opening and closing a pipe would end its reader
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        remedy = "; make its folder first" if error.errno == errno.ENOENT else ""
        raise CommandError(f"{option} {path}: {error.strerror}{remedy}", BAD_USE) from None


def check_distinct(files: Mapping[str, Path | None]) -> None:
    """Raise CommandError if two files, given by option, are the same. Devices and pipes may be shared."""
    seen: dict[str, str] = {}
    for name, path in files.items():
        try:
            if path is None or (path.exists() and not path.is_file()):
                continue
        except OSError:  # `check_writable` reports it
            continue
        other = seen.setdefault(os.path.realpath(path), name)
        if other != name:
            raise CommandError(f"{other} and {name} are the same file, {path}; give different files", BAD_USE)


class ReportFile:
    """A context manager for the report of a batch, which has one result a line. Raises CommandError."""

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
        status = os.fstat(self._opened.fileno())
        try:
            self._opened.close()
        except OSError as error:
            if kind is None:  # an error in the block takes precedence
                raise self._named(error) from None
        if kind is None and stat.S_ISREG(status.st_mode) and not status.st_nlink:
            raise CommandError(f"--report {self._path}: the file was removed during the run")

    def add(self, lines: bytes) -> None:
        """Append lines. They may be buffered until `flush`. Raises CommandError."""
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
