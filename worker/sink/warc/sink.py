"""Bodies as records of WARC segments: no file a fetch, none to create, none to rename."""

import errno
import hashlib
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

from fetchfleet.jobs.contract.body_checks import inline
from fetchfleet.jobs.contract.entry import Entry, PartNote
from fetchfleet.jobs.contract.model import Fetch
from fetchfleet.worker.errors import InTheWayError
from fetchfleet.worker.sink.base import Came, Care, Expected, Kept, Place
from fetchfleet.worker.sink.disk_space import Refusals
from fetchfleet.worker.sink.files.partial import Part
from fetchfleet.worker.sink.files.sink import FileSink, part_of
from fetchfleet.worker.sink.files.takeover import SHA256, Taken
from fetchfleet.worker.sink.index_entry import Old, Record
from fetchfleet.worker.sink.warc import record_format, segments
from fetchfleet.worker.sink.warc.segment import recover
from fetchfleet.worker.sink.warc.segments import Limits, Segments, date_of
from fetchfleet.worker.sink.warc.writer import Writer
from fetchfleet.worker.util import aio

BLOCK = "block"
"""The digest of head and body together, beside those of the body."""


class WarcSink(FileSink):
    """Bodies in segments below one folder; large ones are parts first. Nothing is remembered of them."""

    keeps_heads = True

    def __init__(self, out: Path, worker_id: str, user_agent: str, limits: Limits) -> None:
        super().__init__(out)
        self.writer = Writer(Segments(self.folders, worker_id, user_agent, limits))

    def open(self) -> None:
        """As FileSink does; segments that a dead writer has left are made whole. Raises OSError."""
        super().open()
        try:
            recover(self.folders)
        except InTheWayError as error:
            raise OSError(errno.ENOTDIR, f"no segments can be written, remove this: {error}") from None

    def close(self) -> None:
        """Close the segment at hand and let go of the out folder; again without harm."""
        self.writer.close()
        super().close()

    def refusal(self, fetch: Fetch) -> str | None:
        """A record is no file of some name, and nothing but what was sent."""
        if fetch.dest is not None:
            return "dest: bodies go to WARC segments here, and have no names of their own"
        if fetch.decode:
            return "decode: bodies go to WARC segments here, as they were sent"
        return None

    def receive(
        self,
        entry: Entry,
        token: int,
        expected: Expected,
        care: Care | None = None,
        taken: Taken | None = None,
        came: Came | None = None,
    ) -> "WarcPart":
        """A record for the body of a fetch."""
        assert taken is None
        assert came is not None
        durability = (care or Care()).durability
        place = Place(part_of(entry.id, token), "", None, durability)
        return WarcPart(self, place, expected, sent_of(came, entry.id))

    def take(self, fetch_id: str, note: PartNote, token: int, stop: threading.Event) -> Taken | None:  # noqa: ARG002 as FileSink's
        """None: half an answer is no record, so that none is gone on with."""
        return None

    async def old(self, fetch: Fetch) -> Old | None:  # noqa: ARG002 as FileSink's
        """None: nothing is remembered."""
        return None

    async def size_of(self, path: str) -> int | None:  # noqa: ARG002 as FileSink's
        """None: no file stands in the way of a record."""
        return None

    async def known(self, fetch: Fetch) -> Record | None:  # noqa: ARG002 as FileSink's
        """None: nothing is remembered."""
        return None

    async def at_dest(self, fetch: Fetch) -> Old | None:  # noqa: ARG002 as FileSink's
        """None: there are no names."""
        return None

    def taken_by_the_disk(self) -> None:
        """A record is in its segment: the disk takes what we write."""
        if self.refusals.in_a_row:
            self.refusals = self._tried = Refusals()


class WarcPart(Part):
    """A body on its way into a segment: in memory while it is less than a block, else in a part first."""

    def __init__(self, sink: WarcSink, place: Place, expected: Expected, sent: record_format.Sent) -> None:
        super().__init__(sink, place, expected)
        self._warc = sink
        self._sent = sent
        self._http_head = record_format.response_head(sent.wire)
        self._digests[BLOCK] = hashlib.sha256(self._http_head)
        self._may_place: Callable[[], bool] = lambda: True
        self.durability = place.durability

    @property
    def worth_keeping(self) -> bool:
        """No: half an answer is no record."""
        return False

    async def commit(self, may_place: Callable[[], bool]) -> Kept | None:
        """As Part does; the record is in its segment then, on disk where that is asked for."""
        if self._large:
            await self._pump.flush()
        self._may_place = may_place
        appending = self._warc.writer.append(self)
        await aio.end_of(appending)  # what is in its place counts, although we are cancelled
        placed = appending.result()
        if placed is None:
            return None
        self._warc.taken_by_the_disk()
        return Kept(placed.path, self.size_bytes, self._sha256, placed.offset, placed.length)

    async def keep(self) -> int:
        """0: half an answer is no record."""
        return 0

    def may_place(self) -> bool:
        """Whether the lane is still ours."""
        return self._may_place()

    def record(self) -> segments.Record:
        """Runs off the loop; raises TruncatedBodyError or DigestMismatchError."""
        large = self._large
        if not large:
            self._hash(self._pump.filling)
        self._check()
        ids = uuid4().urn, uuid4().urn
        length_bytes = len(self._http_head) + self.size_bytes
        digests = self._digests[BLOCK].digest(), self._digests[SHA256].digest()
        head = record_format.response(self._sent, ids, *digests, length_bytes)
        before = record_format.request(self._sent, ids[1], ids[0])
        if large:
            return segments.Record(before, (head, self._http_head), self._place.part, self.size_bytes)
        return segments.Record(before, (head, self._http_head, self._pump.filling, record_format.END))


def sent_of(came: Came, fetch_id: str) -> record_format.Sent:
    """What is recorded of an exchange beside its body."""
    request = came.request
    body = inline(request.body, request.body_base64) or b""
    cut = request.body_file is not None
    return record_format.Sent(came.answer.wire(), fetch_id, date_of(datetime.now(UTC)), body, cut)
