"""The special cases of an attempt: bodies that are resumed, decoded, checked, compared or not there.

Also bodies that are large or slow: they are saved from a crash as they come.
"""

from collections.abc import Awaitable, Callable

from fetchfleet.jobs.contract.entry import Entry, Hop
from fetchfleet.worker import errors
from fetchfleet.worker.body.pipeline import BodyPipeline, DecoderSlot, with_accept_encoding
from fetchfleet.worker.fetch.cases import stored_bodies
from fetchfleet.worker.fetch.cases.resume import Resume
from fetchfleet.worker.fetch.rules import stale_fallback, trace_context
from fetchfleet.worker.fetch.rules.decide import may_repeat
from fetchfleet.worker.fetch.rules.outcome import AttemptOutcome, Interrupted, Stored
from fetchfleet.worker.fetch.rules.range_rules import RangeVerdict
from fetchfleet.worker.fetch.rules.validators import conditional, validators_of
from fetchfleet.worker.fetch.services import FetchSession
from fetchfleet.worker.http.exchange import Answer
from fetchfleet.worker.http.wire import Room
from fetchfleet.worker.sink.base import BodyWriter, Expected, HttpExchange, StorageOptions
from fetchfleet.worker.sink.index_entry import IndexEntry, StoredAt, Validators
from fetchfleet.worker.util.clock import mono_s

SPECIAL_FIELDS = frozenset({b"content-encoding", b"content-digest", b"repr-digest"})
"""A response with one of these fields has a body to decode or to compare."""


class SpecialCases:
    """The part of one attempt that goes beyond a plain GET."""

    def __init__(self, session: FetchSession, entry: Entry) -> None:
        self._session = session
        self._lane = session.lane
        self._services = session.services
        self._entry = entry
        self._resume = Resume(session, entry) if entry.part is not None else None
        self._decoder = DecoderSlot(session.services.decoder_budget) if entry.fetch.decode else None
        self._has_looked = False
        self._known: IndexEntry | None = None
        """The index entry of the stored body, if the fetch revalidates."""

    @property
    def part(self) -> object:
        """The note of the partial body that the fetch carries on, None if there is none."""
        return self._entry.part if self._resume is None else self._resume.note

    @property
    def has_all(self) -> bool:
        """True if the response says that nothing of a partial body is missing."""
        return self._resume is not None and self._resume.verdict is RangeVerdict.COMPLETE

    async def prepared(self, request: Hop) -> Hop:
        """Return the request with what these cases ask for."""
        fetch, resume, lane = self._entry.fetch, self._resume, self._lane
        if fetch.revalidate and not self._has_looked:
            self._has_looked = True
            self._known = await stored_bodies.known_of(fetch, self._services.sink)
        if self._decoder is not None:
            request = with_accept_encoding(request, fetch, self._decoder)
        if resume is not None:
            request = await resume.asked(request)
        if self._known is not None and (resume is None or resume.taken is None):
            request = conditional(request, self._known)  # else If-Range detects a newer version
        if lane.policy.context:
            chance = self._services.chance
            request = trace_context.carried(request, fetch, self._entry.id, chance(), chance())
        return request

    async def refuses(self, answer: Answer) -> bool:
        """Return whether the response does not fit the request for the rest of a body."""
        return self._resume is not None and await self._resume.judge(answer) is RangeVerdict.REFUSE

    def close(self) -> None:
        """Return what these cases hold."""
        if self._resume is not None:
            self._resume.close()
        if self._decoder is not None:
            self._decoder.give_back()

    async def not_modified(self, answer: Answer, asked: Hop) -> AttemptOutcome:
        """Return what a 304 means; asked: the request as it was sent."""
        fetch, sink = self._entry.fetch, self._services.sink
        return await stored_bodies.not_modified(answer, asked, fetch, self._known, sink)

    async def stored(self, answer: Answer, request: Hop, hops: int) -> AttemptOutcome:
        """Store the body of a response, checked against its length and digests."""
        fetch, policy, resume = self._entry.fetch, self._lane.policy, self._resume
        resumed = resume is not None and resume.taken is not None
        asked_for_range = any(name.lower() == "range" for name, _ in request.headers)
        if answer.status == 206 and not resumed and not asked_for_range:
            raise errors.BadAnswerError("206 although no range was asked for")
        found = validators_of(request.url, answer.header)
        if request.method == "HEAD":
            return await self._store_head(answer, request, found)

        max_bytes = fetch.size_limit(policy.max_bytes)
        body = BodyPipeline(answer, fetch, policy, max_bytes)
        if self._decoder is not None and not body.may_decode(self._decoder) and may_repeat(self._entry):
            return Interrupted(
                wait_s=self._services.parameters.decoder_pause_s,
                note="as many bodies with large windows come as may",
            )
        whole = answer.status in {200, 203} and request.method == "GET"
        partly = answer.status == 206 and resumed
        digests = body.host_digests(whole=whole, resumed=partly) if answer.status != 416 else ()
        if body.decodes:  # what the host says is of the coded body (RFC 9530 §2, §3)
            body.check_coded(digests)
            expected = Expected(None, fetch.sha256, max_bytes)
        else:
            length_bytes = body.length_bytes
            if resume is not None:
                await resume.hash_by(dict(digests))
                length_bytes = resume.whole_bytes(length_bytes)
            expected = Expected(length_bytes, fetch.sha256, max_bytes, digests)

        # A body is found again by the URL of its fetch, which a redirect may have left.
        origin_policy = self._services.policy_of(fetch) if hops else policy
        indexed = fetch.revalidate or stale_fallback.in_force(fetch, origin_policy)
        options = StorageOptions(found if indexed else None, origin_policy.durability)
        stored = await self._receive(HttpExchange(request, answer), body, expected, options)
        if not isinstance(stored, StoredAt):
            return stored
        return Stored(
            status=answer.status,
            at=stored,
            validators=found,
            coding=body.coding,
            lines=body.lines,
            unverified=answer.ends_with_connection and not (body.coding_ended or expected.shows_the_whole),
        )

    async def _store_head(self, answer: Answer, request: Hop, found: Validators) -> AttemptOutcome:
        """Store a response without a body, if the sink stores such responses."""
        lane, sink = self._lane, self._services.sink
        await answer.discard()
        at: StoredAt | None = None
        if sink.keeps_heads:
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
        return Stored(status=answer.status, at=at, validators=found)

    async def _receive(
        self, exchange: HttpExchange, body: BodyPipeline, expected: Expected, options: StorageOptions
    ) -> StoredAt | AttemptOutcome:
        """Write the body to the sink; if it breaks off, keep what has come for a later attempt."""
        lane, sink, resume = self._lane, self._services.sink, self._resume
        if resume is not None:
            await resume.drop_unused()
        taken = resume.taken if resume is not None else None
        writer = sink.writer(self._entry, lane.token, expected, options, taken, exchange)
        try:
            if not self.has_all:
                parameters = self._services.parameters
                save_bytes = writer.size_bytes + parameters.checkpoint_bytes
                save_s = mono_s() + parameters.checkpoint_s
                await self.receive(body.receive, writer, exchange, save_bytes, save_s)
            return await writer.commit(lane.may_place) or Interrupted()
        except errors.ExistsError as error:
            return await stored_bodies.since_then(self._entry, exchange.answer.status, error, self._services)
        except BaseException as error:
            await self.broke_off(error, writer, exchange)
            raise
        finally:
            await writer.aclose()

    async def receive(
        self,
        receive: Callable[[Room], Awaitable[bytes | memoryview]],
        writer: BodyWriter,
        exchange: HttpExchange,
        save_bytes: int,
        save_s: float,
    ) -> None:
        """Write the pieces that `receive` returns up to an empty one, and save the body as it comes.

        First at save_bytes, or at save_s (monotonic).
        """
        parameters = self._services.parameters
        while True:
            if writer.full:
                await writer.drain()
            if (writer.size_bytes >= save_bytes or mono_s() >= save_s) and writer.resumable:
                self._resume = self._resume or Resume(self._session, self._entry)
                safe_bytes = await self._resume.checkpoint(writer, exchange)
                save_bytes = safe_bytes + parameters.checkpoint_bytes
                save_s = mono_s() + parameters.checkpoint_s
            piece = await receive(writer.room)
            if not piece:
                return
            writer.write(piece)

    async def broke_off(self, error: BaseException, writer: BodyWriter, exchange: HttpExchange) -> None:
        """Keep the part of the body that has come, if the host lets it be resumed."""
        self._resume = self._resume or Resume(self._session, self._entry)
        await self._resume.broke_off(error, writer, exchange)
