"""How a run went, for people."""

import statistics

from rich.console import Console
from rich.table import Table

from tools.chaos import hosts
from tools.chaos.checker import Verdict


def show(console: Console, verdict: Verdict) -> None:
    """The tables, then each breach in a sentence."""
    console.print(_faults(verdict))
    console.print(_fetches(verdict))
    for breach in verdict.breaches:
        console.print(breach, style="red", highlight=False, markup=False, soft_wrap=True)


def _faults(verdict: Verdict) -> Table:
    table = Table(title="what was done to the fleet, and how soon the work went on")
    table.add_column("fault")
    for name in ("times", "measured", "median s", "worst s"):
        table.add_column(name, justify="right")
    for kind, (faults, took_s) in verdict.recoveries.items():
        median, worst = (f"{of(took_s):.2f}" if took_s else "" for of in (statistics.median, max))
        table.add_row(kind.value, str(faults), str(len(took_s)), median, worst)
    return table


def _fetches(verdict: Verdict) -> Table:
    table = Table(title="what became of the fetches")
    table.add_column("")
    table.add_column("count", justify="right")
    rows = {
        "acknowledged": verdict.acknowledged,
        "perhaps (no acknowledgement came)": verdict.perhaps,
        **dict(sorted(verdict.outcomes.items())),
        "lost": verdict.lost,
        "unexpected": verdict.unexpected,
        "results twice": verdict.doubled,
        "requests": verdict.requests,
        "repeats (whole answers without a result of their own)": verdict.repeats,
    }
    for name, count in rows.items():
        table.add_row(name, f"{count:,}")
    for host, most in verdict.most_at_once.items():
        table.add_row(f"most at once at {host}", f"{most} of {hosts.CONCURRENCY}")
    return table
