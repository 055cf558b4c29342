"""The segments of a worker, written one after the other; closed when large or old. Every call blocks."""

import errno
import itertools
import os
import re
from contextlib import suppress
from datetime import UTC, datetime
from functools import lru_cache
from time import time_ns
from typing import NamedTuple, Protocol

from fetchfleet.worker.errors import InTheWayError
from fetchfleet.worker.sink.cdxj.line import Capture
from fetchfleet.worker.sink.files.directory import Directory
from fetchfleet.worker.sink.files.partial_file import Block
from fetchfleet.worker.sink.index_entry import StoredAt
from fetchfleet.worker.sink.warc import record_format
from fetchfleet.worker.sink.warc.compression import member
from fetchfleet.worker.sink.warc.known_bodies import MIN_BYTES, KnownBodies
from fetchfleet.worker.sink.warc.record_format import OriginalRecord
from fetchfleet.worker.sink.warc.segment import COMPRESSED, Segment
from fetchfleet.worker.util.clock import mono_s
from fetchfleet.worker.util.file_errors import FileFault, fault_of

MAX_GROUP_BYTES = 16 << 20
"""Maximum bytes of one write. Bounds the wait of the first of many records."""

OWN_MIN_BYTES = 16 << 20
"""See `Segments.own_min_bytes`. It bounds the number of segments, and the bytes that are copied."""

MILLISECOND_DIGITS = 17
"""The digits of a time in the name of a segment."""

MAX_NAME_CHARS = 100
"""Maximum characters from the end of an instance's name, whose suffix makes it unique."""


class PartOfRecord(NamedTuple):
    """The end of a record that is in a partial file, from an offset on."""

    name: str
    """The name of the partial file."""
    size_bytes: int
    """The size of that part."""
    after: bytes = b""
    """The bytes of the record after that file."""
    offset: int = 0
    """The offset of the part in the file."""


class WarcRecord(NamedTuple):
    """The record of a request and the record of its response."""

    blocks: tuple[Block, ...]
    """All bytes of both records, or those before a part that is in a file."""
    request_bytes: int
    """Size of the request record in the segment."""
    response_bytes: int
    """Size of the response or revisit record in the segment."""
    body_bytes: int
    sha256: str
    """The body's digest, in hex."""
    capture: Capture
    """The response or revisit record in the index."""
    original: OriginalRecord | None = None
    """The response record with the body of a revisit record."""
    file: PartOfRecord | None = None
    """The part in a file, if there is one."""

    @property
    def bytes(self) -> int:
        """The size of both records in the segment."""
        return self.request_bytes + self.response_bytes


class RecordSource(Protocol):
    """A body whose record is to be appended. Methods are called off the loop, except `notify`."""

    durability: str
    """The policy's `durability`: "none", "file" or "full"."""

    def may_place(self) -> bool:
        """Return whether the worker still owns the lane. Called just before the record is appended."""

    def record(self) -> WarcRecord:
        """Return the record. Raises the error of the body's checks."""

    def set_result(self, result: StoredAt | None) -> None:
        """Set the place of the record; None if the worker no longer owns the lane."""

    def set_error(self, error: BaseException) -> None:
        """Set the error that prevented the record."""

    def notify(self) -> None:
        """Report the outcome. Called on the loop."""


_Group = list[tuple[RecordSource, WarcRecord]]
"""Records that are appended by one write."""


class NewSegment(NamedTuple):
    """The start of a segment."""

    name: str
    begin: bytes
    """Its first record."""


class WarcOptions(NamedTuple):
    """The form and the limits of segments."""

    max_bytes: int
    """The size before which a segment is closed. A larger record gets a segment of its own."""
    max_age_s: float
    """The age at which a segment is closed."""
    compressed: bool = False
    """Each record of a new segment is a gzip member."""
    revisits: bool = False
    """A body that is stored already becomes a revisit record."""


class Segments:
    """Writes the segments of a worker, one after the other. Not thread-safe."""

    def __init__(
        self,
        directory: Directory,
        instance: str,
        user_agent: str,
        options: WarcOptions,
        known: KnownBodies,
        ids: record_format.RecordIds,
    ) -> None:
        self._directory = directory
        self._known = known
        self._ids = ids
        self._worker = re.sub(r"[^A-Za-z0-9._-]", "_", instance)[-MAX_NAME_CHARS:].lstrip(".") or "worker"
        self._user_agent = user_agent
        self._options = options
        self.own_min_bytes = min(OWN_MIN_BYTES, options.max_bytes)
        """The size of a body without compression from which it is written into a segment of its own."""
        self._max_group_bytes = min(MAX_GROUP_BYTES, options.max_bytes)
        self._serials = itertools.count(1)
        self._current: Segment | None = None

    @property
    def expires_s(self) -> float | None:
        """The monotonic time at which the current segment must be closed; None without a segment."""
        return None if self._current is None else self._current.opened_s + self._options.max_age_s

    def write(self, sources: list[RecordSource]) -> None:
        """Append the sources' records in groups. The records of a group succeed or fail together."""
        group: _Group = []
        group_bytes = 0
        for source in sources:
            try:
                record = source.record()
            except Exception as error:  # noqa: BLE001 the body's own error, of any kind
                source.set_error(error)
                continue
            # A record in a partial file is a group of its own.
            own_bytes = record.bytes if record.file is None else self._max_group_bytes + 1
            if group_bytes + own_bytes > self._max_group_bytes:
                self._write_group(group)
                group, group_bytes = [], 0
            group.append((source, record))
            group_bytes += own_bytes
        self._write_group(group)

    def close_old(self) -> None:
        """Close the current segment if it has reached its maximum age."""
        if self.expires_s is not None and mono_s() >= self.expires_s:
            self.close()

    def close(self) -> None:
        """Close the current segment. A second call does nothing."""
        if self._current is not None:
            segment, self._current = self._current, None
            segment.close()

    def _write_group(self, group: _Group) -> None:
        owned: _Group = []
        for source, record in group:
            if source.may_place():
                owned.append((source, record))
            else:
                source.set_result(None)
        if not owned:
            return
        try:
            segment = self._segment_for(sum([record.bytes for _, record in owned]))
            offset = segment.size_bytes
            self._append(segment, owned)
            if segment.gone:  # the results would point to missing records
                raise self._directory.out_of_place()
        except (OSError, InTheWayError) as error:
            if isinstance(error, OSError) and fault_of(error) is FileFault.SIZE:
                if self._current is not None and self._current.size_bytes > self._current.first_record_bytes:
                    self.close()  # try the records in a new segment
                    self._write_group(owned)
                    return
                if len(owned) > 1:
                    for one in owned:
                        self._write_group([one])
                    return
            for source, _ in owned:
                source.set_error(type(error)(*error.args))
            return
        for source, record in owned:
            offset += record.request_bytes
            source.set_result(self._stored(segment, record, offset))
            offset += record.response_bytes

    def _stored(self, segment: Segment, record: WarcRecord, offset: int) -> StoredAt:
        """Index a record that is in its segment. Returns the place of the record that has the body."""
        at = segment.path, offset, record.response_bytes
        segment.index.add(record.capture, offset, record.response_bytes)
        if record.original is not None:
            at = record.original.path, record.original.offset, record.original.length
        elif record.body_bytes >= MIN_BYTES:
            self._known.add(record.capture.digest, *at)
        path, offset, length = at
        return StoredAt(path, record.body_bytes, record.sha256, offset, length)

    def _append(self, segment: Segment, group: _Group) -> None:
        """Append and sync a group. On an error the segment is unchanged, or closed."""
        before_bytes, durability = segment.size_bytes, {source.durability for source, _ in group}
        first = group[0][1]
        try:
            if first.file is None:
                segment.append([block for _, record in group for block in record.blocks])
            else:
                file = self._directory.open_partial(first.file.name)
                try:
                    _, size_bytes, after, offset = first.file
                    segment.append_file(first.blocks, file, offset, size_bytes, after)
                finally:
                    os.close(file)
            if durability != {"none"}:
                segment.sync(name="full" in durability)
        except (OSError, InTheWayError):
            segment.cut(before_bytes)
            if segment.broken:
                self.close()
            raise

    def _segment_for(self, more_bytes: int) -> Segment:
        """Return the current segment if that many bytes fit, else a new one.

        Raises OSError or InTheWayError.
        """
        current = self._current
        if current is not None:
            too_large = current.size_bytes + more_bytes > self._options.max_bytes
            if too_large or current.gone or mono_s() >= current.opened_s + self._options.max_age_s:
                self.close()
        if self._current is None and not self._directory.in_place():
            raise self._directory.out_of_place()
        while self._current is None:
            with suppress(FileExistsError):
                self._current = Segment(self._directory, *self.new())
        return self._current

    def new(self) -> NewSegment:
        """Return the name and the first record of another segment. Thread-safe."""
        date = date_of(time_ns())
        time = re.sub(r"\D", "", date)[:MILLISECOND_DIGITS]
        suffix = COMPRESSED if self._options.compressed else ""
        name = f"{self._worker}-{time}-{next(self._serials):05d}.warc{suffix}"
        begin = record_format.info(self._ids.next(), date, name, self._user_agent)
        return NewSegment(name, member([begin]) if suffix else begin)

    def place(self, new: NewSegment, record: WarcRecord, durability: str) -> StoredAt | None:
        """Make the partial file of a record a segment of its own, which is closed at once. Thread-safe.

        The part begins after the first record and the blocks. Returns None if the file cannot be moved.
        Raises OSError or InTheWayError.
        """
        assert record.file is not None
        assert record.file.offset == len(new.begin) + sum(map(len, record.blocks))
        try:
            segment = Segment(self._directory, *new, record.file.name)
        except OSError as error:
            if error.errno in {errno.EXDEV, errno.EEXIST}:
                return None
            raise
        try:
            segment.append_around(record.blocks, record.file.size_bytes, record.file.after)
            if durability != "none":
                segment.sync(name=durability == "full")
            if segment.gone:
                raise self._directory.out_of_place()
        except (OSError, InTheWayError):
            segment.discard()
            raise
        stored = self._stored(segment, record, len(new.begin) + record.request_bytes)
        segment.close()
        return stored


def date_of(unix_ns: int) -> str:
    """Format a Unix time as a WARC-Date with microseconds (WARC 1.1, section 5.4)."""
    unix_s, ns = divmod(unix_ns, 1_000_000_000)
    return f"{_second_of(unix_s)}.{ns // 1000:06}Z"


@lru_cache(1)
def _second_of(unix_s: int) -> str:
    return f"{datetime.fromtimestamp(unix_s, UTC):%Y-%m-%dT%H:%M:%S}"
