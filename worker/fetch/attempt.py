"""One attempt at a fetch: the request, its redirects, the body to disk. It says what happened."""

from fetchfleet.jobs.contract.entry import Entry, Hop
from fetchfleet.jobs.contract.model import Reason
from fetchfleet.jobs.contract.urls import lane_of_url
from fetchfleet.worker import errors
from fetchfleet.worker.body.pipeline import BodyPipeline, DecoderSlot, with_accept_encoding
from fetchfleet.worker.fetch import error_mapping, if_exists, log_events
from fetchfleet.worker.fetch.resume import Resuming
from fetchfleet.worker.fetch.revalidate import known_of, not_modified
from fetchfleet.worker.fetch.rules import trace_context
from fetchfleet.worker.fetch.rules.decide import may_repeat
from fetchfleet.worker.fetch.rules.outcome import (
    Answered,
    AttemptOutcome,
    Failed,
    Interrupted,
    Redirected,
    Stored,
)
from fetchfleet.worker.fetch.rules.range_rules import RangeVerdict
from fetchfleet.worker.fetch.rules.redirects import MAX_HOPS, RedirectRefused, follow, is_redirect
from fetchfleet.worker.fetch.rules.stale_fallback import in_force
from fetchfleet.worker.fetch.rules.validators import conditional, validators_of
from fetchfleet.worker.fetch.services import FetchServices
from fetchfleet.worker.gate import gate
from fetchfleet.worker.gate.gate import Admit, HostSignal, Observation
from fetchfleet.worker.gate.quota import quota_of
from fetchfleet.worker.gate.retry_after import retry_after_s
from fetchfleet.worker.gate.state import Breaker
from fetchfleet.worker.http.base import Answer, Trace
from fetchfleet.worker.lanes import log_events as lane_events
from fetchfleet.worker.lanes.lane import Lane
from fetchfleet.worker.sink.base import Expected, HttpExchange, Sink, StorageOptions, StoredAt
from fetchfleet.worker.sink.index_entry import IndexEntry, Validators

BUSY_PAUSE_S = 5.0
"""Before a body is asked for again whose host coded it as it was not offered, while no window was free."""


class Attempt:
    """One attempt; `trace` and `hops` tell afterwards how far it came."""

    def __init__(self, entry: Entry, lane: Lane, services: FetchServices) -> None:
        self.entry = entry
        self.lane = lane
        self.services = services
        self.trace = Trace(entry)
        self.request = entry.request
        self.hops = entry.hops
        self.status: int | None = None
        self._sink: Sink = services.sink
        self._known: IndexEntry | None = None
        self._decoder_slot = DecoderSlot(services.decoder_budget)
        self.resuming = Resuming(entry, lane, services)

    @property
    def started_ms(self) -> int:
        """When it began, by Redis's clock."""
        return self.lane.since_ms(self.trace.started_s)

    async def run(self) -> AttemptOutcome:
        """What happened; never raises but for cancellation."""
        left_s, late = self._time_left()
        bound = self.services.deadlines.timeout(left_s)
        try:
            async with bound:
                self._known = await known_of(self.entry.fetch, self.services.sink)
                while True:
                    happened = await self._exchange()
                    if happened is not None:
                        return happened
        except Exception as error:  # noqa: BLE001 whatever it is, the fetch must get its due
            if isinstance(error, TimeoutError) and bound.expired():
                return Failed(reason=late, final=late is Reason.DEADLINE, status=self.status)
            return broken(error, self.status, self.entry, self.lane, self.services)
        finally:
            self.services.deadlines.over(bound)
            self.resuming.close()
            self._decoder_slot.give_back()

    async def _exchange(self) -> AttemptOutcome | None:
        """One request and its answer; None when another is to follow at once."""
        self.status = None
        if not self.lane.live:
            return Interrupted()
        timeouts = self.lane.policy.timeouts
        request = await self.resuming.asked(
            with_accept_encoding(self.request, self.entry.fetch, self._decoder_slot)
        )
        if self.resuming.taken is None:  # else a newer version is told by the range's own condition
            request = conditional(request, self._known)
        if self.lane.policy.context:
            request = self._with_context(request)
        async with self.services.engine.open(request, self.lane.pool, timeouts, self.trace) as answer:
            self.status = answer.status
            self._head_came(answer)
            verdict = await self.resuming.judge(answer)
            if verdict is not RangeVerdict.REFUSE and (
                200 <= answer.status < 300 or verdict is RangeVerdict.COMPLETE
            ):
                return await self._keep(answer)
            await answer.discard()
            if verdict is RangeVerdict.REFUSE:
                return None if self._may_follow() else Interrupted()
            if answer.status == 304:
                return await not_modified(answer, request, self.entry.fetch, self._known, self.services.sink)
            if is_redirect(answer.status):
                return self._redirected(answer)
            return self._refused(answer)

    def _with_context(self, request: Hop) -> Hop:
        chance = self.services.chance
        return trace_context.carried(request, self.entry.fetch, self.entry.id, chance(), chance())

    def _head_came(self, answer: Answer) -> None:
        """A probe is answered by its head, however big its body; and the head may name a quota."""
        lane, now_ms = self.lane, self.lane.clock.now_ms()
        before = lane.gate
        if lane.gate.breaker is Breaker.HALF_OPEN and answer.status < 500:
            alive = Observation(HostSignal.ANSWERED, self.started_ms, len(lane.in_flight))
            lane.gate = gate.attempt_ended(lane.gate, lane.policy, alive, now_ms, 0.0)
        quota = quota_of(answer.header, now_ms) if lane.policy.quota else None
        # A Retry-After takes precedence (draft-ietf-httpapi-ratelimit-headers-11 §5).
        if quota is not None and answer.header("retry-after") is None:
            at_once = gate.max_in_flight(lane.gate, lane.policy)
            lane.gate = gate.quota_received(lane.gate, quota, len(lane.in_flight) - 1, now_ms, at_once)
        if lane.gate is not before:
            lane_events.gate_changed(lane, before, self.services.log)
            lane.notify()

    async def _keep(self, answer: Answer) -> AttemptOutcome:
        """The body to disk; checked against its length and the caller's digest."""
        if answer.status == 206 and self.resuming.taken is None and not self._asked_for("range"):
            raise errors.BadAnswerError("206 although no range was asked for")
        found = validators_of(self.request.url, answer.header)
        if self.request.method == "HEAD":
            return await self._keep_head(answer, found)
        max_bytes = self._max_bytes()
        body = BodyPipeline(answer, self.entry.fetch, self.lane.policy, max_bytes)
        if not body.may_decode(self._decoder_slot) and may_repeat(self.entry):
            return Interrupted(wait_s=BUSY_PAUSE_S, note="as many bodies with large windows come as may")
        expected = await self._expected(answer, body, max_bytes)
        kept = await self._received(answer, body, expected, found)
        if not isinstance(kept, StoredAt):
            return kept
        return Stored(
            status=answer.status,
            path=kept.path,
            size_bytes=kept.size_bytes,
            sha256=kept.sha256,
            etag=found.etag,
            last_modified=found.last_modified,
            coding=body.coding,
            lines=body.lines,
            unverified=answer.ends_with_connection and not (body.decodes or expected.shows_the_whole),
            offset=kept.offset,
            length=kept.length,
        )

    async def _keep_head(self, answer: Answer, found: Validators) -> AttemptOutcome:
        """An answer without a body; it has a place where heads are kept."""
        await answer.discard()
        kept: StoredAt | None = None
        if self._sink.keeps_heads:
            options = StorageOptions(durability=self.lane.policy.durability)
            exchange = HttpExchange(self.request, answer)
            async with self._sink.receive(
                self.entry, self.lane.token, Expected(), options, exchange=exchange
            ) as part:
                kept = await part.commit(lambda: self.lane.live)
            if kept is None:
                return Interrupted()
        return Stored(
            status=answer.status,
            path=kept.path if kept else None,
            size_bytes=0,
            sha256=None,
            etag=found.etag,
            last_modified=found.last_modified,
            offset=kept.offset if kept else None,
            length=kept.length if kept else None,
        )

    async def _received(
        self, answer: Answer, body: BodyPipeline, expected: Expected, found: Validators
    ) -> StoredAt | AttemptOutcome:
        """The body in its place, or why it is not there; half of one is kept, if it may be gone on with."""
        policy = self.services.policy_of(self.entry.fetch) if self.hops else self.lane.policy
        remember = found if in_force(self.entry.fetch, policy) or self.entry.fetch.revalidate else None
        options, taken = StorageOptions(remember, policy.durability), self.resuming.taken
        exchange = HttpExchange(self.request, answer)
        async with (
            self._sink.receive(self.entry, self.lane.token, expected, options, taken, exchange) as part,
            self.resuming.keeping(part, self.request, answer) as keeping,
        ):
            if self.resuming.verdict is not RangeVerdict.COMPLETE:
                async with body.pieces() as pieces:
                    async for piece in pieces:
                        await part.write(piece)
                        await keeping.after_chunk()
            try:
                return await part.commit(lambda: self.lane.live) or Interrupted()
            except errors.ExistsError as error:
                return await if_exists.since_then(self.entry, answer.status, error, self.services)

    async def _expected(self, answer: Answer, body: BodyPipeline, max_bytes: int) -> Expected:
        """What the body must be, by its host's word and its caller's."""
        sha256 = self.entry.fetch.sha256
        resumed = answer.status == 206 and self.resuming.taken is not None
        whole = answer.status in {200, 203} and self.request.method == "GET"
        digests = body.host_digests(whole=whole, resumed=resumed) if answer.status != 416 else ()
        if body.decodes:  # what its host says is of the coded one (RFC 9530 §2, §3)
            body.check_coded(digests)
            return Expected(None, sha256, max_bytes)
        await self.resuming.hash_by(dict(digests))
        return Expected(self.resuming.whole_bytes(body.length_bytes), sha256, max_bytes, digests)

    def _redirected(self, answer: Answer) -> AttemptOutcome | None:
        """Followed at once within the lane while its gate is open, else through the lane of its host."""
        if self.hops >= MAX_HOPS:
            return Failed(reason=Reason.TOO_MANY_REDIRECTS, final=True, status=answer.status)
        safe = may_repeat(self.entry)
        clear = self.lane.policy.https_to_http
        location = answer.header("location")
        hop = follow(self.request, answer.status, location, repeat_safe=safe, https_to_http=clear)
        if isinstance(hop, RedirectRefused):
            note = hop.message
            return Failed(reason=Reason.REDIRECT_REFUSED, final=True, status=answer.status, note=note)
        rules = self.lane.rules(hop.url) if lane_of_url(hop.url) == self.lane.name else None
        if rules is not None and not rules.allows(hop.url):
            return Failed(reason=Reason.ROBOTS_DISALLOWED, final=True, status=answer.status)
        if rules is None or not self._may_follow():
            return Redirected(hop=hop, hops=self.hops + 1, status=answer.status)
        self.request = hop
        self.hops += 1
        return None

    def _may_follow(self) -> bool:
        if not isinstance(self.lane.verdict(besides=1), Admit):
            return False
        self.lane.count_start()
        return True

    def _refused(self, answer: Answer) -> AttemptOutcome:
        """An answer without a body for us."""
        wait_s = retry_after_s(answer.header("retry-after"), answer.header("date"), self.lane.clock.now_ms())
        return Answered(status=answer.status, wait_s=wait_s)

    def _asked_for(self, header: str) -> bool:
        return any(name.lower() == header for name, _ in self.request.headers)

    def _max_bytes(self) -> int:
        own, most = self.entry.fetch.max_bytes, self.lane.policy.max_bytes
        return min(own, most) if own and most else own or most

    def _time_left(self) -> tuple[float, Reason]:
        """How many seconds the attempt has, and what ends it then: its policy's total or its own deadline."""
        total_s = self.lane.policy.timeouts.total_s
        left_s = (self.entry.deadline_ms - self.lane.clock.now_ms()) / 1000
        if left_s <= total_s:
            return max(0.0, left_s), Reason.DEADLINE
        return total_s, Reason.TOTAL_TIMEOUT


def broken(
    error: Exception, status: int | None, entry: Entry, lane: Lane, services: FetchServices
) -> AttemptOutcome:
    """What an error of an exchange means; one that nobody foresaw is a bug of ours, and is told."""
    if isinstance(error, errors.InTheWayError):
        log_events.in_the_way(error, entry, lane.name, services.log)
    if error_mapping.is_of_the_disk(error):
        services.sink.disk.refused()
    happened = error_mapping.outcome_of(error, status=status)
    if happened is None:
        log_events.bug(error, entry, lane.name, services.log)
        return Failed(reason=Reason.INTERNAL, status=status, note=repr(error))
    return happened
