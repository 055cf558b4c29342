"""Tables of figures, for a terminal and as Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rich.table import Table

from tools.bench.stats import OWN, TARGETS, beside

Rows = Sequence[Sequence[str]]


class Sheet(NamedTuple):
    """A table: names in the first column, figures in the others."""

    title: str
    heads: Sequence[str]
    rows: Rows

    @property
    def rich(self) -> Table:
        """The table for a terminal."""
        table = Table(title=self.title)
        for number, head in enumerate(self.heads):
            table.add_column(head, justify="right" if number else "left")
        for row in self.rows:
            table.add_row(*row)
        return table

    @property
    def markdown(self) -> str:
        """The table as Markdown, as in docs/performance.md."""
        rule = ["---", *("---:" for _ in self.heads[1:])]
        lines = [f"| {' | '.join(row)} |" for row in (self.heads, rule, *self.rows)]
        return "\n".join([f"{self.title}:", "", *lines, ""])


def files(found: Mapping[str, Any], per_s: str, title: str) -> Sheet:
    """Return the table of a load of files. per_s: the rate to show, `per_s` or `mb_per_s`."""
    unit = {"per_s": "fetches/s", "mb_per_s": "MB/s"}[per_s]
    heads = ["", unit, "s, min to max", "µs of CPU a fetch", "peak RSS, MB", "largest process", _TIMES]
    return Sheet(title, heads, [_of_files(name, figure, per_s) for name, figure in found.items()])


def summary(loads: Mapping[str, Mapping[str, Any]], units: Mapping[str, str], base: str) -> Sheet:
    """Return one table of all loads: how many times the rate of `base` each program has, and its CPU time.

    units: the rate that counts for each load.
    """
    columns = {f"{load}, rate": beside(found, units[load], base) for load, found in loads.items()}
    columns |= {f"{load}, CPU": beside(found, "cpu_us", base) for load, found in loads.items()}
    names = dict.fromkeys(name for column in columns.values() for name in column)
    rows = [
        [name, *(f"{column[name]:.2f}" if name in column else "" for column in columns.values())]
        for name in names
    ]
    return Sheet(f"times the figure of the {base}", ["", *columns], rows)


def targets(loads: Mapping[str, Any]) -> Sheet:
    """Return the table of the targets, with what was measured."""
    rows = []
    for target in TARGETS:
        ratio = target.ratio(loads)
        what = "CPU time" if target.is_most else "rate"
        bound = f"{'at most' if target.is_most else 'at least'} {target.bound:g} times the {target.base}"
        verdict = "" if ratio is None else "met" if target.is_met(ratio) else "missed"
        measured = "" if ratio is None else f"{ratio:.2f}"
        rows.append([f"{target.load}: {what} of {target.program}", bound, measured, verdict])
    return Sheet("Targets", ["", "target", "measured", "verdict"], rows)


def layers(found: Mapping[str, Any], title: str) -> Sheet:
    """Return the table of what a fetch costs at each layer."""
    rows = [
        [name, f"{figure['cpu_us']:,.0f}", f"{figure['per_s']:,.0f}", f"{figure['times_straight_line']:.2f}"]
        for name, figure in found.items()
    ]
    return Sheet(title, ["", "µs of CPU a fetch", "per second", "times the straight line"], rows)


def rates(found: Mapping[str, Any], title: str) -> Sheet:
    """Return the table of figures measured as rates."""
    rows = [
        [name, f"{figure['per_s']:,.0f}", _span(figure, "per_s", ",.0f"), _times(figure)]
        for name, figure in found.items()
    ]
    return Sheet(title, ["", "per second", "min to max", _TIMES], rows)


def where(profiles: Mapping[str, Any], title: str) -> Sheet:
    """Return the table of the CPU time of a fetch by subsystem, with a column for each profile."""
    columns = [
        {**of["cpu"], "the Redis server": of["redis_server"], "elapsed": of["wall"]}
        for of in profiles.values()
    ]
    ends = ("all", "the Redis server", "elapsed")
    rooms = [
        room for room in dict.fromkeys(room for column in columns for room in column) if room not in ends
    ]
    rows = [
        [room, *(f"{column[room]:,.0f}" if room in column else "" for column in columns)]
        for room in (*rooms, *ends)
    ]
    return Sheet(title, ["", *profiles], rows)


_TIMES = "fetchfleet is … times as fast"


def _of_files(name: str, figure: Mapping[str, Any], per_s: str) -> list[str]:
    memory = [f"{figure[unit]:.0f}" for unit in ("peak_rss_mb", "largest_rss_mb")]
    cpu = f"{figure['cpu_us']:,.0f}"
    return [name, f"{figure[per_s]:,.0f}", _span(figure, "s", ".2f"), cpu, *memory, _times(figure)]


def _span(figure: Mapping[str, Any], unit: str, shown: str) -> str:
    least, most = figure[f"least_{unit}"], figure[f"most_{unit}"]
    return f"{least:{shown}} to {most:{shown}}"


def _times(figure: Mapping[str, Any]) -> str:
    ratio = figure.get(f"{OWN}_is_times")
    return f"{ratio:.2f}" if ratio else ""
