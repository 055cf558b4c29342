"""The rules of pauses: which table stops a host, since when, and how pauses begin and end. Pure.

A pause of a name stops every host that the name covers. An exception exempts a host or a pattern from wider
pauses. The narrowest pause or exception that covers a host counts. The policy file pauses by the key
`paused`. The narrowest table with the key counts; `false` lifts only pauses of wider tables of the file.

In Redis, a pause is `paused: true` in the table of the name. `paused: false` with a mark is an exception from
all wider pauses. Without a mark it lifts only pauses of the policy file: older versions leave such keys
behind when a host is resumed, and these must not exempt the host from later pauses.
"""

from collections.abc import Collection, Iterable, Mapping
from enum import StrEnum
from typing import Any, NamedTuple

from fetchfleet.worker.policy.model import PolicyError
from fetchfleet.worker.policy.names import concerns, covering, in_shell

PAUSED = "paused"

Table = Mapping[str, Any]


class MarkKind(StrEnum):
    """The meaning of the `paused` key of a table."""

    PAUSE = "pause"
    EXCEPTION = "exception"


class PauseMark(NamedTuple):
    """A mark of a table that an operator has paused or excepted."""

    kind: str
    """A MarkKind; a str because newer versions may write others."""
    since_ms: int
    """The time when the pause or the exception began, in Unix ms."""


class Overrides(NamedTuple):
    """The policy tables set at run time."""

    tables: Mapping[str, Table]
    """The tables, by host, pattern or `default`."""
    marks: Mapping[str, PauseMark]
    """The marks of tables with the key `paused`, by the same names."""

    def since_ms(self, name: str, kind: MarkKind) -> int | None:
        """Return since when the name is paused or excepted, in Unix ms; None if it has no such mark."""
        mark = self.marks.get(name)
        return mark.since_ms if mark is not None and mark.kind == kind else None

    def with_paused(self, *, value: bool) -> list[str]:
        """Return the names of the tables in which `paused` has this value."""
        return [name for name, table in self.tables.items() if table.get(PAUSED) is value]


class Stop(NamedTuple):
    """The pause that stops a host."""

    name: str
    """The name that is paused: the host, a pattern or `default`."""
    in_file: bool
    """True if the policy file has the pause."""
    since_ms: int | None = None
    """Start of the pause in Unix ms; None if the policy file or an older version of fetchfleet set it."""


class Pauses(NamedTuple):
    """The pauses in force, and the exceptions from them."""

    paused: Mapping[str, int | None]
    """Start of each pause set at run time, in Unix ms; None if not known."""
    excepted: Mapping[str, int | None]
    """Start of each exception from wider pauses, in Unix ms."""
    lifted: Collection[str]
    """Names exempt from pauses of the policy file only."""
    in_file: Mapping[str, bool]
    """The `paused` keys of the policy file."""

    def stop(self, lane: str) -> Stop | None:
        """Return the pause that stops a host or a pattern; None if none does."""
        by_file: Stop | None = None
        stated = False
        for name in covering(lane):
            if name in self.paused:
                return Stop(name, in_file=False, since_ms=self.paused[name])
            if name in self.excepted:
                break
            if name in self.lifted:
                stated = True
            elif not stated and name in self.in_file:
                stated = True
                by_file = Stop(name, in_file=True) if self.in_file[name] else None
        return by_file

    def names(self) -> set[str]:
        """Return every name with a pause, an exception or a `paused` key in the file."""
        return {*self.paused, *self.excepted, *self.lifted, *self.in_file}

    def not_stopped(self, name: str) -> list[str]:
        """Return the exceptions that exempt names from a pause of this name, sorted."""
        return sorted(other for other in self.excepted if other != name and concerns(name, other))

    def below(self, name: str) -> list[str]:
        """Return the narrower names with a pause of their own, sorted."""
        return sorted(other for other in self.paused if other != name and concerns(name, other))


def pauses_of(overrides: Overrides, in_file: Mapping[str, bool]) -> Pauses:
    """Return the pauses in force. in_file: the `paused` keys of the policy file."""
    since_ms = overrides.since_ms
    paused = {name: since_ms(name, MarkKind.PAUSE) for name in overrides.with_paused(value=True)}
    false = {name: since_ms(name, MarkKind.EXCEPTION) for name in overrides.with_paused(value=False)}
    excepted = {name: at_ms for name, at_ms in false.items() if at_ms is not None}
    return Pauses(paused, excepted, false.keys() - excepted.keys(), in_file)


class StillPausedError(PolicyError):
    """A name cannot be resumed, because a wider pause stops it too."""

    def __init__(self, name: str, stop: Stop) -> None:
        if stop.in_file:
            why = f"the policy file of the workers pauses {stop.name}"
        else:
            end = f"fetchfleet resume {in_shell(stop.name)}"
            why = f"the pause of {stop.name} covers it; to end that pause: {end}"
        super().__init__(f"{name} stays paused: {why}; to resume only {name}: {exception_of(name)}")
        self.stop = stop
        """The wider pause."""


def exception_of(name: str) -> str:
    """Return the command that exempts a name from wider pauses."""
    return f"fetchfleet resume {in_shell(name)} --except"


def paused(overrides: Overrides, name: str, in_file: Mapping[str, bool], now_ms: int) -> Overrides:
    """Return the overrides with a pause of the name. It ends an exception of the same name.

    `paused: false` keys of narrower names without a mark are removed if nothing needs them. Older versions
    leave them behind, and workers of older versions still obey them.
    """
    file_only = Pauses({}, {}, (), in_file)
    before = pauses_of(overrides, in_file)
    leftovers = [other for other in before.lifted if concerns(name, other) and not file_only.stop(other)]
    overrides = _without(overrides, [*_orphans(overrides), *leftovers])
    if before.paused.get(name) is not None:
        return overrides
    return _with(overrides, name, value=True, mark=PauseMark(MarkKind.PAUSE, now_ms))


def resumed(
    overrides: Overrides, name: str, in_file: Mapping[str, bool], now_ms: int, *, excepted: bool
) -> Overrides:
    """Return the overrides without the pause of the name.

    excepted: add an exception if a wider pause stops the name as well. Without it, StillPausedError is raised
    in that case. Exceptions that no other pause covers end with the pause.
    """
    before = pauses_of(overrides, in_file)
    after = overrides if name in {*before.excepted, *before.lifted} else _without(overrides, [name])
    stop = pauses_of(after, in_file).stop(name)
    if stop is not None and not excepted:
        raise StillPausedError(name, stop)
    if stop is not None and not stop.in_file:
        after = _with(after, name, value=False, mark=PauseMark(MarkKind.EXCEPTION, now_ms))
    elif excepted and name not in before.excepted:  # the policy file of the workers may pause it
        after = _with(after, name, value=False)
    return _without(after, _orphans(after))


def lifted(overrides: Overrides, name: str) -> Overrides:
    """Return the overrides with `paused: false` for the name. It lifts pauses of the policy file only.

    Raises StillPausedError if a wider pause set at run time stops the name.
    """
    stop = pauses_of(_without(overrides, [name]), {}).stop(name)
    if stop is not None and name not in pauses_of(overrides, {}).excepted:
        raise StillPausedError(name, stop)
    return resumed(overrides, name, {}, 0, excepted=True)


def forgotten(overrides: Overrides, name: str) -> Overrides:
    """Return the overrides without the pause or the exception of the name."""
    after = _without(overrides, [name])
    return _without(after, _orphans(after))


def _orphans(overrides: Overrides) -> list[str]:
    """Return the exceptions that no pause set at run time covers."""
    pauses = pauses_of(overrides, {})
    return [name for name in pauses.excepted if not pauses.paused.keys() & {*covering(name)}]


def _with(overrides: Overrides, name: str, *, value: bool, mark: PauseMark | None = None) -> Overrides:
    marks = {other: of for other, of in overrides.marks.items() if other != name}
    if mark is not None:
        marks[name] = mark
    return Overrides({**overrides.tables, name: {**overrides.tables.get(name, {}), PAUSED: value}}, marks)


def _without(overrides: Overrides, names: Iterable[str]) -> Overrides:
    """Return the overrides without the `paused` keys and the marks of the names."""
    tables, marks = dict(overrides.tables), dict(overrides.marks)
    for name in names:
        marks.pop(name, None)
        table = {key: value for key, value in tables.pop(name, {}).items() if key != PAUSED}
        if table:
            tables[name] = table
    return Overrides(tables, marks)
