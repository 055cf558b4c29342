"""The consequences for a fetch after its worker died or stopped it. Pure."""

import msgspec

from fetchfleet.jobs.contract.entry import Entry
from fetchfleet.jobs.contract.result import Outcome, Reason
from fetchfleet.worker.fetch.rules.decide import Finish, may_repeat

MAX_CRASHES = 3
"""Crashes of its workers after which a fetch counts as their cause, as in Sidekiq."""

SOON_S = 0.25
"""The time after the start of a fetch in which a death of the worker is likely due to the fetch."""

DEATHS_BY_ONE_FETCH = MAX_CRASHES - 1
"""Deaths of other workers that one fetch explains. If more died recently, there is another cause too."""

_QUARTERS = 4
"""A crash counts in quarters."""
_SOON_QUARTERS = 2
_LATE_QUARTERS = 1


def is_suspect(entry: Entry) -> bool:
    """Return whether one more crash may end the fetch as poison; it then starts in isolation."""
    return entry.crashes >= MAX_CRASHES - 1


def needs_start_marker(entry: Entry) -> bool:
    """Return whether a start marker must reach Redis first: the decision after a crash depends on it."""
    return bool(entry.crashes) or not may_repeat(entry)


def crashed(entry: Entry, other_deaths: int = 0) -> Entry:
    """Return the entry after the worker that had claimed it died.

    The first crash counts fully. A later one counts only if the fetch had started: fully, or half if more
    other workers died than one fetch explains, or a quarter if this worker then also outlived the start.
    other_deaths: the number of other workers that died recently.
    """
    if not entry.crashes or other_deaths <= DEATHS_BY_ONE_FETCH:
        return _cut_off(entry, _QUARTERS)
    return _cut_off(entry, _LATE_QUARTERS if entry.outlived else _SOON_QUARTERS)


def interrupted(entry: Entry) -> Entry:
    """Return the entry after its claim was returned to the lane's queue unfinished."""
    return _cut_off(entry, 0)


def _cut_off(entry: Entry, quarters: int) -> Entry:
    """Count an interruption and these quarters of a crash, unless the fetch cannot have started."""
    if needs_start_marker(entry) and not entry.begun:
        return entry
    full_crashes, doubts = divmod(entry.doubts + quarters, _QUARTERS)
    return msgspec.structs.replace(
        entry,
        interruptions=entry.interruptions + 1,
        crashes=entry.crashes + full_crashes,
        doubts=doubts,
        begun=False,
        outlived=False,
    )


def poisoned(entry: Entry) -> Finish | None:
    """Return the end of a fetch that keeps crashing workers, or was interrupted and must not be repeated."""
    if entry.interruptions and not may_repeat(entry):
        return Finish(outcome=Outcome.FAILED, reason=Reason.INTERRUPTED)
    if entry.crashes < MAX_CRASHES:
        return None
    return Finish(outcome=Outcome.FAILED, reason=Reason.POISON)
