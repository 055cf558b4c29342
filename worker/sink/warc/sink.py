"""Stores each body as a record of a WARC segment."""

import errno
import os
from pathlib import Path
from time import time_ns

from fetchfleet.jobs.contract.checks.body_checks import inline
from fetchfleet.jobs.contract.entry import Entry
from fetchfleet.jobs.contract.fetch import Fetch
from fetchfleet.worker.errors import InTheWayError
from fetchfleet.worker.sink.base import Expected, HttpExchange, ResumePoint, StorageOptions
from fetchfleet.worker.sink.files.directory import WARC_FOLDER, Directory
from fetchfleet.worker.sink.files.out_folder import OutFolder
from fetchfleet.worker.sink.warc import record_format
from fetchfleet.worker.sink.warc.known_bodies import MAX_BODIES, KnownBodies
from fetchfleet.worker.sink.warc.record_writer import RecordWriter
from fetchfleet.worker.sink.warc.recovery import BackgroundRecovery, recover
from fetchfleet.worker.sink.warc.segments import Segments, WarcOptions, date_of
from fetchfleet.worker.sink.warc.writer import SegmentWriter


class WarcSink:
    """Stores exchanges in segments below one folder. Bodies are not indexed.

    A large body is written to a partial file first, which is copied or becomes a segment of its own.
    """

    stores_head_responses = True
    store = None
    stored = None
    partial_files = None  # an incomplete response cannot be recorded

    def __init__(self, out: Path, instance: str, user_agent: str, options: WarcOptions) -> None:
        self.disk = OutFolder(out)
        self.disk.own_folders.append(WARC_FOLDER)
        self.disk.after_open.append(self._recover)
        self._recovery = BackgroundRecovery()
        known = KnownBodies(self.disk.directory, MAX_BODIES if options.revisits else 0)
        ids = record_format.RecordIds(os.urandom(16))
        segments = Segments(self.disk.directory, instance, user_agent, options, known, ids)
        self._writer = SegmentWriter(segments, known, ids, compressed=options.compressed)
        self.disk.before_replace.append(self._writer.close_segment)

    def open(self) -> None:
        """Prepare the out folder, and recover the segments of dead writers. Raises OSError."""
        self.disk.open()

    def close(self) -> None:
        """Close the current segment and release the out folder. A second call does nothing."""
        self._recovery.close()
        self._writer.close()
        self.disk.close()

    def refusal(self, fetch: Fetch) -> str | None:
        """Return why the fetch is not supported: `dest` and `name` need a file, `decode` changes the body."""
        if fetch.dest is not None:
            return "dest: this worker stores bodies in WARC segments, not in files of their own"
        if fetch.name is not None:
            return "name: this worker stores bodies in WARC segments, not in files of their own"
        if fetch.decode:
            return "decode: this worker stores bodies in WARC segments, as they were sent"
        return None

    def writer(
        self,
        entry: Entry,
        token: int,
        expected: Expected,
        options: StorageOptions | None = None,
        resume: ResumePoint | None = None,
        exchange: HttpExchange | None = None,
    ) -> RecordWriter:
        """Return a writer for the record of an exchange."""
        assert resume is None
        assert exchange is not None
        request = exchange.request
        recorded = record_format.RecordedExchange(
            exchange.answer.wire(),
            entry.id,
            date_of(time_ns()),
            inline(request.body, request.body_base64) or b"",
            body_omitted=request.body_file is not None,
        )
        durability = (options or StorageOptions()).durability
        return RecordWriter(self.disk, self._writer, token, expected, recorded, durability)

    def _recover(self, directory: Directory) -> None:
        """Recover the segments of dead writers, at the start in the background. Raises OSError."""
        try:
            with directory.chain(WARC_FOLDER):
                pass
        except InTheWayError as error:
            raise OSError(errno.ENOTDIR, f"no segments can be written: {error}; remove it") from None
        if directory is self.disk.directory:
            self._recovery.start(directory)
        else:  # it replaces the open one
            recover(directory)
