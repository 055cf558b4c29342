"""The segments of a worker, one after the other; each is closed when large or old. Every call blocks."""

import itertools
import os
import re
from datetime import UTC, datetime
from typing import NamedTuple, Protocol

from fetchfleet.worker.errors import InTheWayError
from fetchfleet.worker.sink.files.directory import Directory
from fetchfleet.worker.sink.files.partial_file import Block
from fetchfleet.worker.sink.warc import record_format
from fetchfleet.worker.sink.warc.segment import Segment
from fetchfleet.worker.util.clock import mono_s
from fetchfleet.worker.util.file_errors import FileFault, fault_of

MAX_GROUP_BYTES = 16 << 20
"""Bytes in one write, so that the first of many records does not wait for all of them."""

MAX_NAME_CHARS = 100
"""Of the end of an instance's name: its suffix tells workers with one name apart."""


class WarcRecord(NamedTuple):
    """The record of a response, and the record that goes before it."""

    before: Block
    """The record of the request."""
    blocks: tuple[Block, ...]
    """All bytes of the record, or those before a body that is in a partial file."""
    length_bytes: int
    """Length of the response's record."""
    partial: str | None = None
    """The name of that partial file."""
    partial_bytes: int = 0


class RecordPlace(NamedTuple):
    """Where a record is: the segment, its first byte, and its length."""

    path: str
    offset: int
    length: int


class RecordSource(Protocol):
    """A body with a record to append. Its methods are called off the loop."""

    durability: str

    def record(self) -> WarcRecord:
        """Return the record. Raises the fault of the body."""

    def may_place(self) -> bool:
        """Whether the worker still owns the lane; called at the last moment."""


WriteOutcome = RecordPlace | Exception | None
"""None: the worker no longer owns the lane."""


class SegmentLimits(NamedTuple):
    """When a segment is closed; a single larger record has one of its own."""

    max_bytes: int
    max_age_s: float


class _Member(NamedTuple):
    """A source of a group, its place in the list, and its record."""

    place: int
    source: RecordSource
    record: WarcRecord

    @property
    def bytes(self) -> int:
        return len(self.record.before) + self.record.length_bytes


class Segments:
    """The current segment, and those that follow it. One thread at a time."""

    def __init__(self, directory: Directory, instance: str, user_agent: str, limits: SegmentLimits) -> None:
        self._directory = directory
        self._worker = re.sub(r"[^A-Za-z0-9._-]", "_", instance)[-MAX_NAME_CHARS:].lstrip(".") or "worker"
        self._user_agent = user_agent
        self._limits = limits
        self._max_group_bytes = min(MAX_GROUP_BYTES, limits.max_bytes)
        self._serials = itertools.count(1)
        self._current: Segment | None = None

    @property
    def expires_s(self) -> float | None:
        """When the current segment must be closed, on the monotonic clock; None if there is none."""
        return None if self._current is None else self._current.opened_s + self._limits.max_age_s

    def write(self, sources: list[RecordSource]) -> list[WriteOutcome]:
        """Append the records in groups; each group is one write, and succeeds or fails as a whole."""
        outcomes: list[WriteOutcome] = [None] * len(sources)
        group: list[_Member] = []
        group_bytes = 0
        for index, source in enumerate(sources):
            try:
                member = _Member(index, source, source.record())
            except Exception as error:  # noqa: BLE001 the body's own error, of any kind
                outcomes[index] = error
                continue
            # A body in a partial file is a group of its own.
            member_bytes = member.bytes if member.record.partial is None else self._max_group_bytes + 1
            if group_bytes + member_bytes > self._max_group_bytes:
                self._write_group(group, outcomes)
                group, group_bytes = [], 0
            group.append(member)
            group_bytes += member_bytes
        self._write_group(group, outcomes)
        return outcomes

    def close_old(self) -> None:
        """Close the current segment if it is old."""
        if self.expires_s is not None and mono_s() >= self.expires_s:
            self.close()

    def close(self) -> None:
        """Close the current segment; a second call does nothing."""
        if self._current is not None:
            segment, self._current = self._current, None
            segment.close()

    def _write_group(self, group: list[_Member], outcomes: list[WriteOutcome]) -> None:
        owned = [member for member in group if member.source.may_place()]
        if not owned:
            return
        try:
            segment = self._segment_for(sum(member.bytes for member in owned))
            offset = segment.size_bytes
            self._append(segment, owned)
            if segment.gone:  # the records are not where their results would say
                raise self._directory.out_of_place()
        except (OSError, InTheWayError) as error:
            if isinstance(error, OSError) and fault_of(error) is FileFault.SIZE:
                if self._current is not None and self._current.size_bytes > self._current.begin_bytes:
                    self.close()  # it may be the segment that is too large, not the records
                    self._write_group(owned, outcomes)
                    return
                if len(owned) > 1:
                    for member in owned:
                        self._write_group([member], outcomes)
                    return
            for member in owned:
                outcomes[member.place] = type(error)(*error.args)
            return
        for member in owned:
            offset += member.bytes
            length_bytes = member.record.length_bytes
            outcomes[member.place] = RecordPlace(segment.path, offset - length_bytes, length_bytes)

    def _append(self, segment: Segment, group: list[_Member]) -> None:
        """Append and sync a group; on an error the segment is as before, or closed."""
        before_bytes, durability = segment.size_bytes, {member.source.durability for member in group}
        first = group[0].record
        try:
            if first.partial is None:
                records = [member.record for member in group]
                segment.append([block for record in records for block in (record.before, *record.blocks)])
            else:
                file = self._directory.open_partial(first.partial)
                try:
                    segment.append_file((first.before, *first.blocks), file, first.partial_bytes)
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
        """Return the current segment if it takes that many bytes, else a new one.

        Raises OSError or InTheWayError.
        """
        current = self._current
        if current is not None:
            too_large = current.size_bytes + more_bytes > self._limits.max_bytes
            if too_large or current.gone or mono_s() >= current.opened_s + self._limits.max_age_s:
                self.close()
        if self._current is None and not self._directory.in_place():
            raise self._directory.out_of_place()
        while self._current is None:
            now = datetime.now(UTC)
            time = f"{now:%Y%m%d%H%M%S}{now.microsecond // 1000:03d}"
            name = f"{self._worker}-{time}-{next(self._serials):05d}.warc"
            begin = record_format.info(
                record_format.record_id(os.urandom(16)), date_of(now), name, self._user_agent
            )
            try:
                self._current = Segment(self._directory, name, begin)
            except FileExistsError:
                continue
        return self._current


def date_of(moment: datetime) -> str:
    """Format a moment in UTC as WARC 1.1 does (W3C's note on dates)."""
    return moment.isoformat(timespec="microseconds").removesuffix("+00:00") + "Z"
