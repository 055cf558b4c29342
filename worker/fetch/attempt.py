"""One attempt at a fetch: the request, its redirects, the body into the sink. It returns the outcome."""

import asyncio
from contextlib import closing

from fetchfleet.jobs.contract.entry import Entry, Hop
from fetchfleet.jobs.contract.field_checks import Fallback
from fetchfleet.jobs.contract.model import Reason
from fetchfleet.worker import errors
from fetchfleet.worker.body.pipeline import BodyPipeline, DecoderSlot, with_accept_encoding
from fetchfleet.worker.fetch.cases import existing
from fetchfleet.worker.fetch.cases.redirect import followed
from fetchfleet.worker.fetch.error_mapping import failure_of
from fetchfleet.worker.fetch.resume import Resume
from fetchfleet.worker.fetch.rules import stale_fallback, trace_context
from fetchfleet.worker.fetch.rules.decide import may_repeat
from fetchfleet.worker.fetch.rules.outcome import (
    Answered,
    AttemptOutcome,
    Failed,
    Interrupted,
    Stored,
    is_host_failure,
)
from fetchfleet.worker.fetch.rules.range_rules import RangeVerdict
from fetchfleet.worker.fetch.rules.redirects import is_redirect
from fetchfleet.worker.fetch.rules.validators import conditional, validators_of
from fetchfleet.worker.fetch.services import FetchSession
from fetchfleet.worker.gate import gate, quota
from fetchfleet.worker.gate.gate import HostSignal, Observation
from fetchfleet.worker.gate.retry_after import retry_after_s
from fetchfleet.worker.gate.state import Breaker
from fetchfleet.worker.http.answer import Answer
from fetchfleet.worker.http.trace import Trace
from fetchfleet.worker.sink.base import Expected, HttpExchange, StorageOptions, StoredAt
from fetchfleet.worker.sink.index_entry import IndexEntry, Validators
from fetchfleet.worker.util.clock import mono_s


async def attempted(session: FetchSession, entry: Entry) -> "Attempt":
    """Return an attempt that has ended, or that has not begun, because the host has closed meanwhile."""
    attempt = Attempt(session, entry)
    if not session.lane.blocked_s():
        attempt.outcome = await attempt.run()
    return attempt


class Attempt:
    """One attempt. `trace`, `request` and `part` tell afterwards how far it came."""

    def __init__(self, session: FetchSession, entry: Entry) -> None:
        self.session = session
        self.lane = session.lane
        self.services = session.services
        self.entry = entry
        self.trace = Trace(entry)
        self.request = entry.request
        """The request that went out last."""
        self.hops = entry.hops
        self.status: int | None = None
        self.outcome: AttemptOutcome | None = None
        """None before its end."""
        # These are for special cases only: a plain GET has none of them.
        self.resume = Resume(session, entry) if entry.part is not None else None
        self._decoder = DecoderSlot(session.services.decoder_budget) if entry.fetch.decode else None
        self._expired: asyncio.Task[None] | None = None
        """The task, once the time of the attempt has passed."""
        self._known: IndexEntry | None = None
        """The index entry of the stored body, if the fetch revalidates."""

    @property
    def part(self) -> object:
        """The note of the partial body that the fetch carries on, None if there is none."""
        return self.entry.part if self.resume is None else self.resume.note

    async def run(self) -> AttemptOutcome:
        """Return the outcome; raise nothing but CancelledError."""
        deadlines, total_s = self.services.deadlines, self.lane.policy.timeouts.total_s
        left_s = (self.entry.deadline_ms - self.lane.clock.now_ms()) / 1000
        deadlines.add(self, max(0.0, min(left_s, total_s)))
        try:
            if self.entry.fetch.revalidate:
                self._known = await existing.known_of(self.entry.fetch, self.services.sink)
            while True:
                outcome = await self._exchange()
                if outcome is not None:
                    return outcome
        except asyncio.CancelledError:
            if self._expired is None or self._expired.uncancel():
                raise
            late = Reason.DEADLINE if left_s <= total_s else Reason.TOTAL_TIMEOUT
            return Failed(reason=late, final=late is Reason.DEADLINE, status=self.status)
        except Exception as error:  # noqa: BLE001 whatever it is, the fetch must be settled
            return await failure_of(self.session, self.entry, error, self.status)
        finally:
            deadlines.discard(self)
            if self.resume is not None:
                self.resume.close()
            if self._decoder is not None:
                self._decoder.give_back()

    def expire(self) -> None:
        """Stop: the time of the attempt has passed."""
        self._expired = self.lane.in_flight[self.entry.id]
        self._expired.cancel()

    async def _exchange(self) -> AttemptOutcome | None:
        """Make one request and handle its response; return None if another request is to follow at once."""
        lane, fetch, resume = self.lane, self.entry.fetch, self.resume
        self.status = None
        if not lane.live:
            return Interrupted()
        request = self.request
        if self._decoder is not None:
            request = with_accept_encoding(request, fetch, self._decoder)
        if resume is not None:
            request = await resume.asked(request)
        if self._known is not None and (resume is None or resume.taken is None):
            request = conditional(request, self._known)  # else If-Range detects a newer version
        if lane.policy.context:
            chance = self.services.chance
            request = trace_context.carried(request, fetch, self.entry.id, chance(), chance())
        engine, timeouts = self.services.engine, lane.policy.timeouts
        with closing(await engine.open(request, lane.pool, timeouts, self.trace)) as answer:
            self.status = answer.status
            self._learn_from_head(answer)
            verdict = RangeVerdict.NOTHING if resume is None else await resume.judge(answer)
            if verdict is not RangeVerdict.REFUSE and (
                200 <= answer.status < 300 or verdict is RangeVerdict.COMPLETE
            ):
                return await self._store_body(answer)
            await answer.discard()
            if verdict is RangeVerdict.REFUSE:
                return None if self.session.may_send_another() else Interrupted()
            if answer.status == 304:
                return await existing.not_modified(answer, request, fetch, self._known, self.services.sink)
            wait_s = self._asked_s(answer)
            if not is_redirect(answer.status):
                return Answered(status=answer.status, wait_s=wait_s)
            next_ = followed(self.session, self.entry, self.request, self.hops, answer, wait_s)
            if not isinstance(next_, Hop):
                return next_
            self.request = next_
            self.hops += 1
            return None

    def _asked_s(self, answer: Answer) -> float | None:
        """Return the wait that the response asks for by Retry-After."""
        asked = ", ".join(answer.values("retry-after"))
        return retry_after_s(asked, answer.header("date"), self.lane.clock.now_ms())

    def _learn_from_head(self, answer: Answer) -> None:
        """Close the breaker after a probe, however large its body is, and heed the host's quota."""
        lane, before = self.lane, self.lane.gate
        names_quota = lane.policy.quota and any(answer.header(name) is not None for name in quota.FIELDS)
        if before.breaker is Breaker.CLOSED and not names_quota:
            return
        now_ms = lane.clock.now_ms()
        if before.breaker is Breaker.HALF_OPEN and not is_host_failure(answer.status):
            sent_ms = lane.since_ms(self.trace.started_s)
            alive = Observation(HostSignal.ANSWERED, sent_ms, len(lane.in_flight))
            self.session.change_gate(gate.attempt_ended(before, lane.policy, alive, now_ms, 0.0))
        found = quota.quota_of(answer.header, now_ms) if names_quota else None
        # A Retry-After takes precedence (draft-ietf-httpapi-ratelimit-headers-11 §5).
        if found is not None and answer.header("retry-after") is None:
            at_once = gate.max_in_flight(lane.gate, lane.policy)
            in_flight = len(lane.in_flight) - 1
            self.session.change_gate(gate.quota_received(lane.gate, found, in_flight, now_ms, at_once))
        if lane.gate is not before:
            lane.notify()

    async def _store_body(self, answer: Answer) -> AttemptOutcome:
        """Store the body of a 2xx response, checked against its length and digests."""
        fetch, policy, resume = self.entry.fetch, self.lane.policy, self.resume
        resumed = resume is not None and resume.taken is not None
        asked_for_range = any(name.lower() == "range" for name, _ in self.request.headers)
        if answer.status == 206 and not resumed and not asked_for_range:
            raise errors.BadAnswerError("206 although no range was asked for")
        found = Validators(self.request.url)
        if answer.header("etag") is not None or answer.header("last-modified") is not None:
            found = validators_of(self.request.url, answer.header)
        if self.request.method == "HEAD":
            return await self._store_head(answer, found)

        max_bytes = min((most for most in (fetch.max_bytes, policy.max_bytes) if most), default=0)
        body = BodyPipeline(answer, fetch, policy, max_bytes)
        if self._decoder is not None and not body.may_decode(self._decoder) and may_repeat(self.entry):
            return Interrupted(
                wait_s=self.services.tuning.decoder_pause_s,
                note="as many bodies with large windows come as may",
            )
        whole = answer.status in {200, 203} and self.request.method == "GET"
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

        stored = await self._receive(answer, body, expected, found)
        if not isinstance(stored, StoredAt):
            return stored
        return Stored(
            status=answer.status,
            path=stored.path,
            size_bytes=stored.size_bytes,
            sha256=stored.sha256,
            etag=found.etag,
            last_modified=found.last_modified,
            coding=body.coding,
            lines=body.lines,
            unverified=answer.ends_with_connection and not (body.coding_ended or expected.shows_the_whole),
            offset=stored.offset,
            length=stored.length,
        )

    async def _store_head(self, answer: Answer, found: Validators) -> AttemptOutcome:
        """Store a response without a body, if the sink stores such responses."""
        lane, sink = self.lane, self.services.sink
        await answer.discard()
        stored: StoredAt | None = None
        if sink.keeps_heads:
            options = StorageOptions(durability=lane.policy.durability)
            exchange = HttpExchange(self.request, answer)
            writer = sink.writer(self.entry, lane.token, Expected(), options, exchange=exchange)
            try:
                stored = await writer.commit(lambda: lane.live)
            finally:
                await writer.aclose()
            if stored is None:
                return Interrupted()
        return Stored(
            status=answer.status,
            path=stored.path if stored else None,
            size_bytes=0,
            sha256=None,
            etag=found.etag,
            last_modified=found.last_modified,
            offset=stored.offset if stored else None,
            length=stored.length if stored else None,
        )

    async def _receive(
        self, answer: Answer, body: BodyPipeline, expected: Expected, found: Validators
    ) -> StoredAt | AttemptOutcome:
        """Write the body to the sink; if it breaks off, keep what has come for a later attempt."""
        lane, fetch, sink = self.lane, self.entry.fetch, self.services.sink
        policy = self.services.policy_of(fetch) if self.hops else lane.policy
        stale = (fetch.fallback or policy.fallback) == Fallback.STALE and stale_fallback.in_force(
            fetch, policy
        )
        options = StorageOptions(found if stale or fetch.revalidate else None, policy.durability)
        exchange = HttpExchange(self.request, answer)
        taken = self.resume.taken if self.resume is not None else None
        every_bytes = self.services.tuning.checkpoint_bytes
        every_s = self.services.tuning.checkpoint_s
        if self.resume is not None:
            await self.resume.drop_unused()
        writer = sink.writer(self.entry, lane.token, expected, options, taken, exchange)
        try:
            if self.resume is None or self.resume.verdict is not RangeVerdict.COMPLETE:
                due_bytes, due_s = writer.size_bytes + every_bytes, mono_s() + every_s
                async with body.pieces() as pieces:
                    async for piece in pieces:
                        writer.write(piece)
                        if writer.full:
                            await writer.drain()
                        late = writer.size_bytes >= due_bytes or mono_s() >= due_s
                        if late and writer.worth_keeping:
                            self.resume = self.resume or Resume(self.session, self.entry)
                            safe_bytes = await self.resume.checkpoint(writer, exchange)
                            due_bytes, due_s = safe_bytes + every_bytes, mono_s() + every_s
            return await writer.commit(lambda: lane.live) or Interrupted()
        except errors.ExistsError as error:
            return await existing.since_then(self.entry, answer.status, error, self.services)
        except BaseException as error:
            self.resume = self.resume or Resume(self.session, self.entry)
            await self.resume.broke_off(error, writer, exchange)
            raise
        finally:
            await writer.aclose()
