"""A lane held by this worker, with the services that work on it needs."""

from collections.abc import Awaitable, Callable
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
from fetchfleet.worker.gate import gate
from fetchfleet.worker.gate.gate import Admit
from fetchfleet.worker.gate.state import GateState
from fetchfleet.worker.lanes import invalid_claims, log_events
from fetchfleet.worker.lanes.lane import Lane
from fetchfleet.worker.lanes.services import LaneServices, QuarantineReason
from fetchfleet.worker.lanes.settler import Settlement
from fetchfleet.worker.lanes.store import LaneLostError

REDIS_PAUSE_S = 0.5
"""Between two tries of a call that Redis did not answer."""

S_co = TypeVar("S_co", bound=LaneServices, covariant=True)
T = TypeVar("T")


class LaneSession(Generic[S_co]):
    """One acquisition of a lane, up to its release."""

    __slots__ = ("lane", "services")

    def __init__(self, lane: Lane, services: S_co) -> None:
        self.lane = lane
        self.services = services

    def settle(self, settlement: Settlement) -> None:
        """Write the change to a claimed fetch soon."""
        self.services.settler.add(self.lane, settlement)

    def decode(self, claimed: ClaimReply) -> list[Entry]:
        """Return those of the claimed entries that are fetches of this lane and of their batches.

        Others are left to newer workers, or quarantined. Every element of a lane passes here.
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
                    why, note = invalid_claims.of_another_host(entry.id)
                elif record == UNRECORDED or entry.is_recorded(record, element):
                    entries.append(entry)
                    continue
                else:
                    why, note = invalid_claims.not_in_record(record, entry.id)
            except NewerEntryError as newer:
                if not newer.may_wait_in(lane.name):
                    why, note = invalid_claims.of_another_host(newer.fetch_id)
                elif record in {UNRECORDED, newer.record}:
                    invalid_claims.hand_back_newer(lane, services, newer)
                    continue
                else:
                    why, note = invalid_claims.not_in_record(record, newer.fetch_id)
            except TooLargeEntryError as error:
                why, note = QuarantineReason.TOO_LARGE, str(error)
            except BadEntryError as error:
                note = str(error)
            unrecorded = why is QuarantineReason.UNREADABLE and record == UNRECORDED
            invalid_claims.quarantine(lane, services, element, why, note, with_result=unrecorded)
        return entries

    def hold(self, claimed: ClaimReply) -> None:
        """Queue claimed entries in the lane."""
        for entry in self.decode(claimed):
            self.lane.hold(entry)

    def hold_claim(self, claim: Claim) -> None:
        """Queue the entries of a claim in the lane, and note whether they are all that it has."""
        self.hold(claim)
        emptied = not claim.waiting and claim.next_retry_ms is None
        self.lane.claims.note(emptied=emptied, found=bool(claim.serialized))

    def change_gate(self, state: GateState, *, save: bool = False) -> None:
        """Replace the state of the lane's gate and log what is new in it: the only way that it changes.

        Redis gets the new state with the next settlement or the release of the lane. save: get it there soon,
        although nothing may be settled.
        """
        lane, before = self.lane, self.lane.gate
        if state is before:
            return
        lane.gate = state
        if state.cool_until_ms != before.cool_until_ms or state.breaker is not before.breaker:
            log_events.gate_changed(lane, before, self.services.log)
        if save:
            self.services.settler.save_gate(lane)

    def count_start(self, *, save_rate: bool = False) -> None:
        """Count a request that goes out, of a fetch or of a redirect.

        save_rate: if starts are spaced out, save the gate soon: after a crash of this worker the next owner
        of the lane keeps the spacing.
        """
        lane, now_ms = self.lane, self.lane.clock.now_ms()
        if lane.grant:
            lane.count_start(now_ms)
            return
        after = gate.started(lane.gate, lane.policy, now_ms)
        self.change_gate(after, save=save_rate and after.paced_ms != lane.gate.paced_ms)

    def may_send_another(self) -> bool:
        """Return whether a fetch in flight may send another request in place of its last; count it if so."""
        if not isinstance(self.lane.admission(excluding=1), Admit):
            return False
        self.count_start()
        return True

    async def retry_until_lost(self, call: Callable[[], Awaitable[T]]) -> T:
        """Repeat a call to Redis until it is answered; raise LaneLostError once the lane is lost.

        A call whose reply was lost may run twice. That is safe: what a claim took is handed back with the
        lane, and the other scripts skip what they have done.
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
        """Take over entries that a dead owner had claimed."""
        lane, store = self.lane, self.services.store
        for entry in entries:
            lane.hold(entry)
        if entries:
            elements = [serialize_entry(entry) for entry in entries]
            await self.retry_until_lost(lambda: store.adopt(lane.name, lane.token, elements))

    async def release(self, unfinished: list[Entry], needs: str = "") -> None:
        """Give the lane back, with the fetches that are claimed and not settled.

        needs: those of a fetch for which another worker gets the lane (worker/fetch/cases/handover.py).
        """
        lane, services = self.lane, self.services
        closed = lane.closed()
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
        if due is not None and not lane.for_upkeep:  # workers that start fetches know of the lane
            await services.notify([due])
