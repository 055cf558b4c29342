"""The abilities in which workers of one fleet may differ, and what a fetch needs of them. Pure.

A fetch needs an ability (a named file, a folder to send from), or another worker than those that have tried
it: a file that one in folder lacks may be in another, and one worker alone may be allowed to dial an address.
"""

from collections.abc import Iterable
from enum import StrEnum
from typing import NamedTuple

from fetchfleet.jobs.contract.entry import Entry
from fetchfleet.jobs.contract.model import Reason


class Ability(StrEnum):
    """An ability that some workers have."""

    FILES = "files"
    """Bodies are files of their own: `dest` and `decode` (`--sink files`)."""
    IN_FOLDER = "in_folder"
    """There is an in folder for `body_file` (`--in`)."""


IN_WORDS = {
    Ability.FILES: "--sink files (for dest or decode)",
    Ability.IN_FOLDER: "--in (for body_file)",
}


class Place(StrEnum):
    """The setting of a worker that may have ended an attempt, where another worker's would not."""

    IN_FOLDER = "in_folder"
    EGRESS = "egress"
    """The networks and the policy file."""
    POLICY = "policy"
    """The policy file: whom it trusts, and its client certificates."""


PLACES = {
    Reason.NO_BODY_FILE: Place.IN_FOLDER,
    Reason.EGRESS_REFUSED: Place.EGRESS,
    Reason.TLS: Place.POLICY,
}
"""The reasons to end a fetch that may hold for one worker only, with the setting that they come from."""


class Needs(NamedTuple):
    """The needs of a fetch. tried: places, as `place` writes them, in which it was tried in vain."""

    abilities: frozenset[str]
    tried: frozenset[str] = frozenset()

    def __str__(self) -> str:
        """Return the text that `parse` reads."""
        return " ".join([*sorted(self.abilities), *(f"!{place}" for place in sorted(self.tried))])


class Abilities(NamedTuple):
    """The abilities of a worker, and the places of its attempts."""

    has: frozenset[str]
    places: frozenset[str] = frozenset()

    def lacks(self, needs: Needs) -> frozenset[str]:
        """Return the needs that this worker does not meet; empty if it can do the fetch."""
        return (needs.abilities - self.has) | (needs.tried & self.places)

    def place_of(self, reason: Reason) -> str:
        """Return the place of this worker from which the reason comes; empty if there is none."""
        kind = PLACES[reason]
        return next((found for found in self.places if found.startswith(f"{kind}:")), "")


def place(kind: Place, digest: str) -> str:
    """Return the text of a place; digest: tells it from the places of other workers."""
    return f"{kind}:{digest}"


def needs_of(entry: Entry) -> Needs:
    """Return the needs of the next attempt at a fetch."""
    fetch, needs = entry.fetch, set[str]()
    if fetch.dest is not None or fetch.decode:
        needs.add(Ability.FILES.value)
    if (fetch if entry.hop is None else entry.hop).body_file is not None:
        needs.add(Ability.IN_FOLDER.value)
    return Needs(frozenset(needs), frozenset(entry.tried))


def parse(text: str) -> Needs:
    """Parse the text of needs. What a newer worker has added is an ability that no older one has."""
    words = text.split()
    tried = frozenset(word[1:] for word in words if word.startswith("!"))
    return Needs(frozenset(word for word in words if not word.startswith("!")), tried)


def in_words(abilities: Iterable[str]) -> str:
    """Return for people which worker a fetch waits for; without abilities, one that has not tried it."""
    names = [IN_WORDS.get(Ability(one), one) if one in set(Ability) else one for one in sorted(abilities)]
    return f"a worker with {' and '.join(names)}" if names else "a worker with other settings"
