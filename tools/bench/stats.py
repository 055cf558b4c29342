"""Medians of runs, and ratios between programs. Pure."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

MB = 1_000_000
OWN = "fetchfleet"


class Run(NamedTuple):
    """One run: its duration, and the peak resident memory of each of its processes."""

    took_s: float
    peaks_bytes: Sequence[int]


def of_files(runs: Sequence[Run], files: int, bytes_a_run: int) -> dict[str, float]:
    """Return the figures of one program. Memory is of the worst round: all processes, and the largest one."""
    took_s = statistics.median(run.took_s for run in runs)
    return {
        "per_s": round(files / took_s, 1),
        "mb_per_s": round(bytes_a_run / MB / took_s, 1),
        "took_s": round(took_s, 3),
        "least_s": round(min(run.took_s for run in runs), 3),
        "most_s": round(max(run.took_s for run in runs), 3),
        "peak_rss_mb": round(max(sum(run.peaks_bytes) for run in runs) / MB, 1),
        "largest_rss_mb": round(max(max(run.peaks_bytes) for run in runs) / MB, 1),
    }


def of_rates(rates_per_s: Sequence[float]) -> dict[str, float]:
    """Return the figures of rounds that were measured as rates."""
    return {
        "per_s": round(statistics.median(rates_per_s), 1),
        "least_per_s": round(min(rates_per_s), 1),
        "most_per_s": round(max(rates_per_s), 1),
    }


def with_ratios(figures: Mapping[str, Mapping[str, float]], unit: str) -> dict[str, Any]:
    """Return the figures with ratios of rates.

    A peer gets the ratio of fetchfleet to it; each configuration of fetchfleet gets its ratio to every peer.
    """
    rates = {name: figure[unit] for name, figure in figures.items()}
    peers = [name for name in rates if not is_own(name)]
    found: dict[str, Any] = {name: dict(figure) for name, figure in figures.items()}
    for name, figure in found.items():
        if is_own(name):
            figure["times"] = {peer: round(rates[name] / rates[peer], 2) for peer in peers}
        elif OWN in rates:
            figure[f"{OWN}_is_times"] = round(rates[OWN] / rates[name], 2)
    return found


def is_own(name: str) -> bool:
    """Return whether the name is a configuration of fetchfleet."""
    return name.split(",", maxsplit=1)[0] == OWN


def another_fits(round_took_s: Sequence[float], budget_s: float) -> bool:
    """Return whether a round as long as the longest so far still ends within the budget."""
    return sum(round_took_s) + max(round_took_s) <= budget_s
