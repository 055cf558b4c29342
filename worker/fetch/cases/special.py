"""The special cases of an attempt: bodies that are resumed, decoded, checked, refused or revalidated."""

import msgspec

from fetchfleet.jobs.contract.entry import Entry, Hop
from fetchfleet.worker import errors
from fetchfleet.worker.body.pieces import Piece, Pieces
from fetchfleet.worker.body.pipeline import BodyPipeline, DecoderSlot, with_accept_encoding
from fetchfleet.worker.fetch.cases import stored_bodies
from fetchfleet.worker.fetch.cases.host_signals import requested_wait_s
from fetchfleet.worker.fetch.cases.resume import Resume
from fetchfleet.worker.fetch.cases.segments import SegmentedBody, most_segments
from fetchfleet.worker.fetch.rules import accept, stale_fallback, trace_context
from fetchfleet.worker.fetch.rules.decide import may_repeat
from fetchfleet.worker.fetch.rules.outcome import AttemptOutcome, Interrupted, Stored
from fetchfleet.worker.fetch.rules.range_rules import RangeVerdict, content_range
from fetchfleet.worker.fetch.rules.validators import conditional, validators_of
from fetchfleet.worker.fetch.services import FetchSession
from fetchfleet.worker.gate.robots_rules import token_of
from fetchfleet.worker.http.exchange import Answer
from fetchfleet.worker.sink.base import BodyWriter, Expected, HttpExchange, StorageOptions
from fetchfleet.worker.sink.index_entry import IndexEntry, StoredAt, Validators
from fetchfleet.worker.util.clock import mono_s

SPECIAL_FIELDS = frozenset({b"content-encoding", b"content-digest", b"repr-digest"})
"""Fields of a response whose body has a content coding or digests to check."""


class SpecialCases:
    """The part of one attempt that goes beyond a plain GET."""

    def __init__(self, session: FetchSession, entry: Entry) -> None:
        self._session = session
        self._lane = session.lane
        self._services = session.services
        self._entry = entry
        self._most_segments = most_segments(session, entry)
        piece_bytes = session.services.parameters.piece_bytes if self._most_segments > 1 else None
        self.resume = Resume(session, entry, piece_bytes)
        self._decoder = DecoderSlot(session.services.decoder_budget) if entry.fetch.decode else None
        self._required = accept.requirements_of(entry.fetch, session.lane.policy)
        self._index_read = False
        self._index_entry: IndexEntry | None = None
        """The index entry of the stored body, if the fetch revalidates."""

    async def prepare(self, request: Hop) -> Hop:
        """Return the request with the headers of the special cases."""
        fetch = self._entry.fetch
        if fetch.revalidate and not self._index_read:
            self._index_read = True
            self._index_entry = await stored_bodies.find_indexed(fetch, self._services.sink)
        if self._decoder is not None:
            request = with_accept_encoding(request, fetch, self._decoder)
        request = await self.resume.with_range(request)
        if self._index_entry is not None and self.resume.partial_file is None:
            request = conditional(request, self._index_entry)  # else If-Range detects a newer version
        if fetch.sign:
            signature = self._services.signing_keys.headers(
                self._entry.id, self._lane.clock.now_ms() // 1000, request.body or ""
            )
            request = msgspec.structs.replace(request, headers=request.headers + signature)
        return self._with_context(request)

    def _with_context(self, request: Hop) -> Hop:
        """Return the request with the trace context, if the policy sends it."""
        if not self._lane.policy.context:
            return request
        return trace_context.with_context(request, self._entry.fetch, self._entry.id, self._span_id())

    def _span_id(self) -> str:
        """Return the span ID that the host receives: that of the fetch, or a random one without spans."""
        if self._services.record_span is not None:
            return trace_context.span_id_of(self._entry.id)
        return trace_context.random_span_id(self._services.chance(), self._services.chance())

    async def must_restart(self, answer: Answer) -> bool:
        """Return whether to repeat the request without a range, as the response does not fit the one sent."""
        return await self.resume.judge(answer) is RangeVerdict.REFUSE

    def close(self) -> None:
        """Release the partial file and the share of the decoder budget."""
        self.resume.close()
        if self._decoder is not None:
            self._decoder.release()

    async def not_modified(self, answer: Answer, request: Hop) -> AttemptOutcome:
        """Return the outcome of a 304 to the request, as it was sent."""
        fetch, sink = self._entry.fetch, self._services.sink
        return await stored_bodies.not_modified(answer, request, fetch, self._index_entry, sink)

    def has_body(self, answer: Answer) -> bool:
        """Return whether the response has a body to store or to refuse."""
        wait_s = requested_wait_s(answer, self._lane.clock.now_ms()) if answer.status >= 400 else None
        return self.resume.is_complete or accept.has_body(self._required, answer.status, wait_s)

    async def store(self, answer: Answer, request: Hop, hops: int) -> AttemptOutcome:
        """Store the response, unless its head is refused."""
        resume = self.resume
        if self._entry.fetch.sign:  # the response to a webhook says nothing but its status
            await answer.discard()
            return Stored(status=answer.status, at=None, validators=Validators(request.url))
        has_range = any(name.lower() == "range" for name, _ in request.headers)
        if answer.status == 206 and not resume.is_part and not has_range:
            raise errors.BadAnswerError("206 in response to a request without Range")
        refusal = None if resume.is_complete else self._refusal(answer)
        if refusal is not None:
            await answer.discard()
            return refusal
        if request.method == "HEAD":
            return await self._store_head(answer, request)
        if resume.verdict is RangeVerdict.NOTHING:
            await resume.drop()  # the body of an accepted error does not continue it
        return await self._store_body(answer, request, hops)

    async def _store_body(self, answer: Answer, request: Hop, hops: int) -> AttemptOutcome:
        """Store the body of a response, checked against its length and digests."""
        fetch, policy = self._entry.fetch, self._lane.policy
        validators = validators_of(request.url, answer.header)
        max_bytes = min(
            filter(None, (fetch.size_limit(policy.max_bytes), self._required.accept.max_bytes)), default=0
        )
        body = BodyPipeline(answer, fetch, policy, max_bytes)
        if self._decoder is not None and not body.may_decode(self._decoder) and may_repeat(self._entry):
            return Interrupted(
                wait_s=self._services.parameters.decoder_pause_s,
                note="no decoder with a large window is free",
            )
        expected = await self._expected(answer, request, body, max_bytes)
        if expected.length_bytes is not None and expected.length_bytes < expected.min_bytes:
            await answer.discard()
            raise errors.UndersizedBodyError(expected.length_bytes, expected.min_bytes)

        # The index finds a body by the fetch's URL, so the policy of that host applies, not the redirect's.
        origin_policy = self._services.policy_of(fetch) if hops else policy
        is_good = answer.status < 400 or self.resume.is_complete  # the body of an error replaces no other
        indexed = is_good and (fetch.revalidate or stale_fallback.is_allowed(fetch, origin_policy))
        options = StorageOptions(validators if indexed else None, origin_policy.durability)
        exchange = HttpExchange(request, answer)
        existing = await stored_bodies.before_body(self._entry, self._services, exchange)
        if existing is not None:
            await answer.discard()
            return msgspec.structs.replace(existing, status=answer.status)
        stored = await self._receive(exchange, body, expected, options)
        if not isinstance(stored, StoredAt):
            return stored
        return Stored(
            status=answer.status,
            at=stored,
            validators=validators,
            coding=body.coding,
            lines=body.lines,
            unverified=answer.ends_with_connection and not (body.coding_ended or expected.detects_truncation),
        )

    def _refusal(self, answer: Answer) -> AttemptOutcome | None:
        """Return the outcome if the head of the response does not meet the requirements, else None."""
        content_type, x_robots_tags = answer.header("content-type"), answer.values("x-robots-tag")
        token = token_of(self._services.user_agent)
        resumed = self.resume.is_part and self.resume.partial_file is not None
        # The first piece of a body is requested as a range by the worker, in place of a 200.
        status = 200 if self.resume.is_part and not resumed else answer.status
        return accept.refusal_of(self._required, status, content_type, x_robots_tags, token, resumed=resumed)

    async def _expected(self, answer: Answer, request: Hop, body: BodyPipeline, max_bytes: int) -> Expected:
        """Return the properties that the whole body must have."""
        fetch, resume, min_bytes = self._entry.fetch, self.resume, self._required.accept.min_bytes
        complete = answer.status in {200, 203} and request.method == "GET"
        digests = body.host_digests(complete=complete, resumed=resume.is_part) if answer.status != 416 else ()
        if body.decodes:  # length and digests of the host are those of the coded body (RFC 9530 §2, §3)
            body.check_coded(digests)
            return Expected(None, fetch.sha256, max_bytes, min_bytes=min_bytes)
        await resume.add_digests(dict(digests))
        length_bytes = resume.total_bytes(body.length_bytes)
        return Expected(length_bytes, fetch.sha256, max_bytes, digests, min_bytes)

    async def _store_head(self, answer: Answer, request: Hop) -> AttemptOutcome:
        """Store the response to a HEAD request, if the sink stores such responses."""
        lane, sink = self._lane, self._services.sink
        validators = validators_of(request.url, answer.header)
        await answer.discard()
        at: StoredAt | None = None
        if sink.stores_head_responses:
            options = StorageOptions(durability=lane.policy.durability)
            exchange = HttpExchange(request, answer)
            writer = sink.writer(self._entry, lane.token, Expected(), options, exchange=exchange)
            try:
                stored = await writer.commit(lane.may_place)
            finally:
                await writer.aclose()
            if stored is None:
                return Interrupted()
            at = stored._replace(size_bytes=0, sha256="")
        return Stored(status=answer.status, at=at, validators=validators)

    async def _receive(
        self, exchange: HttpExchange, body: BodyPipeline, expected: Expected, options: StorageOptions
    ) -> StoredAt | AttemptOutcome:
        """Write the body to the sink; if it breaks off, keep the received bytes for a later attempt."""
        lane, sink, resume = self._lane, self._services.sink, self.resume
        await resume.drop_unused()
        writer = sink.writer(self._entry, lane.token, expected, options, resume.partial_file, exchange)
        try:
            segmented = self._segmented(exchange, writer)
            if segmented is not None:
                ended = await segmented.receive(body.receive)
                if ended is not None:
                    await resume.keep_partial(None, writer, exchange)
                    return ended
            elif not resume.is_complete:
                parameters = self._services.parameters
                save_bytes = writer.size_bytes + parameters.checkpoint_bytes
                save_s = mono_s() + parameters.checkpoint_s
                await resume.receive(body.receive, writer, exchange, save_bytes, save_s)
            return await writer.commit(lane.may_place) or Interrupted()
        except errors.ExistsError as error:
            status = exchange.answer.status
            return await stored_bodies.created_meanwhile(self._entry, status, error, self._services)
        except BaseException as error:
            await resume.keep_partial(error, writer, exchange)
            raise
        finally:
            await writer.aclose()

    def _segmented(self, exchange: HttpExchange, writer: BodyWriter) -> SegmentedBody | None:
        """Return the body to receive in pieces, None if the response has all that is missing."""
        if self._most_segments == 1 or not self.resume.is_part:
            return None
        note, sent = self.resume.note_of(exchange), content_range(exchange.answer.header("content-range"))
        if note is None or note.total_bytes is None or sent is None or sent.last is None:
            return None
        if sent.last + 1 == note.total_bytes:
            return None
        first, most = Piece(writer.size_bytes, sent.last + 1), self._most_segments
        pieces = Pieces(first, note.total_bytes, most, self._services.parameters.piece_bytes)
        sendable = exchange._replace(request=self._with_context(exchange.request))
        return SegmentedBody(self._session, self._entry, self.resume, sendable, writer, note, pieces)
