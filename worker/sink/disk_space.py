"""Decides whether the disk can take more bodies. Pure."""

from typing import NamedTuple

FREE_REFUSALS = 3
"""Consecutive failed writes without a pause: one body may exceed a quota, or hit a bad sector."""

PAUSE_S = 2.0
MAX_PAUSE_S = 60.0


class Space(NamedTuple):
    """The free space and the state of the out folder's file system."""

    free_bytes: int
    free_files: int | None = None
    """None: the file system does not count files."""
    read_only: bool = False
    """The file system is mounted read-only."""
    refuses: bool = False
    """Writes fail, whatever space the file system reports: a quota, or a failing disk."""
    error: str | None = None
    """The error of the failed writes, or of the displaced folder."""
    displaced: bool = False
    """The out folder's path leads to no folder, or to one that cannot replace the open folder."""
    reopened: str = ""
    """The out folder's path if another folder was opened there by this check, else empty."""
    disk_at_fault: bool = True
    """The disk is full, read-only or failing. If False, the worker lacks descriptors or permissions."""


class Refusals(NamedTuple):
    """Consecutive failed writes of bodies."""

    in_a_row: int = 0
    """Failed writes since the last successful one."""
    until_s: float = 0.0
    """The monotonic time until which no body is written."""


def refused(before: Refusals, now_s: float) -> Refusals:
    """Count a failed write. During a pause it is not counted: that body was in flight already."""
    if now_s < before.until_s:
        return before
    in_a_row = before.in_a_row + 1
    doublings = in_a_row - FREE_REFUSALS
    pause_s = 0.0 if doublings < 0 else min(PAUSE_S * 2 ** min(doublings, 10), MAX_PAUSE_S)
    return Refusals(in_a_row, now_s + pause_s)


def shortage(space: Space, min_free_bytes: int, *, was_short: bool) -> str | None:
    """Return the shortage of the disk: "folder", "bytes", "files", "writing", or None.

    was_short: the previous check found a shortage. An eighth more bytes must be free to end it, so that small
    changes do not stop and start a worker.
    """
    if space.displaced:
        return "folder"
    if space.read_only or space.refuses:
        return "writing"
    if space.free_files == 0:
        return "files"
    required_bytes = min_free_bytes + min_free_bytes // 8 if was_short else min_free_bytes
    return "bytes" if space.free_bytes < required_bytes else None
