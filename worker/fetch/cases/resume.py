"""Resume a body that broke off: its first part is kept on disk, and a note of it with the fetch."""

import asyncio
from collections.abc import Collection

import msgspec

from fetchfleet.jobs.contract.entry import Entry, Hop, PartialNote
from fetchfleet.worker.errors import BadDestError, DigestMismatchError, OverlongBodyError
from fetchfleet.worker.fetch.rules.range_rules import (
    Append,
    RangeVerdict,
    asked_on,
    asks_on,
    judged,
    url_digest,
    validator_of,
)
from fetchfleet.worker.fetch.services import FetchSession
from fetchfleet.worker.http.exchange import Answer
from fetchfleet.worker.lanes import settler
from fetchfleet.worker.sink.base import BodyWriter, HttpExchange, ResumePoint

_USELESS_AFTER = (DigestMismatchError, OverlongBodyError, BadDestError)
"""After these errors the partial body is not a part of the wanted one."""


class Resume:
    """The partial body of one attempt."""

    def __init__(self, session: FetchSession, entry: Entry) -> None:
        self._entry = entry
        self._lane = session.lane
        self._session = session
        self.note = entry.part
        """The note that the fetch carries on."""
        self.taken: ResumePoint | None = None
        """The partial body on this worker's disk, while it is open."""
        self.verdict: Append | RangeVerdict = RangeVerdict.NOTHING

    async def asked(self, request: Hop) -> Hop:
        """Return the request, for the rest of the body if this worker has its first part.

        Opening the partial file takes as long as reading it: it is hashed again.
        """
        self.close()
        self.verdict = RangeVerdict.NOTHING
        note, partial_files = self.note, self._session.services.sink.partial_files
        if note is None or not asks_on(request, note):
            return request
        own_note = msgspec.structs.replace(note, token=self._lane.token)

        def opened(taken: ResumePoint | None) -> None:
            self.taken = taken
            if taken is not None:
                self._carry_in_redis(own_note)

        if partial_files is not None:
            opened(await partial_files.take_over(self._entry.id, note, own_note.token, on_cancelled=opened))
        if self.taken is None:
            self._carry(None)
            return request
        return asked_on(request, own_note)

    async def judge(self, answer: Answer) -> Append | RangeVerdict:
        """Return what the response means for the partial body; NOTHING if no range was requested."""
        if self.taken is None or self.note is None:
            return RangeVerdict.NOTHING
        self.verdict = judged(self.note, answer.status, answer.header)
        if self.verdict in {RangeVerdict.RESTART, RangeVerdict.REFUSE}:
            await self.taken.drop()
            self.taken = None
            self._carry(None)
        return self.verdict

    def close(self) -> None:
        """Leave a partial body that was opened and not used for another attempt."""
        if self.taken is not None:
            self.taken.close()
            self.taken = None

    async def hash_by(self, names: Collection[str]) -> None:
        """Hash the partial body by these algorithms too. Raises OSError."""
        if self.taken is not None and names:
            await self.taken.hash_by(names)

    def whole_bytes(self, coming_bytes: int | None) -> int | None:
        """Return the length of the whole body, None if unknown; coming_bytes: that of the response."""
        match self.verdict:
            case Append(total_bytes):
                return total_bytes
            case RangeVerdict.COMPLETE if self.note is not None:
                return self.note.offset_bytes
            case _:
                return coming_bytes

    async def drop_unused(self) -> None:
        """Remove a partial body that does not belong to the URL whose body is being received."""
        if self.note is not None and self.taken is None:
            disk = self._session.services.sink.disk
            await asyncio.wrap_future(disk.forget(self._entry.id, self.note))
            self._carry(None)

    async def checkpoint(self, writer: BodyWriter, exchange: HttpExchange) -> int:
        """Sync the body to disk and note that in Redis, against a crash; return how many bytes are safe.

        Raises OSError.
        """
        note = self._note_of(exchange)
        if note is None:
            return writer.size_bytes
        offset_bytes = await writer.sync()
        self._carry_in_redis(msgspec.structs.replace(note, offset_bytes=offset_bytes))
        return offset_bytes

    async def broke_off(self, error: BaseException, writer: BodyWriter, exchange: HttpExchange) -> None:
        """Keep the part of the body that has come, if the host lets it be resumed."""
        lane = self._lane
        note = None if isinstance(error, _USELESS_AFTER) else self._note_of(exchange)
        if note is None or lane.lost or self._entry.batch_id in lane.cancelled:
            self._carry(None)
            return
        fits = note.total_bytes is None or writer.size_bytes <= note.total_bytes
        offset_bytes = await writer.keep() if fits else 0
        self._carry(msgspec.structs.replace(note, offset_bytes=offset_bytes) if offset_bytes else None)

    def _note_of(self, exchange: HttpExchange) -> PartialNote | None:
        """Return the note, but for its offset, if this body breaks off; None if it cannot be resumed."""
        request, answer = exchange
        total_bytes = self.whole_bytes(answer.length_bytes)
        if isinstance(self.verdict, Append) and self.note is not None:
            return msgspec.structs.replace(self.note, total_bytes=total_bytes)
        fetch = self._entry.fetch
        validator = validator_of(request, answer.status, answer.header)
        if validator is None or fetch.decode or fetch.lines:  # these look into the body from its beginning
            return None
        return PartialNote(
            token=self._lane.token,
            offset_bytes=1,
            of=url_digest(request.url),
            etag=validator.etag,
            last_modified=validator.last_modified,
            total_bytes=total_bytes,
        )

    def _carry(self, note: PartialNote | None) -> None:
        """Carry the note in the lane: the fetch is settled or handed back with it."""
        self.note = note
        entry = self._lane.entries.get(self._entry.id)
        if entry is not None:
            self._lane.rewrite(msgspec.structs.replace(entry, part=note))

    def _carry_in_redis(self, note: PartialNote) -> None:
        """Carry the note in the lane and in Redis."""
        self._carry(note)
        entry = self._lane.entries.get(self._entry.id)
        if entry is not None and not self._lane.lost:
            self._session.settle(settler.rewritten(entry))
