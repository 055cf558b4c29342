"""Claims that are not fetches of their lane. They are returned for newer workers, or quarantined."""

from fetchfleet.jobs.contract.entry import NewerEntryError
from fetchfleet.jobs.contract.ids import FETCH_ID_CHARS, batch_of, is_fetch_id
from fetchfleet.jobs.contract.result import ABSENT, Outcome, Reason, Result
from fetchfleet.jobs.scripts.lanes import ENDED, UNKNOWN_BATCH
from fetchfleet.worker.lanes import settler
from fetchfleet.worker.lanes.lane import Lane
from fetchfleet.worker.lanes.services import LaneServices, QuarantineReason
from fetchfleet.worker.observability import redact
from fetchfleet.worker.observability.log import Event, suppressed
from fetchfleet.worker.util.clock import mono_s


def return_newer(lane: Lane, services: LaneServices, newer: NewerEntryError) -> None:
    """Return the claim of a fetch that only a newer worker can read, or end the fetch.

    The fetch ends if its deadline has passed or its batch is cancelled.
    """
    note, late = str(newer), newer.deadline_ms <= lane.clock.now_ms()

    def write_line() -> None:
        left_out = services.repeats.admit((Event.LANE_NEWER, lane.name), mono_s())
        if left_out is not None:
            fields = {"id": newer.fetch_id, "error": note, **suppressed(left_out)}
            services.log.warning(Event.LANE_NEWER, lane=lane.name, **fields)

    if not late and batch_of(newer.fetch_id) not in lane.cancelled:
        wait_s = services.returns.wait_s(mono_s())
        services.settler.add(lane, settler.returned(newer.fetch_id, wait_s, write_line))
        return
    result = Result(
        id=newer.fetch_id,
        url=newer.url,
        outcome=Outcome.FAILED if late else Outcome.CANCELLED,
        reason=Reason.DEADLINE if late else None,
        worker=services.worker_id,
        note=redact.text(note),
    )
    if late:
        services.settler.add(lane, settler.failed(result))
    services.settler.add(lane, settler.finished(result, write_line))


def wrong_lane(fetch_id: str) -> tuple[QuarantineReason, str]:
    """Return the reason and the note of a fetch in the lane of another host."""
    return QuarantineReason.WRONG_LANE, f"{fetch_id}: its next request goes to another host than the lane's"


def not_recorded(record: int, fetch_id: str) -> tuple[QuarantineReason, str]:
    """Return the reason and the note of a fetch that its batch's record does not have."""
    if record == ENDED:
        return QuarantineReason.ENDED, f"{fetch_id}: the fetch has ended, or its batch never had it"
    if record == UNKNOWN_BATCH:
        return QuarantineReason.UNKNOWN_BATCH, f"{fetch_id}: its batch does not exist"
    return QuarantineReason.NOT_ITS_FETCH, f"{fetch_id}: its batch has another fetch or deadline of this ID"


def quarantine(
    lane: Lane,
    services: LaneServices,
    element: bytes,
    why: QuarantineReason,
    note: str,
    *,
    with_result: bool = False,
) -> None:
    """Move a claimed element to the dead letters. It is not counted.

    with_result: the batch has no record, so an element with the ID of a fetch ends that fetch as failed.
    """
    head = element[:FETCH_ID_CHARS]
    fetch_id = head.decode("latin-1")

    def write_line() -> None:
        log_quarantine(lane, services, why, note)

    services.settler.add(lane, settler.buried(head, Reason.INVALID, note, write_line))
    if not with_result or not is_fetch_id(fetch_id):
        services.settler.add(lane, settler.dropped(head))
        return
    result = Result(
        id=fetch_id,
        url="",
        outcome=Outcome.FAILED,
        reason=Reason.INVALID,
        worker=services.worker_id,
        note=redact.text(note) or ABSENT,
    )
    services.settler.add(lane, settler.finished(result))


def log_quarantine(lane: Lane, services: LaneServices, why: QuarantineReason, note: str) -> None:
    """Count and log a quarantined element."""
    services.quarantined[why] += 1
    left_out = services.repeats.admit((Event.LANE_INVALID, lane.name, why), mono_s())
    if left_out is not None:
        fields = {"why": why.value, "error": redact.text(note), **suppressed(left_out)}
        services.log.error(Event.LANE_INVALID, lane=lane.name, **fields)
