"""What was claimed comes into the lane's hands; what is no entry goes to the dead letters."""

from collections.abc import Iterable

from jobs.entry import BadElementError, Entry, from_element
from jobs.model import Outcome, Reason, Result
from jobs.names import FETCH_ID_CHARS, is_fetch_id
from worker import settle
from worker.lane import Lane
from worker.log import Event
from worker.parts import Parts


def entries_of(elements: Iterable[bytes], lane: Lane, parts: Parts) -> list[Entry]:
    """The entries that the elements stand for; the others are buried."""
    entries: list[Entry] = []
    for element in elements:
        try:
            entries.append(from_element(element))
        except BadElementError as error:
            _bury(lane, element, error, parts)
    return entries


def hold(lane: Lane, elements: Iterable[bytes], parts: Parts) -> None:
    """The elements are the lane's to serve."""
    for entry in entries_of(elements, lane, parts):
        lane.hold(entry)


def _bury(lane: Lane, element: bytes, error: BadElementError, parts: Parts) -> None:
    """What is no entry goes to the dead letters; if it has an id, its batch gets its result too."""
    fetch_id = element[:FETCH_ID_CHARS].decode("latin-1")
    note = str(error)

    def tell() -> None:
        parts.log.error(Event.LANE_INVALID, lane=lane.name, error=note)

    parts.settler.add(lane, settle.buried(element[:FETCH_ID_CHARS], Reason.INVALID, note, tell))
    if not is_fetch_id(fetch_id):
        parts.settler.add(lane, settle.dropped(element[:FETCH_ID_CHARS]))
        return
    result = Result(
        id=fetch_id,
        url="",
        outcome=Outcome.FAILED,
        reason=Reason.INVALID,
        worker=parts.settings.worker_id,
    )
    parts.settler.add(lane, settle.finished(result, lambda: None))
