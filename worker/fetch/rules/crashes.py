"""The consequences for a fetch whose worker died or stopped it. Pure."""

import msgspec

from fetchfleet.jobs.contract.entry import Entry
from fetchfleet.jobs.contract.model import Outcome, Reason
from fetchfleet.worker.fetch.rules.decide import Finish, may_repeat

MAX_CRASHES = 3
"""After so many crashes of its workers the fetch is taken to be their cause, as in Sidekiq."""


def is_quarantined(entry: Entry) -> bool:
    """Return whether the fetch may be crashing its workers. One more crash ends it, so it runs alone."""
    return entry.crashes == MAX_CRASHES - 1


def needs_start_marker(entry: Entry) -> bool:
    """Return whether Redis must know of the start first: after a crash the decision depends on it."""
    return is_quarantined(entry) or not may_repeat(entry)


def crashed(entry: Entry) -> Entry:
    """Return the entry after the worker that had claimed it died."""
    return _cut_off(entry, crashes=1)


def interrupted(entry: Entry) -> Entry:
    """Return the entry after it was handed back unfinished."""
    return _cut_off(entry, crashes=0)


def _cut_off(entry: Entry, crashes: int) -> Entry:
    """Count an interruption, unless the fetch is known not to have started."""
    if needs_start_marker(entry) and not entry.begun:
        return entry
    return msgspec.structs.replace(
        entry, interruptions=entry.interruptions + 1, crashes=entry.crashes + crashes, begun=False
    )


def poisoned(entry: Entry) -> Finish | None:
    """Return the end of a fetch that keeps crashing workers, or was cut off and must not be repeated."""
    if entry.interruptions and not may_repeat(entry):
        return Finish(outcome=Outcome.FAILED, reason=Reason.INTERRUPTED)
    if entry.crashes < MAX_CRASHES:
        return None
    return Finish(outcome=Outcome.FAILED, reason=Reason.POISON)
