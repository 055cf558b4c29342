"""A worker's segments, one after the other, each closed when it is large or old. Everything here blocks."""

import itertools
import os
import re
from datetime import UTC, datetime
from typing import NamedTuple, Protocol
from uuid import uuid4

from fetchfleet.worker.errors import InTheWayError
from fetchfleet.worker.sink.files.directory import Folders
from fetchfleet.worker.sink.files.open_file import Block
from fetchfleet.worker.sink.warc import record_format
from fetchfleet.worker.sink.warc.segment import Segment
from fetchfleet.worker.util.clock import mono_s

MOST_AT_ONCE_BYTES = 16 << 20
"""In one write: the first of many need not wait for all of them."""


class Record(NamedTuple):
    """One to be appended, and what goes before it.

    blocks: all of its bytes, or those before the body that a part has, of so many bytes.
    """

    before: Block
    blocks: tuple[Block, ...]
    part: str | None = None
    part_bytes: int = 0

    @property
    def length_bytes(self) -> int:
        """Of the record itself."""
        end = len(record_format.END) if self.part is not None else 0
        return sum(len(block) for block in self.blocks) + self.part_bytes + end


class Placed(NamedTuple):
    """Where a record is: in that segment, from that byte, so many bytes."""

    path: str
    offset: int
    length: int


class Job(Protocol):
    """What has a record to append; its methods are called off the loop, may_place at the last moment."""

    durability: str

    def record(self) -> Record:
        """The record; raises what is wrong with the body."""

    def may_place(self) -> bool:
        """Whether it still counts."""


Outcome = Placed | Exception | None
"""A place, what was wrong, or None: it counts no more."""


class Limits(NamedTuple):
    """When a segment is closed: before it is larger than that, or so long after it was opened."""

    max_bytes: int = 1 << 30
    max_age_s: float = 3600.0


class _Member(NamedTuple):
    """One of those that are written together; place: among all that came."""

    place: int
    job: Job
    record: Record

    @property
    def bytes(self) -> int:
        return len(self.record.before) + self.record.length_bytes


class Segments:
    """The segment at hand, and those that follow it; for one thread at a time."""

    def __init__(self, folders: Folders, worker_id: str, user_agent: str, limits: Limits) -> None:
        self._folders = folders
        self._worker = re.sub(r"[^A-Za-z0-9._-]", "_", worker_id)[:100].lstrip(".") or "worker"
        self._user_agent = user_agent
        self._limits = limits
        self._most_bytes = min(MOST_AT_ONCE_BYTES, limits.max_bytes)
        self._serials = itertools.count(1)
        self._open: Segment | None = None

    @property
    def expires_s(self) -> float | None:
        """When the segment at hand is to be closed, on the monotonic clock; None if there is none."""
        return None if self._open is None else self._open.opened_s + self._limits.max_age_s

    def write(self, jobs: list[Job]) -> list[Outcome]:
        """What became of each; those of one write, and one sync, all go well or all do not."""
        outcomes: list[Outcome] = [None] * len(jobs)
        group: list[_Member] = []
        group_bytes = 0
        for place, job in enumerate(jobs):
            try:
                member = _Member(place, job, job.record())
            except Exception as error:  # noqa: BLE001 whatever it is, it is the job's own
                outcomes[place] = error
                continue
            member_bytes = member.bytes if member.record.part is None else self._most_bytes + 1
            if group_bytes + member_bytes > self._most_bytes:
                self._write_group(group, outcomes)
                group, group_bytes = [], 0
            group.append(member)
            group_bytes += member_bytes
        self._write_group(group, outcomes)
        return outcomes

    def close_old(self) -> None:
        """Close the segment at hand if it is old."""
        if self.expires_s is not None and mono_s() >= self.expires_s:
            self.close()

    def close(self) -> None:
        """Close the segment at hand; again without harm."""
        if self._open is not None:
            segment, self._open = self._open, None
            segment.close()

    def _write_group(self, group: list[_Member], outcomes: list[Outcome]) -> None:
        live = [member for member in group if member.job.may_place()]
        if not live:
            return
        try:
            segment = self._that_takes(sum(member.bytes for member in live))
            offset = segment.size_bytes
            self._append(segment, live)
        except (OSError, InTheWayError) as error:
            for member in live:
                outcomes[member.place] = type(error)(*error.args)
            return
        for member in live:
            offset += member.bytes
            length_bytes = member.record.length_bytes
            outcomes[member.place] = Placed(segment.path, offset - length_bytes, length_bytes)

    def _append(self, segment: Segment, live: list[_Member]) -> None:
        before_bytes, durability = segment.size_bytes, {member.job.durability for member in live}
        try:
            if live[0].record.part is not None:
                self._append_large(segment, live[0].record)
            else:
                together = [member.record for member in live]
                segment.append([block for one in together for block in (one.before, *one.blocks)])
            if durability != {"none"}:
                segment.sync(name="full" in durability)
        except (OSError, InTheWayError):
            segment.cut(before_bytes)
            if segment.broken:
                self.close()
            raise

    def _append_large(self, segment: Segment, record: Record) -> None:
        assert record.part is not None
        file = self._folders.open_part(record.part)
        try:
            segment.append_file((record.before, *record.blocks), file, record.part_bytes)
        finally:
            os.close(file)

    def _that_takes(self, more_bytes: int) -> Segment:
        """The segment for so much more; raises OSError or InTheWayError."""
        at_hand = self._open
        if at_hand is not None:
            too_large = at_hand.size_bytes + more_bytes > self._limits.max_bytes
            if too_large or at_hand.gone or mono_s() >= at_hand.opened_s + self._limits.max_age_s:
                self.close()
        if self._open is None:
            self._open = self._next()
        return self._open

    def _next(self) -> Segment:
        while True:
            now = datetime.now(UTC)
            time = f"{now:%Y%m%d%H%M%S}{now.microsecond // 1000:03d}"
            name = f"{self._worker}-{time}-{next(self._serials):05d}.warc"
            begin = record_format.info(uuid4().urn, date_of(now), name, self._user_agent)
            try:
                return Segment(self._folders, name, begin)
            except FileExistsError:
                continue


def date_of(moment: datetime) -> str:
    """A moment in UTC as WARC 1.1 writes it (W3C's note on dates)."""
    return moment.replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"
