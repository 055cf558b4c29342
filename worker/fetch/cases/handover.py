"""Leave a fetch that this worker cannot do to a worker that can; it waits while there is none."""

from collections.abc import Sequence

import msgspec

from fetchfleet.jobs.contract.entry import MAX_TRIED, Entry
from fetchfleet.worker.fetch.rules import abilities
from fetchfleet.worker.fetch.rules.abilities import Abilities
from fetchfleet.worker.fetch.rules.outcome import AttemptOutcome, Failed
from fetchfleet.worker.fetch.services import FetchSession
from fetchfleet.worker.lanes import log_events, settler
from fetchfleet.worker.lanes.store import LaneLostError
from fetchfleet.worker.util.clock import mono_s

MAX_ASIDE = 100
"""With so many fetches set aside, a lane goes to the worker that can do one of them."""


async def left_to_others(session: FetchSession, entry: Entry) -> bool:
    """Set the fetch aside for a live worker that can do it, or let it wait for one.

    False if this worker is to do it: it can, or it lacks nothing but another place to try and no worker has
    one.
    """
    lane, own, needs = session.lane, session.services.abilities, abilities.needs_of(entry)
    if not own.lacks(needs):
        return False
    if any(not other.lacks(needs) for other in await _others(session)):
        lane.set_aside(entry.id, str(needs))
        return True
    if needs.abilities <= own.has:
        return False
    _wait_for_worker(session, entry, needs.abilities)
    return True


def _wait_for_worker(session: FetchSession, entry: Entry, needs: frozenset[str]) -> None:
    """Queue the fetch again for later, unchanged. No attempt is charged."""
    lane, services = session.lane, session.services

    def write_line() -> None:
        log_events.unserved(lane.name, entry, needs, services.repeats, services.log)

    left_s = (entry.deadline_ms - lane.clock.now_ms()) / 1000
    wait_s = min(services.returns.wait_s(mono_s()), max(left_s, 0.0))
    session.settle(settler.handed_back(entry.id, wait_s, write_line))


async def left_after_failure(session: FetchSession, entry: Entry, outcome: AttemptOutcome) -> bool:
    """Leave a fetch to another worker whose setting may not end it as this one's did.

    False if the fetch ends: no live worker has another in folder, or other egress rules, that were not tried.
    """
    services = session.services
    if services.others is None or not isinstance(outcome, Failed) or not outcome.final:
        return False
    place = services.abilities.place_of(outcome.reason)
    if not place or place in entry.tried or len(entry.tried) >= MAX_TRIED:
        return False
    after = msgspec.structs.replace(entry, tried=(*entry.tried, place))
    needs = abilities.needs_of(after)
    try:
        others = await _others(session)
    except LaneLostError:
        session.lane.lose()
        return True
    if all(other.lacks(needs) for other in others):
        return False
    session.lane.rewrite(after)
    session.lane.set_aside(entry.id, str(needs))
    note = outcome.note
    log_events.retry(session.lane.name, after, 0.0, outcome.reason, outcome.status, note, services.log)()
    return True


async def _others(session: FetchSession) -> Sequence[Abilities]:
    others = session.services.others
    return [] if others is None else await session.retry_until_lost(others)


def is_due(session: FetchSession) -> bool:
    """Return whether the lane goes to another worker now, for the fetches that are set aside."""
    lane = session.lane
    turn_over = mono_s() >= lane.aside_since_s + session.services.parameters.turn_s
    return turn_over or len(lane.aside) >= MAX_ASIDE


def wanted(session: FetchSession) -> str:
    """Return the needs of one fetch that is set aside; empty if none is any more.

    Chosen at random, so that each of several workers has its turn.
    """
    lane = session.lane
    needs = sorted({text for fetch_id, text in lane.aside.items() if fetch_id in lane.entries})
    return needs[int(session.services.chance() * len(needs))] if needs else ""
