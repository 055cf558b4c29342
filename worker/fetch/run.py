"""The run of a fetch: attempt, report to the gate, decide, settle.

This module handles a plain GET completely. A cheap check leads to each special case (worker/fetch/cases/).
"""

import asyncio
from functools import partial

import msgspec

from fetchfleet.jobs.contract.checks.field_checks import IDEMPOTENT_METHODS
from fetchfleet.jobs.contract.entry import Entry, Hop
from fetchfleet.jobs.contract.result import Outcome, Reason
from fetchfleet.worker.fetch.cases import handover, host_signals, stored_bodies
from fetchfleet.worker.fetch.cases.redirect import move_to_lane, request_after
from fetchfleet.worker.fetch.cases.special import SPECIAL_FIELDS, SpecialCases
from fetchfleet.worker.fetch.cases.start_marker import run_marked
from fetchfleet.worker.fetch.error_mapping import expired_outcome, failure_of
from fetchfleet.worker.fetch.rules import decide
from fetchfleet.worker.fetch.rules.abilities import SETTING_OF_REASON
from fetchfleet.worker.fetch.rules.outcome import AttemptOutcome, Interrupted, Redirected, Stored, note_of
from fetchfleet.worker.fetch.rules.result import result_of
from fetchfleet.worker.fetch.rules.validators import VALIDATOR_FIELDS, validators_of
from fetchfleet.worker.fetch.services import FetchSession
from fetchfleet.worker.gate import quota, retry_budget
from fetchfleet.worker.gate.state import Breaker
from fetchfleet.worker.http.exchange import Answer, Trace, content_type_of, timings_of
from fetchfleet.worker.lanes import log_events, settler
from fetchfleet.worker.policy.model import DURABILITIES
from fetchfleet.worker.sink.base import Expected, HttpExchange, StorageOptions
from fetchfleet.worker.sink.index_entry import Validators
from fetchfleet.worker.util.clock import mono_s

_UNATTEMPTED = Interrupted()
_UNINDEXED = {durability: StorageOptions(None, durability) for durability in DURABILITIES}
"""The storage options of a body without an index entry, by the policy's durability."""


async def run_fetch(session: FetchSession, entry: Entry) -> None:
    """Run a claimed fetch that the gate admitted, from its request to its settlement."""
    if not entry.crashes and (entry.fetch.method in IDEMPOTENT_METHODS or decide.may_repeat(entry)):
        attempt = Attempt(session, entry)
        await attempt.run()
        await conclude(attempt)
    elif not await run_marked(session, entry, run_attempt, conclude):
        await finish_fetch(session, entry, decide.Finish(outcome=Outcome.FAILED, reason=Reason.DEADLINE))


async def run_attempt(session: FetchSession, entry: Entry) -> "Attempt":
    """Make an attempt, and return it after its end."""
    attempt = Attempt(session, entry)
    await attempt.run()
    return attempt


class Attempt:
    """One attempt at a fetch: the request, its redirects within the lane, and the body's way to the sink."""

    __slots__ = ("_expired", "entry", "hops", "outcome", "request", "session", "special", "status", "trace")

    def __init__(self, session: FetchSession, entry: Entry) -> None:
        self.session = session
        self.entry = entry
        self.trace = Trace(entry)
        self.request = entry.request
        """The last request that was sent."""
        self.hops = entry.hops
        self.status: int | None = None
        """The status of the last response; None before its head."""
        self.outcome: AttemptOutcome | None = None
        """None until the attempt ends, or if it never began because the lane had closed."""
        is_plain = entry.fetch.is_plain and session.lane.policy.is_plain
        continues = entry.part is not None or entry.hops > 0
        self.special = SpecialCases(session, entry) if continues or not is_plain else None
        self._expired: asyncio.Task[None] | None = None
        """The task of the attempt, once it was cancelled at its time limit."""

    async def run(self) -> None:
        """Make the exchanges and set the outcome. Raises nothing but CancelledError."""
        lane, deadlines = self.session.lane, self.session.services.deadlines
        if lane.blocked_s():
            return
        total_s = lane.policy.timeouts.total_s
        left_s = (self.entry.deadline_ms - lane.clock.now_ms()) / 1000
        deadlines.add(self, max(0.0, min(left_s, total_s)))
        try:
            while self.outcome is None:
                self.outcome = await self._exchange()
        except asyncio.CancelledError as cancelled:
            if self._expired is None or self._expired.uncancel():
                raise
            reason = Reason.DEADLINE if left_s <= total_s else Reason.TOTAL_TIMEOUT
            self.outcome = expired_outcome(self.session, cancelled, reason, self.status)
        except Exception as error:  # noqa: BLE001 after any error, the fetch must be settled
            self.outcome = await failure_of(self.session, self.entry, error, self.status)
        finally:
            deadlines.discard(self)
            if self.special is not None:
                self.special.close()

    def expire(self) -> None:
        """Cancel the attempt, because its time limit has passed."""
        self._expired = self.session.lane.in_flight[self.entry.id]
        self._expired.cancel()

    async def _exchange(self) -> AttemptOutcome | None:
        """Send one request and handle its response; return None if another request follows at once."""
        session, lane, special = self.session, self.session.lane, self.special
        self.status = None
        if not lane.live:
            return Interrupted()
        request = self.request if special is None else await special.prepare(self.request)
        answer = await session.services.engine.open(request, lane.pool, lane.policy.timeouts, self.trace)
        try:
            status = self.status = answer.status
            if answer.has_any(quota.FIELDS) or not (lane.grant or lane.gate.breaker is Breaker.CLOSED):
                host_signals.learn_from_head(session, self.trace, answer)
            if special is not None and await special.must_restart(answer):
                await answer.discard()
                return None if session.may_send_another() else Interrupted()
            if 200 <= status < 300 if special is None else special.has_body(answer):
                return await self._store(answer)
            await answer.discard()
            if status == 304:
                return await self._special().not_modified(answer, request)
            following = request_after(session, self.entry, self.request, self.hops, answer)
            if not isinstance(following, Hop):
                return following
            self.request, self.hops = following, self.hops + 1
            return None
        finally:
            answer.close()

    async def _store(self, answer: Answer) -> AttemptOutcome:
        """Store the body of a response, checked against its length."""
        lane, services, entry = self.session.lane, self.session.services, self.entry
        if self.special is not None or self.hops or answer.status == 206 or answer.has_any(SPECIAL_FIELDS):
            return await self._special().store(answer, self.request, self.hops)
        max_bytes = entry.fetch.size_limit(lane.policy.max_bytes)
        expected = Expected(answer.length_bytes, entry.fetch.sha256, max_bytes)
        url, has_validators = self.request.url, answer.has_any(VALIDATOR_FIELDS)
        validators = validators_of(url, answer.header) if has_validators else Validators(url)
        exchange, options = HttpExchange(self.request, answer), _UNINDEXED[lane.policy.durability]
        writer = services.sink.writer(entry, lane.token, expected, options, None, exchange)
        try:
            save_bytes = services.parameters.checkpoint_bytes
            save_s = mono_s() + services.parameters.checkpoint_s
            while piece := await answer.read():
                writer.write(piece)
                if writer.full or writer.size_bytes >= save_bytes or mono_s() >= save_s:
                    await self._special().resume.receive(answer.receive, writer, exchange, save_bytes, save_s)
                    break
            stored = await writer.commit(lane.may_place)
        except BaseException as error:
            await self._special().resume.keep_partial(error, writer, exchange)
            raise
        finally:
            await writer.aclose()
        if stored is None:
            return Interrupted()
        unverified = answer.ends_with_connection and not expected.detects_truncation
        return Stored(status=answer.status, at=stored, validators=validators, unverified=unverified)

    def _special(self) -> SpecialCases:
        """Return the special cases of this attempt; create them if needed."""
        if self.special is None:
            self.special = SpecialCases(self.session, self.entry)
        return self.special


async def conclude(attempt: Attempt) -> None:
    """Report the outcome of an attempt to the gate, decide about its fetch, and settle the decision."""
    session, entry, outcome = attempt.session, attempt.entry, attempt.outcome
    if outcome is None:  # the lane closed after the admission, so no request was sent
        settle_retry(session, decide.Retry(entry=entry, wait_s=session.lane.blocked_s(), reason=None))
        return
    if attempt.special is not None and attempt.special.resume.note is not entry.part:
        entry = msgspec.structs.replace(entry, part=attempt.special.resume.note)
    lane, services, now_ms = session.lane, session.services, session.lane.clock.now_ms()
    if lane.grant and isinstance(outcome, Stored) and outcome.status < 300:
        lane.count_answer(outcome.status, now_ms)
        await finish_fetch(session, entry, decide.STORED, outcome, attempt)
        return
    host_signals.learn(session, attempt.trace, outcome, entry.id)
    # Decide after the report to the gate: a retry waits until the lane opens, which may just have closed.
    host = host_signals.host_state(session)
    decision = decide.decide(entry, outcome, lane.policy, now_ms, host, services.chance())
    if isinstance(decision, decide.Retry):
        session.count_interruptions([entry], [decision.entry])
        if decision.entry.attempts > entry.attempts:
            session.change_gate(retry_budget.retried(lane.gate, now_ms))
    match decision:
        case decide.Finish() as end:
            if end.reason in SETTING_OF_REASON and await handover.hand_over_after_failure(
                session, entry, outcome
            ):
                return
            await finish_fetch(session, entry, end, outcome, attempt)
        case decide.Retry() as retry:
            settle_retry(session, retry, outcome)
        case decide.MoveLane(entry=moved):
            if not await move_to_lane(session, moved):
                await finish_fetch(session, moved, decide.CANCELLED)


async def finish_fetch(
    session: FetchSession,
    entry: Entry,
    finish: decide.Finish,
    outcome: AttemptOutcome = _UNATTEMPTED,
    attempt: Attempt | None = None,
) -> None:
    """Settle the end of a fetch. If its host is down, a body stored before may replace a failure."""
    lane, services = session.lane, session.services
    stand_in = host_note = None
    if finish.outcome is Outcome.FAILED:
        host_note = host_signals.note_of_dead_host(session, finish)
        stand_in = await stored_bodies.stand_in(session, entry, finish, outcome)
    if entry.part is not None:
        services.sink.disk.remove_partial_file(entry.id, entry.part)
    last_url, trace = (attempt.request.url, attempt.trace) if attempt is not None else (None, None)
    result = result_of(
        entry,
        finish,
        outcome,
        last_url,
        stand_in,
        timings_of(trace, lane.clock.now_ms() - entry.submitted_ms),
        content_type_of(trace),
        services.worker_id,
        store=services.sink.store,
        host_note=host_note,
    )
    if result.outcome is Outcome.FAILED:
        session.settle(settler.failed(result))
    line = log_events.finished(lane, entry, result, trace, attempt.hops if attempt is not None else None)
    if services.record_span is None:
        session.settle(settler.finished(result, line=line))
    else:
        session.settle(settler.finished(result, partial(services.record_span, entry, line), line))


def settle_retry(session: FetchSession, retry: decide.Retry, outcome: AttemptOutcome = _UNATTEMPTED) -> None:
    """Settle the fetch as a retry: it waits in its lane for the next attempt."""
    status = None if isinstance(outcome, Interrupted | Redirected) else outcome.status
    services, wait_s, note = session.services, retry.wait_s, note_of(outcome)
    entry = decide.waiting(retry.entry, session.lane.clock.now_ms(), wait_s) if wait_s > 0 else retry.entry
    totals, log = services.settler.totals, services.log
    line = log_events.retry(session.lane.name, entry, wait_s, retry.reason, status, note, totals, log)
    session.settle(settler.retried(entry, wait_s, line))
