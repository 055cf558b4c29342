"""Turn claimed elements into entries of the lane; put what is no entry into the dead letters."""

from collections.abc import Iterable

from fetchfleet.jobs.contract.entry import BadEntryError, Entry, NewerEntryError, parse_entry
from fetchfleet.jobs.contract.ids import FETCH_ID_CHARS, batch_of, is_fetch_id
from fetchfleet.jobs.contract.model import Outcome, Reason, Result
from fetchfleet.worker.lanes import settler
from fetchfleet.worker.lanes.services import LaneServices
from fetchfleet.worker.lanes.session import LaneSession
from fetchfleet.worker.observability.log import Event


def decode_claims(session: LaneSession[LaneServices], elements: Iterable[bytes]) -> list[Entry]:
    """Return the entries among the elements; bury the invalid ones, leave others to newer workers."""
    entries: list[Entry] = []
    for element in elements:
        try:
            entries.append(parse_entry(element))
        except NewerEntryError as error:
            _hand_back_newer(session, error)
        except BadEntryError as error:
            _bury_invalid(session, element, error)
    return entries


def hold(session: LaneSession[LaneServices], elements: Iterable[bytes]) -> None:
    """Queue claimed elements in the lane."""
    for entry in decode_claims(session, elements):
        session.lane.hold(entry)


def _hand_back_newer(session: LaneSession[LaneServices], newer: NewerEntryError) -> None:
    """Return a fetch that only a newer worker can read to its queue, or end it if its time is over."""
    lane, services = session.lane, session.services
    note, late = str(newer), newer.deadline_ms <= lane.clock.now_ms()

    def tell() -> None:
        services.log.warning(Event.LANE_NEWER, lane=lane.name, id=newer.fetch_id, error=note)

    if not late and batch_of(newer.fetch_id) not in lane.cancelled:
        session.settle(settler.handed_back(newer.fetch_id, services.tuning.newer_return_s, tell))
        return
    result = Result(
        id=newer.fetch_id,
        url=newer.url,
        outcome=Outcome.FAILED if late else Outcome.CANCELLED,
        reason=Reason.DEADLINE if late else None,
        worker=services.worker_id,
    )
    if late:
        session.settle(settler.failed(result, note))
    session.settle(settler.finished(result, tell))


def _bury_invalid(session: LaneSession[LaneServices], element: bytes, error: BadEntryError) -> None:
    """Put an invalid element into the dead letters; if it has a fetch's id, its batch gets a result too."""
    lane, log = session.lane, session.services.log
    head, note = element[:FETCH_ID_CHARS], str(error)
    fetch_id = head.decode("latin-1")

    def tell() -> None:
        log.error(Event.LANE_INVALID, lane=lane.name, error=note)

    session.settle(settler.buried(head, Reason.INVALID, note, tell))
    if not is_fetch_id(fetch_id):
        session.settle(settler.dropped(head))
        return
    result = Result(
        id=fetch_id,
        url="",
        outcome=Outcome.FAILED,
        reason=Reason.INVALID,
        worker=session.services.worker_id,
    )
    session.settle(settler.finished(result, lambda: None))


async def hold_orphaned_claims(session: LaneSession[LaneServices]) -> None:
    """Queue fetches that are claimed in Redis and unknown to this worker.

    The reply to their claim was lost, or Redis restarted without its last second of writes, the settlement
    among them. Nothing else is claimed meanwhile.
    """
    lane, services = session.lane, session.services
    await services.settler.caught_up(lane)
    known = set(lane.entries)  # read first: a fetch that is settled meanwhile may still be in the reply
    claims = await session.retry_until_lost(lambda: services.store.claims(lane.name, lane.token))
    hold(session, [element for element in claims if element[:FETCH_ID_CHARS].decode("latin-1") not in known])
