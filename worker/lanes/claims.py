"""What was claimed comes into the lane's hands; what is no entry goes to the dead letters."""

from collections.abc import Iterable

from fetchfleet.jobs.contract.entry import BadElementError, Entry, NewerElementError, from_element
from fetchfleet.jobs.contract.ids import FETCH_ID_CHARS, batch_of, is_fetch_id
from fetchfleet.jobs.contract.model import Outcome, Reason, Result
from fetchfleet.worker.lanes import settler
from fetchfleet.worker.lanes.lane import Lane
from fetchfleet.worker.lanes.retry import retry_until_lost
from fetchfleet.worker.lanes.services import LaneServices
from fetchfleet.worker.observability.log import Event

HAND_BACK_S = 5.0
"""After so long a newer worker may have the lane, or this one tries to find it one again."""


def entries_of(elements: Iterable[bytes], lane: Lane, services: LaneServices) -> list[Entry]:
    """The entries that the elements stand for; the others are buried, or left to newer workers."""
    entries: list[Entry] = []
    for element in elements:
        try:
            entries.append(from_element(element))
        except NewerElementError as error:
            _hand_back(lane, error, services)
        except BadElementError as error:
            _bury(lane, element, error, services)
    return entries


def hold(lane: Lane, elements: Iterable[bytes], services: LaneServices) -> None:
    """The elements are the lane's to serve."""
    for entry in entries_of(elements, lane, services):
        lane.hold(entry)


def _hand_back(lane: Lane, newer: NewerElementError, services: LaneServices) -> None:
    """A fetch that only a newer worker can read waits for one, unless it must end."""
    note, now_ms = str(newer), lane.clock.now_ms()

    def tell() -> None:
        services.log.warning(Event.LANE_NEWER, lane=lane.name, id=newer.fetch_id, error=note)

    if newer.deadline_ms <= now_ms or batch_of(newer.fetch_id) in lane.cancelled:
        late = newer.deadline_ms <= now_ms
        result = Result(
            id=newer.fetch_id,
            url=newer.url,
            outcome=Outcome.FAILED if late else Outcome.CANCELLED,
            reason=Reason.DEADLINE if late else None,
            worker=services.worker_id,
        )
        if late:
            services.settler.add(lane, settler.failed(result, note))
        services.settler.add(lane, settler.finished(result, tell))
        return
    services.settler.add(lane, settler.handed_back(newer.fetch_id, HAND_BACK_S, tell))


def _bury(lane: Lane, element: bytes, error: BadElementError, services: LaneServices) -> None:
    """What is no entry goes to the dead letters; if it has an id, its batch gets its result too."""
    fetch_id = element[:FETCH_ID_CHARS].decode("latin-1")
    note = str(error)

    def tell() -> None:
        services.log.error(Event.LANE_INVALID, lane=lane.name, error=note)

    services.settler.add(lane, settler.buried(element[:FETCH_ID_CHARS], Reason.INVALID, note, tell))
    if not is_fetch_id(fetch_id):
        services.settler.add(lane, settler.dropped(element[:FETCH_ID_CHARS]))
        return
    result = Result(
        id=fetch_id,
        url="",
        outcome=Outcome.FAILED,
        reason=Reason.INVALID,
        worker=services.worker_id,
    )
    services.settler.add(lane, settler.finished(result, lambda: None))


async def hold_unseen(lane: Lane, services: LaneServices) -> None:
    """What is claimed and not in our hands comes into them; it would wait until the lane is given back.

    The reply to its claim was lost, or Redis has come back without its last second and with it without
    the settlement. Nothing else is claimed meanwhile.
    """
    await services.settler.caught_up(lane)
    known = set(lane.entries)  # before we ask: what is settled meanwhile may still be in the reply
    claims = await retry_until_lost(lane, services, lambda: services.store.claims(lane.name, lane.token))
    hold(lane, [element for element in claims if _id(element) not in known], services)


def _id(element: bytes) -> str:
    return element[:FETCH_ID_CHARS].decode("latin-1")
