"""Going on with a body that broke off: its first half is kept on disk, and its note with the fetch."""

import asyncio
from collections.abc import Collection
from typing import Self

import msgspec

from fetchfleet.jobs.contract.entry import Entry, Hop, PartNote
from fetchfleet.worker.errors import BadDestError, DigestMismatchError, OverlongBodyError
from fetchfleet.worker.fetch.rules.range_rules import (
    Append,
    RangeVerdict,
    Validator,
    asked_on,
    asks_on,
    judged,
    url_digest,
    validator_of,
)
from fetchfleet.worker.fetch.services import FetchServices
from fetchfleet.worker.http.base import Answer
from fetchfleet.worker.lanes import settler
from fetchfleet.worker.lanes.lane import Lane
from fetchfleet.worker.sink.base import BodyWriter, ResumePoint
from fetchfleet.worker.util.clock import mono_s

CHECKPOINT_BYTES = 64 << 20
CHECKPOINT_S = 10.0
"""So much of a body, or what comes in so long, is fetched again after a crash."""

_OF_NO_USE = (DigestMismatchError, OverlongBodyError, BadDestError)
"""After these what is on disk is not half of what is wanted."""


class Resuming:
    """One attempt's dealings with the half of a body: `note` is what the fetch is to carry on."""

    def __init__(self, entry: Entry, lane: Lane, services: FetchServices) -> None:
        self._id = entry.id
        self._batch_id = entry.batch_id
        self._whole_only = entry.fetch.decode or entry.fetch.lines
        """What is looked into as it comes is looked into from its beginning."""
        self._lane = lane
        self._parts = services
        self.note = entry.part
        self.taken: ResumePoint | None = None
        self.verdict: Append | RangeVerdict = RangeVerdict.NOTHING

    async def asked(self, request: Hop) -> Hop:
        """The request, for the rest of the body if its first half is here."""
        self.close()
        self.verdict = RangeVerdict.NOTHING
        if self.note is None or not asks_on(request, self.note):
            return request
        await self._take(self.note)
        return asked_on(request, self.note) if self.taken is not None else request

    async def judge(self, answer: Answer) -> Append | RangeVerdict:
        """What the answer means for the half that is here; NOTHING where nothing was asked on."""
        if self.taken is None or self.note is None:
            return RangeVerdict.NOTHING
        self.verdict = judged(self.note, answer.status, answer.header)
        if self.verdict in {RangeVerdict.RESTART, RangeVerdict.REFUSE}:
            await self.taken.drop()
            self.taken = None
            self._carry(None)
        return self.verdict

    def close(self) -> None:
        """What was taken and not used stays for another attempt."""
        if self.taken is not None:
            self.taken.close()
            self.taken = None

    async def hash_by(self, names: Collection[str]) -> None:
        """Have the half that is here hashed by these too. Raises OSError."""
        if self.taken is not None and names:
            await self.taken.hash_by(names)

    def whole_bytes(self, coming_bytes: int | None) -> int | None:
        """How long the whole body is, None if it is not known; coming_bytes: the answer's own, the same."""
        match self.verdict:
            case Append(total_bytes):
                return total_bytes
            case RangeVerdict.COMPLETE if self.note is not None:
                return self.note.offset_bytes
            case _:
                return coming_bytes

    def keeping(self, part: BodyWriter, request: Hop, answer: Answer) -> "Keeping":
        """What has come of the body when this block breaks off is kept, where it may be gone on with."""
        return Keeping(self, part, request, answer)

    async def begins(self) -> None:
        """A body comes: what is here of another URL than its own is wanted no more."""
        if self.note is not None and self.taken is None:
            await asyncio.wrap_future(self._parts.sink.disk.forget(self._id, self.note))
            self._carry(None)

    async def broke_off(self, error: BaseException, part: BodyWriter, request: Hop, answer: Answer) -> None:
        """No more comes of the body."""
        if isinstance(error, _OF_NO_USE):
            self._carry(None)
        else:
            await self._keep(part, self.note_of(request, answer))

    def carry(self, note: PartNote) -> None:
        """The fetch carries the note from now on, also in Redis."""
        self._carry(note)
        entry = self._lane.entries.get(self._id)
        if entry is not None and not self._lane.lost:
            self._parts.settler.add(self._lane, settler.noted(entry))

    async def _take(self, note: PartNote) -> None:
        """The part as ours. It is hashed anew, which takes as long as reading it."""
        ours = msgspec.structs.replace(note, token=self._lane.token)

        def took(taken: ResumePoint | None) -> None:
            self.taken = taken
            if taken is not None:
                self.carry(ours)

        partial_files = self._parts.sink.partial_files
        if partial_files is not None:
            took(await partial_files.take_over(self._id, note, ours.token, in_vain=took))
        if self.taken is None:
            self._carry(None)

    async def _keep(self, part: BodyWriter, note: PartNote | None) -> None:
        wanted = not self._lane.lost and self._batch_id not in self._lane.cancelled
        if note is not None and note.total_bytes is not None:
            wanted = wanted and part.size_bytes <= note.total_bytes
        offset_bytes = await part.keep() if note is not None and wanted else 0
        if note is None or not offset_bytes:
            self._carry(None)
            return
        self._carry(msgspec.structs.replace(note, offset_bytes=offset_bytes))

    def note_of(self, request: Hop, answer: Answer) -> PartNote | None:
        """What to carry, but for the offset, if this body breaks off; None if it may not be gone on with."""
        total_bytes = self.whole_bytes(answer.length_bytes)
        if isinstance(self.verdict, Append) and self.note is not None:
            return msgspec.structs.replace(self.note, total_bytes=total_bytes)
        validator: Validator | None = validator_of(request, answer.status, answer.header)
        if validator is None or self._whole_only:
            return None
        return PartNote(
            token=self._lane.token,
            offset_bytes=1,
            of=url_digest(request.url),
            etag=validator.etag,
            last_modified=validator.last_modified,
            total_bytes=total_bytes,
        )

    def _carry(self, note: PartNote | None) -> None:
        """Whoever settles the fetch, or hands it back, finds the note with it."""
        self.note = note
        entry = self._lane.entries.get(self._id)
        if entry is not None:
            self._lane.entries[self._id] = msgspec.structs.replace(entry, part=note)


class Keeping:
    """A body on its way: now and then what has come is brought to disk for good and noted, against a crash.

    A context; what has come when it breaks off is kept, where it may be gone on with.
    """

    def __init__(self, resuming: Resuming, part: BodyWriter, request: Hop, answer: Answer) -> None:
        self._resuming = resuming
        self._part = part
        self._request = request
        self._answer = answer
        self._last_s = mono_s()
        self._last_bytes = part.size_bytes

    async def __aenter__(self) -> Self:
        await self._resuming.begins()
        return self

    async def __aexit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if error is not None:
            await self._resuming.broke_off(error, self._part, self._request, self._answer)

    async def after_chunk(self) -> None:
        """Once it is time. Raises OSError."""
        came_bytes = self._part.size_bytes - self._last_bytes
        late = came_bytes >= CHECKPOINT_BYTES or mono_s() - self._last_s >= CHECKPOINT_S
        if not late or not self._part.worth_keeping:
            return
        note = self._resuming.note_of(self._request, self._answer)
        offset_bytes = await self._part.sync() if note is not None else self._part.size_bytes
        self._last_s, self._last_bytes = mono_s(), offset_bytes
        if note is not None:
            self._resuming.carry(msgspec.structs.replace(note, offset_bytes=offset_bytes))
