"""The takeover of a partial file by a later attempt.

A stalled worker may still have a partial file open, and write to it when it continues. Each writer therefore
holds a lock on its file, and a takeover requires that lock.
"""

import os
import threading
from collections.abc import Callable, Collection
from contextlib import suppress
from io import FileIO
from typing import Any

from msgspec import Struct

from fetchfleet.jobs.contract.entry import PartialNote
from fetchfleet.worker.errors import InTheWayError
from fetchfleet.worker.sink.base import ResumePoint
from fetchfleet.worker.sink.files.directory import PARTIAL_FILES, partial_name
from fetchfleet.worker.sink.files.open_file import hashed, lock
from fetchfleet.worker.sink.files.out_folder import OutFolder
from fetchfleet.worker.util.executors import HASHING, run_in, run_stoppable


class TakenFile(Struct, frozen=True, eq=False):
    """A partial file after its takeover. See ResumePoint."""

    file: FileIO
    disk: OutFolder
    name: str
    """The file's name in the folder of partial files."""
    offset_bytes: int
    digests: dict[str, Any]

    def close(self) -> None:
        """Close and unlock the file, so that a later attempt can take it over."""
        self.file.close()

    async def drop(self) -> None:
        """Remove the file, in a thread."""

        def drop() -> None:
            self.disk.directory.drop(self.name)
            self.file.close()

        await run_in(self.disk.for_names, drop)

    async def add_digests(self, names: Collection[str]) -> None:
        """Read the file again to add these algorithms to `digests`. Raises OSError."""

        def add(stop: threading.Event) -> None:
            for name in set(names) - self.digests.keys():
                self.digests[name] = hashed(self.file, self.offset_bytes, name, stop)

        await run_stoppable(HASHING, add)


class Takeovers:
    """Takes over partial files in the out folder."""

    def __init__(self, disk: OutFolder) -> None:
        self._disk = disk

    async def take_over(
        self,
        fetch_id: str,
        note: PartialNote,
        token: int,
        *,
        on_cancelled: Callable[[ResumePoint | None], None],
    ) -> TakenFile | None:
        """Lock the partial file of a note and rename it for the lane's token; None if this disk lacks it."""
        return await run_stoppable(HASHING, self.take, fetch_id, note, token, on_cancelled=on_cancelled)

    def take(self, fetch_id: str, note: PartialNote, token: int, stop: threading.Event) -> TakenFile | None:
        """Lock, truncate to the note's offset, hash and rename the partial file. Blocks until then.

        Returns None if the file is missing, locked or shorter than the offset, or once `stop` is set. A
        shorter file is removed.
        """
        directory, offset_bytes = self._disk.directory, note.offset_bytes
        old_name, new_name = partial_name(fetch_id, note.token), partial_name(fetch_id, token)
        try:
            file = FileIO(directory.open_partial(old_name), "r+")
        except (OSError, InTheWayError):
            return None
        taken: TakenFile | None = None
        try:
            if not lock(file.fileno()):
                return None
            # Another attempt may have renamed or removed it before this one had the lock.
            opened, named = os.fstat(file.fileno()), directory.stat(f"{PARTIAL_FILES}/{old_name}")
            if named is None or not os.path.samestat(opened, named):
                return None
            if opened.st_size < offset_bytes:
                directory.drop(old_name)
                return None
            file.truncate(offset_bytes)
            digest = hashed(file, offset_bytes, "sha256", stop)
            if not stop.is_set():
                directory.rename_partial(old_name, new_name)
                taken = TakenFile(file, self._disk, new_name, offset_bytes, {"sha256": digest})
        except OSError:
            with suppress(OSError):  # the file cannot be read back: do not append to it
                directory.drop(old_name)
        finally:
            if taken is None:
                file.close()
        return taken
