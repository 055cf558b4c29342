"""What it means for a fetch that its worker died, or had to let go of it. Pure."""

import msgspec

from fetchfleet.jobs.contract.entry import Entry
from fetchfleet.jobs.contract.model import Outcome, Reason
from fetchfleet.worker.fetch.rules.decide import Finish, may_repeat

MAX_CRASHES = 3
"""As in Sidekiq: of so many crashes of workers that had it in hand the fetch is taken to be the cause."""


def is_suspect(entry: Entry) -> bool:
    """Whether workers may be dying of it, so that one more crash is its end: it is tried on its own."""
    return entry.crashes == MAX_CRASHES - 1


def needs_start_marker(entry: Entry) -> bool:
    """Whether its beginning is to be in Redis before it is begun, because much hangs on it after a crash."""
    return is_suspect(entry) or not may_repeat(entry)


def crashed(entry: Entry) -> Entry:
    """The entry after the worker that had claimed it died."""
    return _cut_off(entry, crashes=1)


def interrupted(entry: Entry) -> Entry:
    """The entry after it was handed back unfinished, which is nobody's fault."""
    return _cut_off(entry, crashes=0)


def _cut_off(entry: Entry, crashes: int) -> Entry:
    """What is known not to have been begun was not cut off: it costs nothing."""
    if needs_start_marker(entry) and not entry.begun:
        return entry
    return msgspec.structs.replace(
        entry, interruptions=entry.interruptions + 1, crashes=entry.crashes + crashes, begun=False
    )


def poisoned(entry: Entry) -> Finish | None:
    """The end of a fetch that workers keep dying of, or that was cut off and may not be repeated."""
    if entry.interruptions and not may_repeat(entry):
        return Finish(outcome=Outcome.FAILED, reason=Reason.INTERRUPTED)
    if entry.crashes < MAX_CRASHES:
        return None
    return Finish(outcome=Outcome.FAILED, reason=Reason.POISON)
