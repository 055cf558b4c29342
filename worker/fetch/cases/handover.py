"""Hand a fetch that this worker cannot do over to a worker that can. It waits if no live worker can."""

from collections.abc import Sequence

import msgspec

from fetchfleet.jobs.contract.entry import MAX_TRIED, Entry
from fetchfleet.worker.fetch.rules import abilities
from fetchfleet.worker.fetch.rules.abilities import Abilities
from fetchfleet.worker.fetch.rules.outcome import AttemptOutcome, Failed, note_of
from fetchfleet.worker.fetch.services import FetchSession
from fetchfleet.worker.lanes import log_events, settler
from fetchfleet.worker.lanes.store import LaneLostError
from fetchfleet.worker.util.clock import mono_s

MAX_HANDOVERS = 100
"""Number of fetches for other workers at which the lane is released to one of them early."""


async def hand_over(session: FetchSession, entry: Entry) -> bool:
    """Set the fetch aside for a live worker that can do it, or queue it until one appears.

    Returns False if this worker must do it: it can, or only settings that were not tried yet are missing and
    no live worker has them.
    """
    lane, own, needs = session.lane, session.services.abilities, abilities.needs_of(entry)
    if not own.unmet(needs):
        return False
    if any(not other.unmet(needs) for other in await _others(session)):
        lane.add_handover(entry.id, str(needs))
        return True
    if needs.abilities <= own.names:
        return False
    _wait_for_worker(session, entry, needs.abilities)
    return True


def _wait_for_worker(session: FetchSession, entry: Entry, needs: frozenset[str]) -> None:
    """Return the claim to the lane's queue, unchanged, to be examined later. No attempt is charged."""
    lane, services = session.lane, session.services

    def write_line() -> None:
        log_events.unserved(lane.name, entry, needs, services.repeats, services.log)

    left_s = (entry.deadline_ms - lane.clock.now_ms()) / 1000
    wait_s = min(services.returns.wait_s(mono_s()), max(left_s, 0.0))
    session.settle(settler.returned(entry.id, wait_s, write_line))


async def hand_over_after_failure(session: FetchSession, entry: Entry, outcome: AttemptOutcome) -> bool:
    """Set the fetch aside for a live worker with other settings, if a setting of this one may have failed it.

    Returns False if the fetch ends: no live worker has an untried in folder, egress rule or policy file.
    """
    services = session.services
    if services.others is None or not isinstance(outcome, Failed) or not outcome.final:
        return False
    setting = services.abilities.setting_of(outcome.reason)
    if not setting or setting in entry.tried or len(entry.tried) >= MAX_TRIED:
        return False
    after = msgspec.structs.replace(entry, tried=(*entry.tried, setting))
    needs = abilities.needs_of(after)
    try:
        others = await _others(session)
    except LaneLostError:
        session.lane.lose()
        return True
    if all(other.unmet(needs) for other in others):
        return False
    session.lane.replace_entry(after)
    session.lane.add_handover(entry.id, str(needs))
    reason, status, note = outcome.reason, outcome.status, note_of(outcome)
    write_line = log_events.retry(
        session.lane.name, after, 0.0, reason, status, note, services.settler.totals, services.log
    )
    write_line()
    return True


async def _others(session: FetchSession) -> Sequence[Abilities]:
    others = session.services.others
    return [] if others is None else await session.retry_until_lost(others)


def is_due(session: FetchSession) -> bool:
    """Return whether to release the lane now, for the fetches that are set aside."""
    lane = session.lane
    turn_ended = mono_s() >= lane.handover_since_s + session.services.parameters.turn_s
    return turn_ended or len(lane.handovers) >= MAX_HANDOVERS


def pick_needs(session: FetchSession) -> str:
    """Return the needs of one fetch that is set aside, chosen at random; empty if none is still claimed.

    The random choice gives each of several able workers a turn.
    """
    lane = session.lane
    needs = sorted({text for fetch_id, text in lane.handovers.items() if fetch_id in lane.entries})
    return needs[int(session.services.chance() * len(needs))] if needs else ""
