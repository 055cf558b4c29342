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


def files(figures: Mapping[str, Any], per_s: str, title: str) -> Sheet:
    """Return the table of a load. per_s: the rate to show, `per_s` or `mb_per_s`."""
    unit = {"per_s": "fetches/s", "mb_per_s": "MB/s"}[per_s]
    heads = ["", unit, "s, min to max", "µs of CPU a fetch", "peak RSS, MB", "largest process", _TIMES]
    return Sheet(title, heads, [_of_files(name, figure, per_s) for name, figure in figures.items()])


def summary(loads: Mapping[str, Mapping[str, Any]], units: Mapping[str, str], base: str) -> Sheet:
    """Return one table of all loads: the rate and CPU time of each program, divided by those of `base`.

    units: the rate of each load, `per_s` or `mb_per_s`.
    """
    columns = {f"{load}, rate": beside(figures, units[load], base) for load, figures in loads.items()}
    columns |= {f"{load}, CPU": beside(figures, "cpu_us", base) for load, figures in loads.items()}
    names = dict.fromkeys(name for column in columns.values() for name in column)
    rows = [
        [name, *(f"{column[name]:.2f}" if name in column else "" for column in columns.values())]
        for name in names
    ]
    return Sheet(f"times the figure of the {base}", ["", *columns], rows)


def targets(loads: Mapping[str, Any]) -> Sheet:
    """Return the table of the targets, with the measured ratios."""
    rows = []
    for target in TARGETS:
        ratio = target.ratio(loads)
        figure = "CPU time" if target.is_upper_bound else "rate"
        limit = "at most" if target.is_upper_bound else "at least"
        bound = f"{limit} {target.bound:g} times the {target.base}"
        verdict = "" if ratio is None else "met" if target.is_met(ratio) else "missed"
        measured = "" if ratio is None else f"{ratio:.2f}"
        rows.append([f"{target.load}: {figure} of {target.program}", bound, measured, verdict])
    return Sheet("Targets", ["", "target", "measured", "verdict"], rows)


def layers(figures: Mapping[str, Any], title: str) -> Sheet:
    """Return the table of the CPU time of a fetch at each layer."""
    rows = [
        [name, f"{figure['cpu_us']:,.0f}", f"{figure['per_s']:,.0f}", f"{figure['times_straight_line']:.2f}"]
        for name, figure in figures.items()
    ]
    return Sheet(title, ["", "µs of CPU a fetch", "per second", "times the straight line"], rows)


def rates(figures: Mapping[str, Any], title: str) -> Sheet:
    """Return the table of figures measured as rates."""
    rows = [
        [name, f"{figure['per_s']:,.0f}", _span(figure, "per_s", ",.0f"), _times(figure)]
        for name, figure in figures.items()
    ]
    return Sheet(title, ["", "per second", "min to max", _TIMES], rows)


def where(profiles: Mapping[str, Any], title: str) -> Sheet:
    """Return the table of the CPU time of a fetch by subsystem, with a column for each profile."""
    columns = [
        {**profile["cpu"], "the Redis server": profile["redis_server"], "elapsed": profile["wall"]}
        for profile in profiles.values()
    ]
    totals = ("all", "the Redis server", "elapsed")
    names = dict.fromkeys(name for column in columns for name in column)
    rows = [
        [name, *(f"{column[name]:,.0f}" if name in column else "" for column in columns)]
        for name in (*(name for name in names if name not in totals), *totals)
    ]
    return Sheet(title, ["", *profiles], rows)


_TIMES = "fetchfleet is … times as fast"


def _of_files(name: str, figure: Mapping[str, Any], per_s: str) -> list[str]:
    memory = [f"{figure[unit]:.0f}" for unit in ("peak_rss_mb", "largest_rss_mb")]
    cpu = f"{figure['cpu_us']:,.0f}"
    return [name, f"{figure[per_s]:,.0f}", _span(figure, "s", ".2f"), cpu, *memory, _times(figure)]


def _span(figure: Mapping[str, Any], unit: str, number_format: str) -> str:
    least, most = figure[f"least_{unit}"], figure[f"most_{unit}"]
    return f"{least:{number_format}} to {most:{number_format}}"


def _times(figure: Mapping[str, Any]) -> str:
    ratio = figure.get(f"{OWN}_is_times")
    return f"{ratio:.2f}" if ratio else ""
