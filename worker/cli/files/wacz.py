"""The command `wacz`, which packs the segments of an out folder into one file."""

import os
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import IO, Annotated

import typer

from fetchfleet.worker.cli.common import console, warn
from fetchfleet.worker.errors import BAD_USE, INTERRUPTED, CommandError, InTheWayError
from fetchfleet.worker.local.output.output_files import check_writable
from fetchfleet.worker.sink.files.directory import WARC_FOLDER, Directory
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


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command(epilog="Example: fetchfleet wacz archive archive.wacz --title 'My archive'")(wacz)


def wacz(out: Out, file: Target, title: Title = None, description: DescriptionText = None) -> None:
    """Pack the WARC segments of an out folder into a WACZ file, with an index and a list of pages.

    Segments that a worker is writing are left out. The file has complete requests, with their secrets.
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


def _write(directory: Directory, names: list[str], file: Path, description: Description) -> Archived:
    """Write the archive beside the file, then replace the file. Raises OSError or InTheWayError."""
    with TemporaryDirectory(dir=file.parent, prefix=f".{file.name}.") as folder:
        new = Path(folder) / file.name
        with new.open("wb") as stage:
            archived = write_archive(directory, names, stage, _new_file(folder), description)
            stage.flush()
            os.fsync(stage.fileno())
        new.replace(file)
    return archived


def _new_file(folder: str) -> NewFile:
    def new_file() -> IO[bytes]:
        return TemporaryFile(dir=folder)

    return new_file
