"""Tables of figures, for a terminal and as Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rich.table import Table

from tools.bench.stats import OWN

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
    heads = ["", unit, "s, min to max", "peak RSS, MB: all processes", "largest process", _TIMES]
    return Sheet(title, heads, [_of_files(name, figure, per_s) for name, figure in found.items()])


def rates(found: Mapping[str, Any], title: str) -> Sheet:
    """Return the table of figures measured as rates."""
    rows = [
        [name, f"{figure['per_s']:,.0f}", _span(figure, "per_s", ",.0f"), _times(figure)]
        for name, figure in found.items()
    ]
    return Sheet(title, ["", "per second", "min to max", _TIMES], rows)


def where(found: Mapping[str, Any], title: str) -> Sheet:
    """Return the table of the CPU time of a fetch by subsystem."""
    rows = [[room, f"{us:,.0f}"] for room, us in found["cpu"].items()]
    rows += [
        ["the Redis server", f"{found['redis_server']:,.0f}"],
        ["elapsed", f"{found['wall']:,.0f}"],
    ]
    return Sheet(title, ["", "µs a fetch"], rows)


_TIMES = "fetchfleet is … times as fast"


def _of_files(name: str, figure: Mapping[str, Any], per_s: str) -> list[str]:
    memory = [f"{figure[unit]:.0f}" for unit in ("peak_rss_mb", "largest_rss_mb")]
    return [name, f"{figure[per_s]:,.0f}", _span(figure, "s", ".2f"), *memory, _times(figure)]


def _span(figure: Mapping[str, Any], unit: str, shown: str) -> str:
    least, most = figure[f"least_{unit}"], figure[f"most_{unit}"]
    return f"{least:{shown}} to {most:{shown}}"


def _times(figure: Mapping[str, Any]) -> str:
    ratio = figure.get(f"{OWN}_is_times")
    return f"{ratio:.2f}" if ratio else ""
