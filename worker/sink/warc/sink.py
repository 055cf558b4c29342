"""Stores each body as a record of a WARC segment."""

import errno
import hashlib
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fetchfleet.jobs.contract.checks.body_checks import inline
from fetchfleet.jobs.contract.entry import Entry
from fetchfleet.jobs.contract.fetch import Fetch
from fetchfleet.worker.errors import InTheWayError
from fetchfleet.worker.sink.base import Expected, HttpExchange, ResumePoint, StorageOptions
from fetchfleet.worker.sink.files.buffered_body import SHA256, BufferedBody
from fetchfleet.worker.sink.files.directory import WARC_FOLDER, Directory
from fetchfleet.worker.sink.files.out_folder import OutFolder
from fetchfleet.worker.sink.files.partial_file import PartialFile, write_all
from fetchfleet.worker.sink.index_entry import StoredAt
from fetchfleet.worker.sink.warc import record_format
from fetchfleet.worker.sink.warc.compression import member, member_pieces
from fetchfleet.worker.sink.warc.segment import recover
from fetchfleet.worker.sink.warc.segments import Segments, WarcOptions, WarcRecord, date_of
from fetchfleet.worker.sink.warc.writer import SegmentWriter
from fetchfleet.worker.util import aio
from fetchfleet.worker.util.executors import run_in, run_stoppable

BLOCK = "block"
"""The key, among the body's digests, of the sha256 of the record's block: head and body."""


class WarcSink:
    """Stores exchanges in segments below one folder. Bodies are not indexed.

    A large body is written to a partial file first, then copied.
    """

    stores_head_responses = True
    stored = None
    partial_files = None  # an incomplete response cannot be recorded

    def __init__(self, out: Path, instance: str, user_agent: str, options: WarcOptions) -> None:
        self.disk = OutFolder(out)
        self.disk.own_folders.append(WARC_FOLDER)
        self.disk.after_open.append(_recover)
        self._writer = SegmentWriter(Segments(self.disk.directory, instance, user_agent, options))
        self._compressed = options.compressed
        self.disk.before_replace.append(self._writer.close_segment)

    def open(self) -> None:
        """Prepare the out folder, and recover the segments of dead writers. Raises OSError."""
        self.disk.open()

    def close(self) -> None:
        """Close the current segment and release the out folder. A second call does nothing."""
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
    ) -> "RecordWriter":
        """Return a writer for the record of an exchange."""
        assert resume is None
        assert exchange is not None
        request = exchange.request
        recorded = record_format.RecordedExchange(
            exchange.answer.wire(),
            entry.id,
            date_of(datetime.now(UTC)),
            inline(request.body, request.body_base64) or b"",
            body_omitted=request.body_file is not None,
        )
        durability = (options or StorageOptions()).durability
        writer = CompressedRecordWriter if self._compressed else RecordWriter
        return writer(self.disk, self._writer, token, expected, recorded, durability)


def _recover(directory: Directory) -> None:
    try:
        recover(directory)
    except InTheWayError as error:
        raise OSError(errno.ENOTDIR, f"no segments can be written: {error}; remove it") from None


class RecordWriter(BufferedBody):
    """Writes one body to a record of a segment. A RecordSource."""

    def __init__(
        self,
        disk: OutFolder,
        writer: SegmentWriter,
        token: int,
        expected: Expected,
        recorded: record_format.RecordedExchange,
        durability: str,
    ) -> None:
        super().__init__(disk, recorded.fetch_id, token, expected)
        self._writer = writer
        self._recorded = recorded
        self._http_head = b""
        self._may_place: Callable[[], bool] = bool
        self.durability = durability

    @property
    def resumable(self) -> bool:
        """Return False: an incomplete response cannot be recorded."""
        return False

    def _new_digests(self) -> dict[str, Any]:
        """Return new hash objects for the whole body, and one for the block, which has hashed the head."""
        self._http_head = record_format.response_head(self._recorded.wire)
        return {**super()._new_digests(), BLOCK: hashlib.sha256(self._http_head)}

    async def keep(self) -> int:
        """Return 0: an incomplete response is not kept."""
        return 0

    async def commit(self, may_place: Callable[[], bool]) -> StoredAt | None:
        """Append the record to a segment. Returns None if may_place returns False.

        Raises TruncatedBodyError, UndersizedBodyError, DigestMismatchError or OSError.
        """
        self._may_place = may_place
        if self._partial is not None:
            await self.drain()
            await self._partial.written()
            if not await self._prepare(self._partial):
                return None
        self._writer.add(self)
        stored = await self.wait()
        if stored is not None and self._disk.refusals.in_a_row:
            self._disk.accepted()
        return stored

    async def _prepare(self, large: PartialFile) -> bool:  # noqa: ARG002 for compressed records
        """Prepare the record of a body in a partial file. Returns False if the lane is lost."""
        return True

    def may_place(self) -> bool:
        """Return whether the worker still owns the lane."""
        return self._may_place()

    def record(self) -> WarcRecord:
        """Return the record. Runs off the loop. Raises the errors of `_checked`."""
        sha256 = self._checked()
        request, head = self._heads()
        response_bytes = len(head) + self.size_bytes + len(record_format.END)
        if self._partial is None:
            blocks = (request, head, *self._pieces, record_format.END)
            return WarcRecord(blocks, len(request), response_bytes, self.size_bytes, sha256)
        return WarcRecord(
            (request, head),
            len(request),
            response_bytes,
            self.size_bytes,
            sha256,
            self._partial.name,
            self.size_bytes,
            record_format.END,
        )

    def _heads(self) -> tuple[bytes, bytes]:
        """Return the request record, and the response record up to the body. The digests are complete."""
        random, http_head = os.urandom(32), self._http_head
        record_id, request_id = record_format.record_id(random[:16]), record_format.record_id(random[16:])
        digests = self._digests[BLOCK].digest(), self._digests[SHA256].digest()
        block_bytes = len(http_head) + self.size_bytes
        request = record_format.request(self._recorded, request_id, record_id)
        head = record_format.response(self._recorded, (record_id, request_id), *digests, block_bytes)
        return request, head + http_head


class CompressedRecordWriter(RecordWriter):
    """Writes one body to a record that is a gzip member.

    A large record is compressed to a file first, in the threads of large bodies, so that records of other
    bodies do not wait for it.
    """

    _large: WarcRecord | None = None
    """The record of a large body, which is in a file."""

    async def _prepare(self, large: PartialFile) -> bool:
        self._large = await run_stoppable(self._disk.for_blocks, self._compress, large)
        await large.drop()
        return self._large is not None

    async def aclose(self) -> None:
        """Remove the temporary files, even if the caller is cancelled."""
        await super().aclose()
        if self._partial is not None:
            await aio.run_to_end(run_in(self._disk.for_names, self._drop_compressed))

    def record(self) -> WarcRecord:
        """Return the record. Runs off the loop. Raises the errors of `_checked`."""
        if self._large is not None:
            return self._large
        sha256 = self._checked()
        request, head = self._heads()
        request, response = member([request]), member([head, *self._pieces, record_format.END])
        return WarcRecord((request, response), len(request), len(response), self.size_bytes, sha256)

    def _compress(self, large: PartialFile, stop: threading.Event) -> WarcRecord | None:
        """Compress the response record to a file. Runs off the loop.

        Returns None once `stop` is set or the lane is lost.
        """
        sha256 = self._checked()
        request, head = self._heads()
        request, name, size_bytes = member([request]), self._compressed_name(), 0
        directory = self._disk.directory
        file = directory.open_partial(large.name)
        try:
            compressed = directory.create(name)
            try:
                for piece in member_pieces([head], file, self.size_bytes, record_format.END):
                    if stop.is_set() or not self.may_place():
                        return None
                    if piece:
                        write_all(compressed, [piece])
                        size_bytes += len(piece)
            finally:
                os.close(compressed)
        finally:
            os.close(file)
        return WarcRecord((request,), len(request), size_bytes, self.size_bytes, sha256, name, size_bytes)

    def _drop_compressed(self) -> None:
        with suppress(OSError, InTheWayError):
            self._disk.directory.drop(self._compressed_name())

    def _compressed_name(self) -> str:
        return f"{self._partial_name()}.gz"
