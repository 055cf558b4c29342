"""The pauses of hosts: by which table, since when, and how they begin and end. Pure.

A pause of a name stops every host that the name covers. An exception lets a host or a pattern go on under
wider pauses. Of both, the narrowest that covers a host counts. A `paused` key of the policy file pauses as
well; the narrowest table with that key counts, and `false` there lifts only wider tables of the file.

In Redis a pause is `paused: true` in the table of the name. `paused: false` lifts pauses of the policy file.
With a mark it is an exception from pauses set at run time too. Older versions leave it behind without a mark
when a host is resumed, and must not exempt the host from later pauses by that.
"""

from collections.abc import Collection, Iterable, Mapping
from enum import StrEnum
from typing import Any, NamedTuple

from fetchfleet.worker.policy.model import PolicyError
from fetchfleet.worker.policy.names import concerns, covering, in_shell

PAUSED = "paused"

Table = Mapping[str, Any]


class MarkKind(StrEnum):
    """The meaning of a mark for the `paused` key of its table."""

    PAUSE = "pause"
    EXCEPTION = "exception"


class PauseMark(NamedTuple):
    """The time at which an operator paused a name, or excepted it from a pause (Unix ms)."""

    kind: str
    since_ms: int


class Overrides(NamedTuple):
    """The policy tables set at run time, and the marks of those that have `paused`, by name."""

    tables: Mapping[str, Table]
    marks: Mapping[str, PauseMark]

    def since_ms(self, name: str, kind: MarkKind) -> int | None:
        """Return since when the name is paused, or excepted; None if it has no such mark."""
        mark = self.marks.get(name)
        return mark.since_ms if mark is not None and mark.kind == kind else None

    def stating(self, *, value: bool) -> list[str]:
        """Return the names whose table has `paused` with this value."""
        return [name for name, table in self.tables.items() if table.get(PAUSED) is value]


class Stop(NamedTuple):
    """The pause that stops a host."""

    name: str
    """The name that is paused: the host, a pattern or `default`."""
    in_file: bool
    since_ms: int | None = None
    """None if that is not known: the policy file or an older version paused it."""


class Pauses(NamedTuple):
    """The pauses in force, and the exceptions from them."""

    paused: Mapping[str, int | None]
    """Paused at run time, and since when (Unix ms) if that is known."""
    excepted: Mapping[str, int | None]
    """Exceptions from wider pauses, and since when."""
    lifted: Collection[str]
    """Exceptions from pauses of the policy file only."""
    in_file: Mapping[str, bool]
    """The `paused` keys of the policy file."""

    def stop(self, lane: str) -> Stop | None:
        """Return what stops a host, or a whole pattern; None if nothing does."""
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
        """Return every name that has a pause, an exception or a key in the file."""
        return {*self.paused, *self.excepted, *self.lifted, *self.in_file}

    def not_stopped(self, name: str) -> list[str]:
        """Return the exceptions that a pause of this name does not stop."""
        return sorted(other for other in self.excepted if other != name and concerns(name, other))

    def below(self, name: str) -> list[str]:
        """Return the narrower names that are paused by themselves."""
        return sorted(other for other in self.paused if other != name and concerns(name, other))


def pauses_of(found: Overrides, in_file: Mapping[str, bool]) -> Pauses:
    """Return the pauses in force under a policy file with these `paused` keys."""
    paused = {name: found.since_ms(name, MarkKind.PAUSE) for name in found.stating(value=True)}
    false = {name: found.since_ms(name, MarkKind.EXCEPTION) for name in found.stating(value=False)}
    excepted = {name: since_ms for name, since_ms in false.items() if since_ms is not None}
    return Pauses(paused, excepted, false.keys() - excepted.keys(), in_file)


class StillPausedError(PolicyError):
    """A name cannot be resumed by itself, because a wider pause stops it."""

    def __init__(self, name: str, stop: Stop) -> None:
        if stop.in_file:
            why = f"the workers' policy file pauses {stop.name}"
        else:
            end = f"fetchfleet resume {in_shell(stop.name)}"
            why = f"the pause of {stop.name} stops it; end that one with: {end}"
        super().__init__(f"{name} stays paused: {why}; or let {name} alone go on: {exception_of(name)}")
        self.stop = stop


def exception_of(name: str) -> str:
    """Return the command that lets a name go on under a wider pause."""
    return f"fetchfleet resume {in_shell(name)} --except"


def paused(found: Overrides, name: str, in_file: Mapping[str, bool], now_ms: int) -> Overrides:
    """Return the overrides after a pause of the name, which ends an exception of the same name.

    What older versions left behind below it goes, because workers of older versions still obey it.
    """
    file_only = Pauses({}, {}, (), in_file)
    before = pauses_of(found, in_file)
    leftovers = [left for left in before.lifted if concerns(name, left) and not file_only.stop(left)]
    found = _without(found, [*_orphans(found), *leftovers])
    if before.paused.get(name) is not None:
        return found
    return _with(found, name, value=True, mark=PauseMark(MarkKind.PAUSE, now_ms))


def resumed(
    found: Overrides, name: str, in_file: Mapping[str, bool], now_ms: int, *, excepted: bool
) -> Overrides:
    """Return the overrides after the pause of a name has ended.

    excepted: make an exception if a wider pause stops the name as well; otherwise that raises
    StillPausedError. Exceptions from the ended pause end with it, unless another pause covers them.
    """
    before = pauses_of(found, in_file)
    after = found if name in {*before.excepted, *before.lifted} else _without(found, [name])
    stop = pauses_of(after, in_file).stop(name)
    if stop is not None and not excepted:
        raise StillPausedError(name, stop)
    if stop is not None and not stop.in_file:
        after = _with(after, name, value=False, mark=PauseMark(MarkKind.EXCEPTION, now_ms))
    elif excepted and name not in before.excepted:  # the file of the workers may pause it
        after = _with(after, name, value=False)
    return _without(after, _orphans(after))


def lifted(found: Overrides, name: str) -> Overrides:
    """Return the overrides with `paused: false` for the name, which lifts pauses of the policy file only.

    Raises StillPausedError if a wider pause set at run time stops the name.
    """
    stop = pauses_of(_without(found, [name]), {}).stop(name)
    if stop is not None and name not in pauses_of(found, {}).excepted:
        raise StillPausedError(name, stop)
    return resumed(found, name, {}, 0, excepted=True)


def forgotten(found: Overrides, name: str) -> Overrides:
    """Return the overrides without a pause or an exception of this name."""
    after = _without(found, [name])
    return _without(after, _orphans(after))


def _orphans(found: Overrides) -> list[str]:
    """Return the exceptions that no pause set at run time covers any more."""
    pauses = pauses_of(found, {})
    return [name for name in pauses.excepted if not pauses.paused.keys() & {*covering(name)}]


def _with(found: Overrides, name: str, *, value: bool, mark: PauseMark | None = None) -> Overrides:
    marks = {other: of for other, of in found.marks.items() if other != name}
    if mark is not None:
        marks[name] = mark
    return Overrides({**found.tables, name: {**found.tables.get(name, {}), PAUSED: value}}, marks)


def _without(found: Overrides, names: Iterable[str]) -> Overrides:
    """Return the overrides without the `paused` keys and the marks of these names."""
    tables, marks = dict(found.tables), dict(found.marks)
    for name in names:
        marks.pop(name, None)
        table = {key: value for key, value in tables.pop(name, {}).items() if key != PAUSED}
        if table:
            tables[name] = table
    return Overrides(tables, marks)
