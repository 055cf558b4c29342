"""The abilities and settings in which the workers of a fleet may differ, and the needs of a fetch. Pure.

A fetch may need an ability (named files, an in folder), or a worker with other settings than those that tried
it: a file may be missing in one in folder only, and an address may be refused by one worker only.
"""

from collections.abc import Iterable
from enum import StrEnum
from typing import NamedTuple

from fetchfleet.jobs.contract.entry import Entry
from fetchfleet.jobs.contract.result import Reason


class Ability(StrEnum):
    """An ability that some workers have."""

    FILES = "files"
    """Each body is a file of its own (`--sink files`), as `dest`, `name` and `decode` require."""
    IN_FOLDER = "in_folder"
    """Request bodies can be read from an in folder (`--in`), as `body_file` requires."""
    SIGN = "sign"
    """Requests can be signed (FETCHFLEET_NOTIFY_SECRET), as webhooks require."""


ABILITY_OPTIONS = {
    Ability.FILES: "--sink files (for dest, name or decode)",
    Ability.IN_FOLDER: "--in (for body_file)",
    Ability.SIGN: "FETCHFLEET_NOTIFY_SECRET (for webhooks)",
}
"""The option of `fetchfleet worker`, or the variable, that gives a worker the ability, for messages."""


class SettingKind(StrEnum):
    """A setting that may make an attempt fail on one worker and not on another."""

    IN_FOLDER = "in_folder"
    EGRESS = "egress"
    """The allowed networks and the policy file."""
    POLICY = "policy"
    """The policy file, for its CA bundles and client certificates."""


SETTING_OF_REASON = {
    Reason.NO_BODY_FILE: SettingKind.IN_FOLDER,
    Reason.EGRESS_REFUSED: SettingKind.EGRESS,
    Reason.TLS: SettingKind.POLICY,
}
"""The final reasons that may apply to one worker only, with the setting that causes each."""


class Needs(NamedTuple):
    """The needs of a fetch."""

    abilities: frozenset[str]
    tried: frozenset[str] = frozenset()
    """The settings with which it failed, each as `setting_text` writes it."""

    def __str__(self) -> str:
        """Return the text that `parse` reads."""
        return " ".join([*sorted(self.abilities), *(f"!{setting}" for setting in sorted(self.tried))])


class Abilities(NamedTuple):
    """The abilities and settings of a worker."""

    names: frozenset[str]
    settings: frozenset[str] = frozenset()
    """Each as `setting_text` writes it."""

    def unmet(self, needs: Needs) -> frozenset[str]:
        """Return the needs that this worker does not meet; empty if it can do the fetch."""
        return (needs.abilities - self.names) | (needs.tried & self.settings)

    def setting_of(self, reason: Reason) -> str:
        """Return this worker's setting that may have caused the reason; empty if it has none of that kind."""
        kind = SETTING_OF_REASON[reason]
        return next((setting for setting in self.settings if setting.startswith(f"{kind}:")), "")


def setting_text(kind: SettingKind, digest: str) -> str:
    """Return the text of a setting. digest: of its value; equal on workers with equal settings."""
    return f"{kind}:{digest}"


def needs_of(entry: Entry) -> Needs:
    """Return the needs of the next attempt at a fetch."""
    fetch, needs = entry.fetch, set[str]()
    if fetch.dest is not None or fetch.name is not None or fetch.decode:
        needs.add(Ability.FILES.value)
    if (fetch if entry.hop is None else entry.hop).body_file is not None:
        needs.add(Ability.IN_FOLDER.value)
    if fetch.sign:
        needs.add(Ability.SIGN.value)
    return Needs(frozenset(needs), frozenset(entry.tried))


def parse(text: str) -> Needs:
    """Parse the text of needs. A word of a newer version is an ability that no worker of this one has."""
    words = text.split()
    tried = frozenset(word[1:] for word in words if word.startswith("!"))
    return Needs(frozenset(word for word in words if not word.startswith("!")), tried)


def describe_worker(abilities: Iterable[str]) -> str:
    """Return a phrase for the worker that a fetch waits for; without abilities, one with other settings."""
    options = [
        ABILITY_OPTIONS.get(Ability(name), name) if name in set(Ability) else name
        for name in sorted(abilities)
    ]
    return f"a worker with {' and '.join(options)}" if options else "a worker with other settings"
