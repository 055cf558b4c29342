"""Finds claims that their owner does not know of."""

from fetchfleet.jobs.contract.ids import FETCH_ID_CHARS
from fetchfleet.worker.fetch.services import Parts
from fetchfleet.worker.lanes.claims import hold
from fetchfleet.worker.lanes.lane import Lane
from fetchfleet.worker.lanes.retry import patiently


async def hold_unseen(lane: Lane, parts: Parts) -> None:
    """What is claimed and not in our hands comes into them; it would wait until the lane is given back.

    The reply to its claim was lost, or Redis has come back without its last second and with it without
    the settlement. Nothing else is claimed meanwhile.
    """
    await parts.settler.caught_up(lane)
    known = set(lane.entries)  # before we ask: what is settled meanwhile may still be in the reply
    claims = await patiently(lane, parts, lambda: parts.store.claims(lane.name, lane.token))
    hold(lane, [element for element in claims if _id(element) not in known], parts)


def _id(element: bytes) -> str:
    return element[:FETCH_ID_CHARS].decode("latin-1")
