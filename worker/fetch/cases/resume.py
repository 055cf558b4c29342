"""Resume a body that broke off, from its partial file on disk and the note that the fetch carries.

While a large or slow body streams, checkpoints save it from a crash.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection

import msgspec

from fetchfleet.jobs.contract.entry import Entry, Hop, PartialNote
from fetchfleet.worker.errors import (
    BadDestError,
    ChangedBodyError,
    DigestMismatchError,
    OverlongBodyError,
    UndersizedBodyError,
)
from fetchfleet.worker.fetch.rules.range_rules import (
    Append,
    RangeVerdict,
    first_piece_request,
    is_source,
    may_have_range,
    range_request,
    url_digest,
    validator_of,
    verdict_of,
    verdict_of_first_piece,
)
from fetchfleet.worker.fetch.services import FetchSession
from fetchfleet.worker.http.exchange import Answer
from fetchfleet.worker.http.wire import GetBuffer
from fetchfleet.worker.lanes import settler
from fetchfleet.worker.sink.base import BodyWriter, HttpExchange, ResumePoint
from fetchfleet.worker.util.clock import mono_s

_DISCARDING_ERRORS = (
    DigestMismatchError,
    OverlongBodyError,
    UndersizedBodyError,
    BadDestError,
    ChangedBodyError,
)
"""Errors after which no attempt can use the bytes received so far."""


class Resume:
    """The partial file of one attempt: taken over from an earlier attempt, or left for a later one.

    It may have none. Then it requests the whole body, or its first piece.
    """

    def __init__(self, session: FetchSession, entry: Entry, piece_bytes: int | None = None) -> None:
        """piece_bytes: request the first piece of a body, of this size; None: request all of it."""
        self._entry = entry
        self._lane = session.lane
        self._session = session
        self.note = entry.part
        """The note of the partial file, with which the fetch is settled or returned."""
        self.partial_file: ResumePoint | None = None
        """The partial file on this worker's disk, while it is open."""
        self.verdict: Append | RangeVerdict = RangeVerdict.NOTHING
        self._piece_bytes = piece_bytes
        self._request: Hop | None = None
        """The request whose first piece was requested, without the range; None if no piece was."""

    @property
    def is_complete(self) -> bool:
        """True if the response confirms that the partial file is the whole body."""
        return self.verdict is RangeVerdict.COMPLETE

    @property
    def is_part(self) -> bool:
        """True if the response has the rest of the partial file, or the first piece of the body."""
        return isinstance(self.verdict, Append)

    async def with_range(self, request: Hop) -> Hop:
        """Return the request for the rest of the body, or for all of it without a partial file of it.

        Opening a partial file takes as long as reading it, since it is hashed again.
        """
        self.close()
        self.verdict, self._request = RangeVerdict.NOTHING, None
        note, partial_files = self.note, self._session.services.sink.partial_files
        if note is None or not is_source(request, note):
            return self._with_first_piece(request)
        own_note = msgspec.structs.replace(note, token=self._lane.token)

        def opened(partial_file: ResumePoint | None) -> None:
            self.partial_file = partial_file
            if partial_file is not None:
                self._carry_in_redis(own_note)

        if partial_files is not None:
            opened(await partial_files.take_over(self._entry.id, note, own_note.token, on_cancelled=opened))
        if self.partial_file is None:
            self._carry(None)
            return self._with_first_piece(request)
        return range_request(request, own_note, self._piece_bytes)

    def _with_first_piece(self, request: Hop) -> Hop:
        """Return the request for the first piece of the body, if it may be received in pieces."""
        if self._piece_bytes is None or not may_have_range(request):
            return request
        self._request = request
        return first_piece_request(request, self._piece_bytes)

    async def judge(self, answer: Answer) -> Append | RangeVerdict:
        """Return what the response means for the partial file; NOTHING if no range was requested."""
        if self._request is not None:
            self.verdict = verdict_of_first_piece(self._request, answer.status, answer.header)
        elif self.partial_file is not None and self.note is not None:
            self.verdict = verdict_of(self.note, answer.status, answer.header)
        if self.verdict is RangeVerdict.REFUSE:
            self._piece_bytes = None
        if self.verdict in {RangeVerdict.RESTART, RangeVerdict.REFUSE}:
            await self.drop()
        return self.verdict

    async def drop(self) -> None:
        """Remove the partial file, because another body is stored."""
        if self.partial_file is not None:
            await self.partial_file.drop()
            self.partial_file = None
            self._carry(None)

    def close(self) -> None:
        """Release a partial file that was opened and not used; a later attempt may use it."""
        if self.partial_file is not None:
            self.partial_file.close()
            self.partial_file = None

    async def add_digests(self, names: Collection[str]) -> None:
        """Hash the partial file by these algorithms too. Raises OSError."""
        if self.partial_file is not None and names:
            await self.partial_file.add_digests(names)

    def total_bytes(self, content_bytes: int | None) -> int | None:
        """Return the length of the whole body, None if unknown.

        content_bytes: the length of the response's own body, None if unknown.
        """
        match self.verdict:
            case Append(total_bytes):
                return total_bytes
            case RangeVerdict.COMPLETE if self.note is not None:
                return self.note.offset_bytes
            case _:
                return content_bytes

    async def drop_unused(self) -> None:
        """Remove the partial file of the note if it is not of the body that is being received."""
        if self.note is not None and self.partial_file is None:
            disk = self._session.services.sink.disk
            await asyncio.wrap_future(disk.remove_partial_file(self._entry.id, self.note))
            self._carry(None)

    async def receive(
        self,
        receive: Callable[[GetBuffer], Awaitable[bytes | memoryview]],
        writer: BodyWriter,
        exchange: HttpExchange,
        save_bytes: int,
        save_s: float,
    ) -> None:
        """Write the pieces that `receive` returns up to an empty one, with checkpoints of the body.

        save_bytes, save_s: the size and the monotonic time of the first checkpoint, whichever comes first.
        """
        parameters = self._session.services.parameters
        while True:
            if writer.full:
                await writer.drain()
            if (writer.size_bytes >= save_bytes or mono_s() >= save_s) and writer.resumable:
                save_bytes = await self.checkpoint(writer, exchange) + parameters.checkpoint_bytes
                save_s = mono_s() + parameters.checkpoint_s
            piece = await receive(writer.receive_buffer)
            if not piece:
                return
            writer.write(piece)

    async def checkpoint(self, writer: BodyWriter, exchange: HttpExchange) -> int:
        """Sync the body to disk and write its note to Redis: a crash then costs only the bytes after these.

        Returns their number, or that of all received bytes if the body cannot be resumed. Raises OSError.
        """
        note = self.note_of(exchange)
        if note is None:
            return writer.size_bytes
        offset_bytes = await writer.sync()
        self._carry_in_redis(msgspec.structs.replace(note, offset_bytes=offset_bytes))
        return offset_bytes

    async def keep_partial(
        self, error: BaseException | None, writer: BodyWriter, exchange: HttpExchange
    ) -> None:
        """Keep the bytes received before the error as a partial file, if the body can be resumed.

        error: None if the attempt ends without one.
        """
        lane = self._lane
        note = None if isinstance(error, _DISCARDING_ERRORS) else self.note_of(exchange)
        if note is None or lane.lost or self._entry.batch_id in lane.cancelled:
            self._carry(None)
            return
        fits = note.total_bytes is None or writer.size_bytes <= note.total_bytes
        offset_bytes = await writer.keep() if fits else 0
        self._carry(msgspec.structs.replace(note, offset_bytes=offset_bytes) if offset_bytes else None)

    def note_of(self, exchange: HttpExchange) -> PartialNote | None:
        """Return the note for this body, with a provisional offset; None if the body cannot be resumed."""
        request, answer = exchange
        total_bytes = self.total_bytes(answer.length_bytes)
        if isinstance(self.verdict, Append) and self.note is not None:
            return msgspec.structs.replace(self.note, total_bytes=total_bytes)
        if self.verdict is RangeVerdict.COMPLETE:
            return self.note
        fetch = self._entry.fetch
        validator = validator_of(request, answer.status, answer.header)
        if validator is None or fetch.decode or fetch.lines:  # both must read from the first byte
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
        """Carry the note in the lane: the fetch is settled or returned with it."""
        self.note = note
        entry = self._lane.entries.get(self._entry.id)
        if entry is not None:
            self._lane.replace_entry(msgspec.structs.replace(entry, part=note))

    def _carry_in_redis(self, note: PartialNote) -> None:
        """Carry the note in the lane and in Redis."""
        self._carry(note)
        entry = self._lane.entries.get(self._entry.id)
        if entry is not None and not self._lane.lost:
            self._session.settle(settler.rewritten(entry))
