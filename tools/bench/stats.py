"""Medians of runs, ratios between programs, and the target ratios of fetchfleet. Pure."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

MB = 1_000_000
OWN = "fetchfleet"
BASE = "aiohttp script"
"""The program with which the summary compares all others: the simplest fetcher in Python."""

DIRECT = f"{OWN}, direct"
WGET2 = "wget2"
BY_HAND = "arq + httpx by hand"
STRAIGHT_LINE = "straight line"


class Target(NamedTuple):
    """A bound of the ratio between two programs, for one figure of a load."""

    load: str
    unit: str
    program: str
    base: str
    bound: float

    @property
    def is_upper_bound(self) -> bool:
        """True for CPU time, false for rates."""
        return self.unit == "cpu_us"

    def ratio(self, loads: Mapping[str, Mapping[str, Mapping[str, float]]]) -> float | None:
        """Return the program's figure divided by that of `base`; None if one was not measured."""
        return beside(loads.get(self.load, {}), self.unit, self.base).get(self.program)

    def is_met(self, ratio: float) -> bool:
        """Return whether the ratio is within the bound."""
        return ratio <= self.bound if self.is_upper_bound else ratio >= self.bound


TARGETS = (
    Target("small", "per_s", DIRECT, BASE, 1.0),
    Target("small", "per_s", f"{DIRECT}, 2 workers", BASE, 1.5),
    Target("small", "per_s", f"{DIRECT}, 2 workers", WGET2, 0.6),
    Target("small", "per_s", OWN, BASE, 0.6),
    Target("small", "per_s", f"{OWN}, 2 workers", BASE, 1.0),
    Target("small", "per_s", f"{OWN}, 2 workers", BY_HAND, 8.0),
    Target("small", "per_s", f"{DIRECT}, warc", DIRECT, 1.0),
    Target("small", "cpu_us", DIRECT, BASE, 1.2),
    Target("small", "cpu_us", OWN, BASE, 2.0),
    Target("hosts", "per_s", DIRECT, BASE, 1.0),
    Target("large", "mb_per_s", DIRECT, BASE, 1.0),
    Target("tls", "cpu_us", DIRECT, BASE, 1.2),
    Target("layers", "cpu_us", "worker, direct", STRAIGHT_LINE, 1.6),
    Target("layers", "cpu_us", "worker, httpx", STRAIGHT_LINE, 2.5),
)


class Run(NamedTuple):
    """One run of a program."""

    took_s: float
    peaks_bytes: Sequence[int]
    """The peak memory of each process."""
    cpu_s: float
    """The CPU time of all processes."""


def of_files(runs: Sequence[Run], files: int, bytes_a_run: int) -> dict[str, float]:
    """Return the figures of a program that fetched `files` files in each run.

    Times are medians. Memory is that of the worst round, for all processes and for the largest process.
    """
    took_s = statistics.median(run.took_s for run in runs)
    return {
        "per_s": round(files / took_s, 1),
        "mb_per_s": round(bytes_a_run / MB / took_s, 1),
        "took_s": round(took_s, 3),
        "least_s": round(min(run.took_s for run in runs), 3),
        "most_s": round(max(run.took_s for run in runs), 3),
        "cpu_us": round(statistics.median(run.cpu_s for run in runs) / files * 1e6, 1),
        "peak_rss_mb": round(max(sum(run.peaks_bytes) for run in runs) / MB, 1),
        "largest_rss_mb": round(max(max(run.peaks_bytes) for run in runs) / MB, 1),
    }


def of_rates(rates_per_s: Sequence[float]) -> dict[str, float]:
    """Return the figures of rounds that were measured as rates: the median, and the range."""
    return {
        "per_s": round(statistics.median(rates_per_s), 1),
        "least_per_s": round(min(rates_per_s), 1),
        "most_per_s": round(max(rates_per_s), 1),
    }


def with_ratios(figures: Mapping[str, Mapping[str, float]], unit: str) -> dict[str, Any]:
    """Add the ratios of rates to the figures.

    A configuration of fetchfleet gets its ratio to each peer. A peer gets the ratio of fetchfleet to itself.
    """
    rates = {name: figure[unit] for name, figure in figures.items()}
    peers = [name for name in rates if not is_own(name)]
    compared: dict[str, Any] = {name: dict(figure) for name, figure in figures.items()}
    for name, figure in compared.items():
        if is_own(name):
            figure["times"] = {peer: round(rates[name] / rates[peer], 2) for peer in peers}
        elif OWN in rates:
            figure[f"{OWN}_is_times"] = round(rates[OWN] / rates[name], 2)
    return compared


def beside(figures: Mapping[str, Mapping[str, float]], unit: str, base: str) -> dict[str, float]:
    """Return each program's figure divided by that of `base`; empty if `base` was not measured."""
    if base not in figures:
        return {}
    return {name: figure[unit] / figures[base][unit] for name, figure in figures.items()}


def is_own(name: str) -> bool:
    """Return whether the name is a configuration of fetchfleet."""
    return name.split(",", maxsplit=1)[0] == OWN


def another_fits(round_took_s: Sequence[float], budget_s: float) -> bool:
    """Return whether the budget has time for a round as long as the longest so far."""
    return sum(round_took_s) + max(round_took_s) <= budget_s
