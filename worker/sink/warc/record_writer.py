"""Writes one body to a record of a segment."""

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

from fetchfleet.worker.errors import InTheWayError
from fetchfleet.worker.sink.base import Expected
from fetchfleet.worker.sink.files.buffered_body import SHA256, BufferedBody
from fetchfleet.worker.sink.files.open_file import lock
from fetchfleet.worker.sink.files.out_folder import OutFolder
from fetchfleet.worker.sink.files.partial_file import Block, PartialFile, write_all
from fetchfleet.worker.sink.index_entry import StoredAt
from fetchfleet.worker.sink.warc import record_format
from fetchfleet.worker.sink.warc.compression import member, member_pieces
from fetchfleet.worker.sink.warc.record_format import END, OriginalRecord
from fetchfleet.worker.sink.warc.segment import COMPRESSED, PARTIAL
from fetchfleet.worker.sink.warc.segments import NewSegment, PartOfRecord, WarcRecord
from fetchfleet.worker.sink.warc.writer import SegmentWriter
from fetchfleet.worker.util import aio
from fetchfleet.worker.util.executors import run_in, run_stoppable


class _Parts(NamedTuple):
    """The parts of the records of an exchange, besides the body."""

    request: bytes
    """The request record."""
    response: bytes
    """The response record up to the body, or the whole revisit record."""
    digest: str
    """The WARC-Payload-Digest."""
    original: OriginalRecord | None
    """The record that the revisit record refers to."""


class RecordWriter(BufferedBody):
    """Writes one body to a record of a segment. A RecordSource.

    With gzip, a large record is compressed to a file first, in the threads of large bodies, so that the
    records of other bodies do not wait for it. Without, a body of a known large size is received into the
    file of a segment of its own, after space for the heads.
    """

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
        self._may_place: Callable[[], bool] = bool
        self._large: WarcRecord | None = None
        """The record of a large body that is compressed."""
        self._compressed: int | None = None
        """The descriptor of the compressed file, which holds the lock on it."""
        self._own: NewSegment | None = None
        """The segment of a body that has one of its own."""
        self._reserved_bytes = 0
        """The bytes of that segment before the body."""
        self.durability = durability

    @property
    def resumable(self) -> bool:
        """Return False: an incomplete response cannot be recorded."""
        return False

    async def keep(self) -> int:
        """Return 0: an incomplete response is not kept."""
        return 0

    def _reserve(self) -> int:
        """Return the size of what precedes the body in a segment of its own; 0 if it has none.

        It is known before the digest is: IDs and digests have a fixed size.
        """
        segments, body_bytes = self._writer.segments, self._expected.length_bytes or 0
        if not self._writer.compressed and body_bytes >= segments.own_min_bytes:
            self._own = segments.new()
            heads = self._heads(record_format.digest_text(bytes(32)), body_bytes)
            self._reserved_bytes = len(self._own.begin) + sum(map(len, heads))
        return self._reserved_bytes

    async def commit(self, may_place: Callable[[], bool]) -> StoredAt | None:
        """Append the record to a segment. Returns None if may_place returns False.

        Raises TruncatedBodyError, UndersizedBodyError, DigestMismatchError or OSError.
        """
        self._may_place = may_place
        if self._partial is not None:
            await self.drain()
            await self._partial.written()
            if self._writer.compressed:
                self._large = await run_stoppable(self._disk.for_blocks, self._compress, self._partial)
                if self._large is None:
                    return None
                await self._partial.drop()
        stored = None
        if self._own is not None and self._partial is not None:
            stored = await aio.run_to_end(self._place(self._partial, self._own))
        if stored is None:
            self._writer.add(self)
            stored = await self.result_to_end()
        if stored is not None and self._disk.refusals.in_a_row:
            self._disk.accepted()
        return stored

    async def aclose(self) -> None:
        """Remove the temporary files, even if the caller is cancelled."""
        if self._partial is not None:
            await super().aclose()
            if self._writer.compressed:
                await aio.run_to_end(run_in(self._disk.for_names, self._drop_compressed))

    def may_place(self) -> bool:
        """Return whether the worker still owns the lane."""
        return self._may_place()

    def record(self) -> WarcRecord:
        """Return the record. Runs off the loop. Raises the errors of `_checked`."""
        if self._large is not None:
            return self._large
        sha256 = self._checked()
        parts = self._parts()
        if parts.original is not None:
            return self._record(parts, sha256, [parts.response])
        if self._partial is None:
            return self._record(parts, sha256, [parts.response, *self._pieces, END])
        file = PartOfRecord(self._partial.name, self.size_bytes, END, self._reserved_bytes)
        return self._record(parts, sha256, [parts.response], file)

    async def _place(self, large: PartialFile, own: NewSegment) -> StoredAt | None:
        """Make the partial file a segment. Returns None if a record is to be appended to another segment."""
        stored = await run_in(self._disk.for_blocks, self._make_segment, large, own)
        if stored is not None:
            large.on_disk = False
            await large.close(synced=False)
        return stored

    def _make_segment(self, large: PartialFile, own: NewSegment) -> StoredAt | None:
        """See `_place`. Runs off the loop."""
        record = self.record()
        if record.original is not None or not self.may_place():
            return None
        self._disk.directory.confirm(large.opening)
        return self._writer.segments.place(own, record, self.durability)

    def _parts(self) -> _Parts:
        """Return the parts of the records. The digests of the body are complete. Runs off the loop."""
        digest = record_format.digest_text(self._digests[SHA256].digest())
        original = self._writer.known.find(digest, self.size_bytes, self.durability)
        return _Parts(*self._heads(digest, self.size_bytes, original), digest, original)

    def _heads(
        self, digest: str, body_bytes: int, original: OriginalRecord | None = None
    ) -> tuple[bytes, bytes]:
        """Return the request record, and the response record up to the body, or the whole revisit record."""
        recorded, ids = self._recorded, (self._writer.ids.next(), self._writer.ids.next())
        http_head = record_format.response_head(recorded.wire)
        request = record_format.request(recorded, ids[1], ids[0])
        if original is not None:
            return request, record_format.revisit(recorded, ids, http_head, digest, original)
        return request, record_format.response(recorded, ids, http_head, digest, body_bytes)

    def _record(
        self, parts: _Parts, sha256: str, blocks: list[Block], file: PartOfRecord | None = None
    ) -> WarcRecord:
        """Return the records. blocks: those of the response record, without the part in a file."""
        request: list[Block] = [parts.request]
        if self._writer.compressed:
            request, blocks = [member(request)], [member(blocks)] if blocks else []
        return WarcRecord(
            blocks=(*request, *blocks),
            request_bytes=len(request[0]),
            response_bytes=sum(map(len, blocks)) + (0 if file is None else file.size_bytes + len(file.after)),
            body_bytes=self.size_bytes,
            sha256=sha256,
            capture=self._recorded.capture(parts.digest, revisit=parts.original is not None),
            original=parts.original,
            file=file,
        )

    def _compress(self, large: PartialFile, stop: threading.Event) -> WarcRecord | None:
        """Return the record, whose response record is compressed to a file. Runs off the loop.

        Returns None once `stop` is set or the lane is lost.
        """
        sha256 = self._checked()
        parts = self._parts()
        if parts.original is not None:
            return self._record(parts, sha256, [parts.response])
        name, size_bytes, directory = self._compressed_name(), 0, self._disk.directory
        file = directory.open_partial(large.name)
        try:
            self._compressed = directory.create(name)
            lock(self._compressed)
            for piece in member_pieces(parts.response, file, self.size_bytes, END):
                if stop.is_set() or not self.may_place():
                    return None
                if piece:
                    write_all(self._compressed, [piece])
                    size_bytes += len(piece)
        finally:
            os.close(file)
        return self._record(parts, sha256, [], PartOfRecord(name, size_bytes))

    def _drop_compressed(self) -> None:
        if self._compressed is not None:
            with suppress(OSError, InTheWayError):
                self._disk.directory.drop(self._compressed_name())
            os.close(self._compressed)
            self._compressed = None

    def _partial_name(self) -> str:
        return f"{super()._partial_name()}{PARTIAL}"

    def _compressed_name(self) -> str:
        return f"{self._partial_name()}{COMPRESSED}"
