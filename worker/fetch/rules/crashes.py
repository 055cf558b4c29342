"""The consequences for a fetch whose worker died or stopped it. Pure."""

import msgspec

from fetchfleet.jobs.contract.entry import Entry
from fetchfleet.jobs.contract.model import Outcome, Reason
from fetchfleet.worker.fetch.rules.decide import Finish, may_repeat

MAX_CRASHES = 3
"""After so many crashes of its workers the fetch is taken to be their cause, as in Sidekiq."""

SOON_S = 0.25
"""A worker that dies within this time of the start of a fetch may well have died of it."""

DEATHS_BY_ONE_FETCH = MAX_CRASHES - 1
"""If more other workers died lately than one fetch accounts for, workers also die of something else."""

_QUARTERS = 4
_SOON_QUARTERS = 2
_LATE_QUARTERS = 1


def is_suspect(entry: Entry) -> bool:
    """Return whether the fetch may be crashing its workers. One more crash may end it, so it runs alone."""
    return entry.crashes >= MAX_CRASHES - 1


def needs_start_marker(entry: Entry) -> bool:
    """Return whether Redis must know of the start first: after a crash the decision depends on it."""
    return bool(entry.crashes) or not may_repeat(entry)


def crashed(entry: Entry, other_deaths: int = 0) -> Entry:
    """Return the entry after the worker that had claimed it died.

    other_deaths: how many other workers died lately. The first crash counts whole, whatever it was.
    A later one counts if the fetch had started: whole in a fleet that is quiet otherwise; half if workers die
    anyway; a quarter if the worker also outlived the start.
    """
    if not entry.crashes or other_deaths <= DEATHS_BY_ONE_FETCH:
        return _cut_off(entry, _QUARTERS)
    return _cut_off(entry, _LATE_QUARTERS if entry.outlived else _SOON_QUARTERS)


def interrupted(entry: Entry) -> Entry:
    """Return the entry after it was handed back unfinished."""
    return _cut_off(entry, 0)


def _cut_off(entry: Entry, quarters: int) -> Entry:
    """Count an interruption, unless the fetch is known not to have started."""
    if needs_start_marker(entry) and not entry.begun:
        return entry
    whole, doubts = divmod(entry.doubts + quarters, _QUARTERS)
    return msgspec.structs.replace(
        entry,
        interruptions=entry.interruptions + 1,
        crashes=entry.crashes + whole,
        doubts=doubts,
        begun=False,
        outlived=False,
    )


def poisoned(entry: Entry) -> Finish | None:
    """Return the end of a fetch that keeps crashing workers, or was cut off and must not be repeated."""
    if entry.interruptions and not may_repeat(entry):
        return Finish(outcome=Outcome.FAILED, reason=Reason.INTERRUPTED)
    if entry.crashes < MAX_CRASHES:
        return None
    return Finish(outcome=Outcome.FAILED, reason=Reason.POISON)
