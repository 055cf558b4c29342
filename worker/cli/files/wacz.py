"""The command `wacz`, which packs the segments of an out folder into one file."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import IO, Annotated

import typer

from fetchfleet.worker.cli.common import console, warn
from fetchfleet.worker.errors import BAD_USE, FAILED, INTERRUPTED, CommandError, InTheWayError
from fetchfleet.worker.local.output.output_files import check_writable
from fetchfleet.worker.sink.files.directory import WARC_FOLDER, Directory
from fetchfleet.worker.sink.files.open_file import lock
from fetchfleet.worker.sink.wacz.archive import Archived, Description, NewFile, segments_of, write_archive
from fetchfleet.worker.util.quantities import count

Out = Annotated[
    Path, typer.Argument(metavar="OUT", help="Out folder of workers with --sink warc, or of `run`.")
]
Target = Annotated[
    Path, typer.Argument(metavar="FILE.wacz", help="File to write. An existing one is replaced.")
]
Title = Annotated[str | None, typer.Option(metavar="TEXT", help="Title of the archive.")]
DescriptionText = Annotated[
    str | None, typer.Option("--description", metavar="TEXT", help="Description of the archive.")
]

TEMPORARY = ".writing"
"""The suffix of the folder in which a command writes. The command holds a lock on it."""


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command(epilog="Example: fetchfleet wacz archive archive.wacz --title 'My archive'")(wacz)


def wacz(out: Out, file: Target, title: Title = None, description: DescriptionText = None) -> None:
    """Pack the WARC segments of an out folder into a WACZ file, with an index and a list of pages.

    Segments that a worker is writing are left out, and the command exits with 1. The file has complete
    requests, with their secrets.
    """
    check_writable("FILE", file)
    described = Description(datetime.now(UTC), title, description)
    directory = Directory(out)
    try:
        directory.open(make=False)
        found = segments_of(directory)
        if not found.closed:
            at = out / WARC_FOLDER
            raise CommandError(
                f"{at}: no closed segment; run workers with --sink warc, and stop them", BAD_USE
            )
        archived = _write(directory, found.closed, file, described)
    except OSError as error:
        place = error.filename if isinstance(error.filename, str) else file
        raise CommandError(f"{place}: {error.strerror}") from None
    except InTheWayError as error:
        raise CommandError(f"{out}: {error}") from None
    except KeyboardInterrupt:
        raise CommandError(f"interrupted; {file} is unchanged", INTERRUPTED) from None
    finally:
        directory.close()
    parts = (
        count(len(found.closed), "segment"),
        count(archived.records, "record"),
        count(archived.pages, "page"),
    )
    console.print(f"{file}: {', '.join(parts)}, {file.stat().st_size:,} bytes", soft_wrap=True)
    if found.still_open:
        still = count(len(found.still_open), "segment is", "segments are")
        warn(f"{still} still being written and left out; stop the workers, then repeat the command")
        raise typer.Exit(FAILED)


def _write(directory: Directory, names: list[str], file: Path, description: Description) -> Archived:
    """Write the archive beside the file, then replace the file. Raises OSError or InTheWayError."""
    _remove_abandoned(file)
    with _locked_folder(file) as folder:
        new = Path(folder) / file.name
        with new.open("wb") as stage:
            archived = write_archive(directory, names, stage, _new_file(folder), description)
            stage.flush()
            os.fsync(stage.fileno())
        new.replace(file)
    return archived


@contextmanager
def _locked_folder(file: Path) -> Iterator[str]:
    """Make a folder beside the file, locked before it has content; remove it at the end."""
    with TemporaryDirectory(dir=file.parent, prefix=f".{file.name}.", suffix=TEMPORARY) as folder:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            lock(descriptor)
            yield folder
        finally:
            os.close(descriptor)


def _remove_abandoned(file: Path) -> None:
    """Remove the folders that killed commands for the file have left. Ignores errors."""
    folders: list[Path] = []
    with suppress(OSError):
        folders = [*file.parent.iterdir()]
    for folder in folders:
        if folder.name.startswith(f".{file.name}.") and folder.name.endswith(TEMPORARY):
            with suppress(OSError):
                _remove_unlocked(folder)


def _remove_unlocked(folder: Path) -> None:
    """Remove a folder unless it is locked, or empty: its command may be about to lock it. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        if os.listdir(descriptor) and lock(descriptor):  # noqa: PTH208 - by descriptor
            shutil.rmtree(folder)
    finally:
        os.close(descriptor)


def _new_file(folder: str) -> NewFile:
    def new_file() -> IO[bytes]:
        return TemporaryFile(dir=folder)

    return new_file
