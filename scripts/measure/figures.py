"""Figures of runs side by side: medians, and ratios to the others. Pure."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

MB = 1_000_000


class Run(NamedTuple):
    """Seconds from start to end, and the peak resident memory of each of its processes."""

    took_s: float
    peaks_bytes: Sequence[int]


def of_bodies(runs: Sequence[Run], bytes_a_run: int) -> dict[str, float]:
    """What one program did in all its rounds; memory is that of the worst, all processes and the largest."""
    return {
        "mb_per_s": round(bytes_a_run / MB / statistics.median(run.took_s for run in runs), 1),
        "peak_rss_mb": round(max(sum(run.peaks_bytes) for run in runs) / MB, 1),
        "largest_rss_mb": round(max(max(run.peaks_bytes) for run in runs) / MB, 1),
    }


def with_ratios(figures: Mapping[str, Mapping[str, float]], of: str, unit: str) -> dict[str, Any]:
    """The figures, and beside each other program's how often `of` did what it did in the same time."""
    own = figures[of][unit]
    return {
        name: dict(figure) if name == of else {**figure, f"{of}_is_times": round(own / figure[unit], 2)}
        for name, figure in figures.items()
    }
