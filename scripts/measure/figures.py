"""Figures of runs side by side: medians, and ratios to the others. Pure."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

MB = 1_000_000


class Run(NamedTuple):
    """Seconds from start to end, and the peak resident memory of the largest of its processes."""

    took_s: float
    peak_bytes: int


def of_bodies(runs: Sequence[Run], bytes_a_run: int) -> dict[str, float]:
    """What one program did in all its rounds."""
    return {
        "mb_per_s": round(bytes_a_run / MB / statistics.median(run.took_s for run in runs), 1),
        "peak_rss_mb": round(max(run.peak_bytes for run in runs) / MB, 1),
    }


def with_ratios(figures: Mapping[str, Mapping[str, float]], of: str, unit: str) -> dict[str, Any]:
    """The figures, and beside each other program's how often `of` did what it did in the same time."""
    own = figures[of][unit]
    return {
        name: dict(figure) if name == of else {**figure, f"{of}_is_times": round(own / figure[unit], 2)}
        for name, figure in figures.items()
    }
