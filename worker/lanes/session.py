"""One acquisition of a lane, with the services that the work on it uses."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from redis.exceptions import RedisError

from fetchfleet.jobs import keys
from fetchfleet.jobs.contract.entry import (
    MAX_ENTRY_BYTES,
    BadEntryError,
    Entry,
    NewerEntryError,
    TooLargeEntryError,
    parse_entry,
    serialize_entry,
)
from fetchfleet.jobs.contract.urls import origin_of_url
from fetchfleet.jobs.scripts.lanes import UNRECORDED, Claim, ClaimReply
from fetchfleet.worker.gate import gate, waits
from fetchfleet.worker.gate.gate import Admit, Closed
from fetchfleet.worker.gate.state import GateState
from fetchfleet.worker.lanes import invalid_claims, log_events
from fetchfleet.worker.lanes.lane import Lane
from fetchfleet.worker.lanes.services import LaneServices, QuarantineReason
from fetchfleet.worker.lanes.settler import Settlement
from fetchfleet.worker.lanes.store import LaneLostError

REDIS_PAUSE_S = 0.5
"""Wait before a failed call to Redis is repeated."""

S_co = TypeVar("S_co", bound=LaneServices, covariant=True)
T = TypeVar("T")


class LaneSession(Generic[S_co]):
    """One acquisition of a lane, up to its release."""

    __slots__ = ("lane", "services")

    def __init__(self, lane: Lane, services: S_co) -> None:
        self.lane = lane
        self.services = services

    def settle(self, settlement: Settlement) -> None:
        """Add a settlement, which is written to Redis soon."""
        self.services.settler.add(self.lane, settlement)

    def decode(self, claimed: ClaimReply) -> list[Entry]:
        """Return the claimed entries that are fetches of this lane and of their batches.

        The others are returned for newer workers, or quarantined. Every claimed element must pass this check.
        """
        lane, services = self.lane, self.services
        entries: list[Entry] = []
        for _ in range(claimed.too_large):
            note = f"has more than {MAX_ENTRY_BYTES} bytes"
            invalid_claims.log_quarantine(lane, services, QuarantineReason.TOO_LARGE, note)
        for element, record in zip(claimed.serialized, claimed.records, strict=True):
            why, note = QuarantineReason.UNREADABLE, ""
            try:
                entry = parse_entry(element)
                if not entry.may_wait_in(lane.name):
                    why, note = invalid_claims.wrong_lane(entry.id)
                elif record == UNRECORDED or entry.is_recorded(record, element):
                    entries.append(entry)
                    continue
                else:
                    why, note = invalid_claims.not_recorded(record, entry.id)
            except NewerEntryError as newer:
                if not newer.may_wait_in(lane.name):
                    why, note = invalid_claims.wrong_lane(newer.fetch_id)
                elif record in {UNRECORDED, newer.record}:
                    invalid_claims.return_newer(lane, services, newer)
                    continue
                else:
                    why, note = invalid_claims.not_recorded(record, newer.fetch_id)
            except TooLargeEntryError as error:
                why, note = QuarantineReason.TOO_LARGE, str(error)
            except BadEntryError as error:
                note = str(error)
            unrecorded = why is QuarantineReason.UNREADABLE and record == UNRECORDED
            invalid_claims.quarantine(lane, services, element, why, note, with_result=unrecorded)
        return entries

    def hold(self, claimed: ClaimReply) -> None:
        """Add claimed entries to the lane's `ready` fetches."""
        for entry in self.decode(claimed):
            self.lane.hold(entry)

    def hold_claim(self, claim: Claim) -> None:
        """Add the entries of a claim to the lane's `ready` fetches, and record if the queues are empty."""
        self.hold(claim)
        emptied = not claim.waiting and claim.next_retry_ms is None
        self.lane.claims.record(emptied=emptied, found=bool(claim.serialized), left_waiting=claim.waiting > 0)

    def change_gate(self, state: GateState, *, save: bool = False) -> None:
        """Replace the state of the lane's gate, and log a new cool-down or breaker state.

        All changes go through this method. The state is saved with the next settlement or the release of the
        lane. save: save it soon even without a settlement.
        """
        lane, before = self.lane, self.lane.gate
        if state is before:
            return
        lane.gate = state
        if state.cool_until_ms != before.cool_until_ms or state.breaker is not before.breaker:
            log_events.gate_changed(lane, before, self.services.log)
        if save:
            self.services.settler.save_gate(lane)

    def note_closed(self, closed: Closed) -> None:
        """Record that the lane is closed, for the log lines of the fetches that wait."""
        self.change_gate(waits.closed(self.lane.gate, closed, self.lane.clock.now_ms()))

    def note_open(self) -> None:
        """Record that the lane is open again, if it has opened early."""
        lane, now_ms = self.lane, self.lane.clock.now_ms()
        if lane.closed_periods[-1].until_ms > now_ms and lane.closed() is None:
            self.change_gate(waits.opened(lane.gate, now_ms))

    def count_start(self, *, save_rate: bool = False) -> None:
        """Count a request that is about to be sent, of a fetch or of a redirect.

        save_rate: if a rate limit applies, save the gate soon, so that it holds after a crash of this worker.
        """
        lane, now_ms = self.lane, self.lane.clock.now_ms()
        if lane.grant:
            lane.count_start(now_ms)
            return
        after = gate.started(lane.gate, lane.policy, now_ms)
        self.change_gate(after, save=save_rate and after.paced_ms != lane.gate.paced_ms)

    def may_send_another(self) -> bool:
        """Return whether a fetch in flight may send its next request now. Counts the request if so."""
        if not isinstance(self.lane.admission(excluding=1), Admit):
            return False
        self.count_start()
        return True

    def count_interruptions(self, before: Sequence[Entry], after: Sequence[Entry]) -> None:
        """Count the interruptions that entries of the lane have gained."""
        gained = sum(entry.interruptions for entry in after) - sum(entry.interruptions for entry in before)
        self.services.settler.totals.interruptions += gained

    async def retry_until_lost(self, call: Callable[[], Awaitable[T]]) -> T:
        """Repeat a call to Redis until it succeeds. Raises LaneLostError once the lane is lost.

        A call whose reply was lost runs twice. That is safe: the release returns unknown claims, and the
        other scripts skip changes that were made already.
        """
        lane, services = self.lane, self.services
        while True:
            try:
                return await call()
            except (RedisError, OSError) as error:
                services.report_redis_error(error)
                others: dict[str, str] = {}
                for entry in lane.entries.values():
                    others |= keys.kinds_of_batch(entry.batch_id)
                    others[keys.robots(origin_of_url(entry.url))] = "string"
                try:
                    if await services.key_repair.repair(error, lane.name, others):
                        continue
                except (RedisError, OSError):
                    pass
            await lane.changed(REDIS_PAUSE_S)
            if lane.lost:
                raise LaneLostError

    async def adopt(self, entries: list[Entry]) -> None:
        """Add entries that a dead owner had claimed, and save their changed counters."""
        lane, store = self.lane, self.services.store
        for entry in entries:
            lane.hold(entry)
        if entries:
            elements = [serialize_entry(entry) for entry in entries]
            await self.retry_until_lost(lambda: store.adopt(lane.name, lane.token, elements))

    async def release(self, unfinished: list[Entry], needs: str = "") -> None:
        """Release the lane, and return its claims that are not settled.

        needs: hand the lane over to a worker that meets these needs (worker/fetch/cases/handover.py).
        """
        lane, services = self.lane, self.services
        closed = lane.closed()
        if closed is not None:
            self.note_closed(closed)
        state, elements = lane.gate_to_save(), [serialize_entry(entry) for entry in unfinished]
        due = await self.retry_until_lost(
            lambda: services.store.release(
                lane.name,
                lane.token,
                state,
                closed.until_ms if closed else 0,
                closed.why.value if closed else "",
                elements,
                needs,
            )
        )
        lane.released = True
        log_events.released(lane, closed, due, len(unfinished), services.worker_id)
        if due is not None and not lane.for_upkeep:  # else it is not new to workers that start fetches
            await services.notify([due])
