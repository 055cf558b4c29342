"""Receive one large body in several ranges at once.

The fetch requests one piece after the other in its own place, from the first on. Further pieces are requested
at the same time while the lane has room that no waiting fetch needs. Each request for them counts against the
concurrency of the host, and occupies a slot. If one fails, the fetch is not charged. Fewer pieces are then
requested at once, and the fetch requests the rest itself.
"""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

import msgspec

from fetchfleet.jobs.contract.entry import Entry, PartialNote
from fetchfleet.worker.body.pieces import Piece, Pieces
from fetchfleet.worker.body.pipeline import BodyPipeline
from fetchfleet.worker.errors import BadAnswerError, ChangedBodyError, FetchError, TruncatedBodyError
from fetchfleet.worker.fetch.cases import host_signals
from fetchfleet.worker.fetch.cases.resume import Resume
from fetchfleet.worker.fetch.error_mapping import failure_of
from fetchfleet.worker.fetch.rules.outcome import Answered, AttemptOutcome, Interrupted
from fetchfleet.worker.fetch.rules.range_rules import is_piece, range_request
from fetchfleet.worker.fetch.services import FetchSession
from fetchfleet.worker.gate import gate, quota
from fetchfleet.worker.gate.gate import Admit, Closed
from fetchfleet.worker.gate.state import Breaker
from fetchfleet.worker.http.exchange import Trace
from fetchfleet.worker.http.wire import GetBuffer
from fetchfleet.worker.sink.base import BodyWriter, HttpExchange
from fetchfleet.worker.util import aio
from fetchfleet.worker.util.clock import mono_s

BLOCK_BYTES = 384 * 1024
"""The bytes of a piece that are received before they are written."""

BUFFER_BYTES = BLOCK_BYTES + 256 * 1024
"""The size of the buffer of a request. It has space for a large read until the block is full."""

MAX_WAIT_S = 1.0
"""The longest wait for the gate before the next piece; for a longer one the attempt ends, to be resumed."""

_RECEIVED = Answered(status=206)
"""The outcome of a request for a piece that is written."""

Receive = Callable[[GetBuffer], Awaitable[bytes | memoryview]]


def most_segments(session: FetchSession, entry: Entry) -> int:
    """Return in how many ranges at once the body may be received; 1: it is requested as any other.

    After an interruption without a partial file it is 1: the host may not serve ranges that can be joined.
    """
    lane, fetch = session.lane, entry.fetch
    unlike = fetch.decode or fetch.lines or lane.policy.http2 or session.services.sink.partial_files is None
    interrupted = entry.interruptions and entry.part is None
    return 1 if unlike or interrupted else fetch.segments or lane.policy.segments


class SegmentedBody:
    """One body, of which several pieces are received at once. Call `receive` once.

    exchange: the first request, without its range, and its response, which resume has judged. note: the
    version of the body, with its validator and length.
    """

    def __init__(
        self,
        session: FetchSession,
        entry: Entry,
        resume: Resume,
        exchange: HttpExchange,
        writer: BodyWriter,
        note: PartialNote,
        pieces: Pieces,
    ) -> None:
        self._session = session
        self._lane = session.lane
        self._services = session.services
        self._entry = entry
        self._resume = resume
        self._exchange = exchange
        self._writer = writer
        self._note = note
        self._pieces = pieces
        self._most = pieces.segments
        """The most pieces at once. Each failed request for a further piece lowers it."""
        self._further: set[asyncio.Task[None]] = set()
        """The requests for further pieces."""
        self._progress = asyncio.Event()
        """Set when a request for a further piece ends."""
        self._writing = asyncio.Lock()
        """Held while a block is written: the file is written and hashed by one thread at a time."""
        self._saving = False
        """A checkpoint is being made."""
        self._safe_bytes, self._saved_s = writer.size_bytes, mono_s()
        """The size of the body at the last checkpoint, and its time."""
        self._disk_error: OSError | None = None
        """The error of the disk during a request for a further piece. It ends the attempt."""

    async def receive(self, receive: Receive) -> AttemptOutcome | None:
        """Receive all pieces. Returns None, or the outcome of an attempt that ends before the whole body.

        receive: reads the first response. Raises as the receiving of any body does.
        """
        try:
            self._request_further()
            await self._receive_piece(self._pieces.first, receive)
            self._exchange.answer.close()  # its connection can be used for the next piece
            ended: AttemptOutcome | None = None
            while not self._pieces.complete and ended is None:
                if self._disk_error is not None:
                    raise self._disk_error
                piece = self._pieces.take()
                if piece is None:
                    await self._wait_for_progress()
                    continue
                ended = await self._request_own(piece)
            self._most = 0
            while self._further:  # requests in flight may finish, as in a cool-down
                await self._wait_for_progress()
            if ended is None:
                await self._writer.join()
            return ended
        finally:
            self._most = 0
            await aio.run_to_end(aio.end(*self._further))

    async def _wait_for_progress(self) -> None:
        """Wait until a request for a further piece ends."""
        self._progress.clear()
        if self._further:
            await self._progress.wait()

    # --- The request of the fetch ---

    async def _request_own(self, piece: Piece) -> AttemptOutcome | None:
        """Request a piece in the place of the fetch. Returns the outcome if the attempt ends with it."""
        try:
            if not self._lane.live:
                return Interrupted()
            if not await self._is_admitted():
                return Interrupted(note="the host's limits do not admit the next piece now")
            trace = Trace(self._entry)
            outcome = await self._exchange_piece(piece, trace)
            if outcome != _RECEIVED:
                return outcome  # which the caller reports to the gate
            self._learn(trace, outcome)
            return None
        finally:
            self._pieces.give_back(piece)

    async def _is_admitted(self) -> bool:
        """Wait until the gate admits one more request in the place of the fetch, and count it.

        Returns False if the wait is long: the attempt must not occupy its slot meanwhile.
        """
        lane = self._lane
        while True:
            admission = lane.admission(excluding=1)
            if isinstance(admission, Admit):
                self._session.count_start(save_rate=True)
                return True
            if isinstance(admission, Closed):
                wait_s = (admission.until_ms - lane.clock.now_ms()) / 1000
                if wait_s > MAX_WAIT_S:
                    return False
                await asyncio.sleep(wait_s)
            elif self._further:
                await self._wait_for_progress()
            else:
                return False

    # --- The requests for further pieces ---

    def _request_further(self) -> None:
        """Request further pieces while the lane has room for them."""
        while len(self._further) + 1 < self._most and self._has_room():
            piece = self._pieces.take()
            if piece is None:
                return
            if not self._services.slots.take():
                self._pieces.give_back(piece)
                return
            self._lane.begin_range()
            self._session.count_start(save_rate=True)
            task = asyncio.create_task(self._run_further(piece), name=f"piece of {self._lane.name}")
            self._further.add(task)
            task.add_done_callback(partial(self._further_ended, piece))

    def _has_room(self) -> bool:
        """Return whether the gate admits one more request, in a place that no waiting fetch needs."""
        lane = self._lane
        wanted = lane.ready or lane.claims.left_waiting or self._services.isolation.closed
        wary = gate.is_wary(lane.gate, lane.policy, lane.clock.now_ms())
        return lane.live and not wanted and not wary and isinstance(lane.admission(), Admit)

    async def _run_further(self, piece: Piece) -> None:
        """Receive a further piece, and report the outcome to the gate only."""
        trace = Trace(self._entry)
        outcome: AttemptOutcome
        try:
            outcome = await self._exchange_piece(piece, trace)
        except OSError as error:
            self._disk_error, outcome = error, Interrupted()
        except Exception as error:  # noqa: BLE001 if it persists, the fetch's own request fails by it
            outcome = await failure_of(self._session, self._entry, error, None)
        if outcome != _RECEIVED:
            self._most = min(self._most, len(self._further))  # one less than now, the fetch's own included
        self._learn(trace, outcome)

    def _further_ended(self, piece: Piece, task: asyncio.Task[None]) -> None:
        self._further.discard(task)
        self._pieces.give_back(piece)
        self._services.slots.release()
        self._lane.end_range()
        self._progress.set()

    # --- One piece ---

    async def _exchange_piece(self, piece: Piece, trace: Trace) -> Answered:
        """Request a piece and write it. Returns _RECEIVED, or the outcome of an error status.

        Raises ChangedBodyError if the response has other bytes.
        """
        lane, note = self._lane, msgspec.structs.replace(self._note, offset_bytes=piece.at)
        request = range_request(self._exchange.request, note, piece.end - piece.at)
        answer = await self._services.engine.open(request, lane.pool, lane.policy.timeouts, trace)
        try:
            if answer.has_any(quota.FIELDS) or not (lane.grant or lane.gate.breaker is Breaker.CLOSED):
                host_signals.learn_from_head(self._session, trace, answer)
            if not is_piece(note, piece, answer.status, answer.header):
                await answer.discard()
                if answer.status < 400 or answer.status == 416:
                    raise ChangedBodyError(f"{answer.status} is not the response for the rest of this body")
                wait_s = host_signals.requested_wait_s(answer, lane.clock.now_ms())
                return Answered(status=answer.status, wait_s=wait_s)
            body = BodyPipeline(answer, self._entry.fetch, lane.policy)
            await self._receive_piece(piece, body.receive)
            return _RECEIVED
        finally:
            answer.close()

    async def _receive_piece(self, piece: Piece, receive: Receive) -> None:
        """Write the bytes of a piece that `receive` returns, also those before an error of `receive`.

        Raises BadAnswerError, TruncatedBodyError or OSError, besides the errors of `receive`.
        """
        block, more = _Block(), True
        while more:
            try:
                more = await block.fill(receive)
            except FetchError:
                await self._write(piece, block)
                raise
            await self._write(piece, block)
            self._request_further()
        if piece.at < piece.end:
            raise TruncatedBodyError(f"a range ended {piece.end - piece.at} bytes before its end")

    async def _write(self, piece: Piece, block: "_Block") -> None:
        """Write the next bytes of a piece, then make a checkpoint of the body if it is due."""
        writer, pieces = self._writer, self._pieces
        if block.size_bytes > piece.end - piece.at:
            raise BadAnswerError("the response has more bytes than its Content-Range")
        if not block.size_bytes:
            return
        async with self._writing:
            await writer.write_at(piece.at, block.pieces)
            pieces.wrote(piece, block.size_bytes)
            writer.extend(pieces.whole_bytes)
        block.clear()
        if writer.resumable and not self._saving and self._is_save_due():
            self._saving = True
            self._safe_bytes = await self._resume.checkpoint(writer, self._exchange)
            self._saved_s, self._saving = mono_s(), False

    def _is_save_due(self) -> bool:
        parameters = self._services.parameters
        unsaved_bytes, unsaved_s = self._writer.size_bytes - self._safe_bytes, mono_s() - self._saved_s
        return unsaved_bytes >= parameters.checkpoint_bytes or unsaved_s >= parameters.checkpoint_s

    def _learn(self, trace: Trace, outcome: AttemptOutcome) -> None:
        """Report the outcome of a request for a piece to the gate."""
        lane = self._lane
        if lane.grant and outcome == _RECEIVED:
            lane.count_answer(_RECEIVED.status, lane.clock.now_ms())
        else:
            host_signals.learn(self._session, trace, outcome, self._entry.id)


class _Block:
    """The bytes of a piece that are received and not written yet."""

    def __init__(self) -> None:
        self._buffer = memoryview(bytearray(BUFFER_BYTES))
        self.pieces: list[bytes | bytearray | memoryview] = []
        self.size_bytes = 0

    async def fill(self, receive: Receive) -> bool:
        """Receive until the block is full. Returns False if the response ends before."""
        while self.size_bytes < BLOCK_BYTES:
            received = await receive(self._free)
            if not received:
                return False
            self.pieces.append(received)
            self.size_bytes += len(received)
        return True

    def _free(self) -> memoryview:
        return self._buffer[self.size_bytes :]

    def clear(self) -> None:
        """Empty the block, once it is written."""
        self.pieces, self.size_bytes = [], 0
